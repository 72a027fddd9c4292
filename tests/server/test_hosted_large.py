"""A server whose large model is on another machine."""

from collections.abc import Iterator

import httpx
import pytest
from hosted_servers import says
from served import Running, about, picture_url, serving

from sgl_engine import OpenAIModel, SGLEngine
from sgl_engine.cli import main
from sgl_engine.testing import tiny_vlm


class Other:
    """The other server, which answers as it is told."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: httpx.Response | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        await request.aread()
        return self.answer or says("a red ", "fox")


@pytest.fixture(scope="module")
def other() -> Other:
    return Other()


@pytest.fixture(scope="module")
def hosted(other: Other) -> Iterator[Running]:
    large = OpenAIModel("https://host/v1", "big", max_retries=0, transport=httpx.MockTransport(other))
    engine = SGLEngine(tiny_vlm(size="small"), large)
    with large, serving(lambda: engine) as running:
        assert other.asked == 0  # to be ready costs no call of it
        yield running


def test_what_is_not_sure_goes_out(hosted: Running, other: Other) -> None:
    before = other.asked
    kept = hosted.chat(about(picture_url()), sgl={"escalate": "never"}, max_tokens=4)
    assert (kept.headers["x-sgl-route"], other.asked) == ("small", before)
    sent = hosted.chat(about(picture_url()), model="sgl:large", max_tokens=4)
    assert sent.json()["choices"][0]["message"]["content"] == "a red fox"
    assert other.asked == before + 1
    assert sent.json()["sgl"]["large_model"]["name"] == "big"


def test_tokens_and_models_are_told_as_far_as_they_are_known(hosted: Running) -> None:
    cards = {card["id"]: card for card in hosted.client.get("/v1/models").json()["data"]}
    assert (cards["sgl"]["root"], cards["sgl"]["max_model_len"]) == ("big", None)
    assert cards["sgl:small"]["max_model_len"] == 2048
    counted = hosted.client.post("/tokenize", json={"messages": about(picture_url())}).json()
    assert set(counted["sgl"]) == {"small"}
    assert counted["count"] == counted["sgl"]["small"]["count"]


def test_why_its_answer_ends_is_passed_on(hosted: Running, other: Other) -> None:
    other.answer = says("no", finish="content_filter")
    try:
        answer = hosted.chat(about(picture_url()), model="sgl:large", max_tokens=4)
    finally:
        other.answer = None
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(("theirs", "ours"), [(401, 502), (400, 502), (429, 429), (500, 502)])
def test_its_errors_are_no_fault_of_ours(hosted: Running, other: Other, theirs: int, ours: int) -> None:
    other.answer = httpx.Response(theirs, json={"error": {"message": "no"}})
    try:
        answer = hosted.chat(about(picture_url()), model="sgl:large", max_tokens=4)
    finally:
        other.answer = None
    assert answer.status_code == ours
    assert answer.json()["error"]["code"].startswith("hosted_")


def test_two_large_models_are_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--large", "x", "--hosted", "https://host/v1", "big"]) == 2
    assert "--hosted and --large" in capsys.readouterr().err
