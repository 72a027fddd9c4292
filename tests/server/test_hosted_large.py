"""A server whose large model is on another machine."""

import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hosted_servers import chunk, says, stream
from served import Running, about, picture_url, serving

from sgl_engine import EngineConfig, OpenAIModel, SGLEngine
from sgl_engine.cli import main, serve
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


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, but for its end, which is there; no number is one that JSON does not have."""
    *lines, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert (answer.status_code, end) == (200, "[DONE]")
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_a_piece_may_end_inside_a_surrogate_pair(hosted: Running, other: Other) -> None:
    other.answer = stream(chunk({"content": "\ud83d"}), chunk({"content": "\ude00"}), chunk({}, "stop"))
    try:
        answer = hosted.chat(about(picture_url()), model="sgl:large", max_tokens=4, stream=True)
    finally:
        other.answer = None
    deltas = [choice["delta"] for event in events_of(answer) for choice in event["choices"]]
    said = "".join(delta.get("content", "") for delta in deltas)
    assert said.encode("utf-16", "surrogatepass").decode("utf-16") == "\N{GRINNING FACE}"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_token_that_is_too_unlikely_has_openais_number(
    hosted: Running, other: Other, *, streamed: bool
) -> None:
    top = [{"token": "9", "logprob": -math.inf}, {"token": "\ud83d", "logprob": -3.0}]
    token = {"token": "8", "logprob": -math.inf, "top_logprobs": top}
    other.answer = stream(chunk({"content": "8"}, logprobs={"content": [token]}), chunk({}, "stop"))
    asked = {"model": "sgl:large", "logprobs": True, "top_logprobs": 2, "stream": streamed}
    try:
        answer = hosted.chat(about(picture_url()), max_tokens=4, **asked)
    finally:
        other.answer = None
    bodies = events_of(answer) if streamed else [json.loads(answer.text, parse_constant=pytest.fail)]
    [found] = [choice["logprobs"] for body in bodies for choice in body["choices"] if choice["logprobs"]]
    [written] = found["content"]
    assert (written["logprob"], written["bytes"]) == (-9999.0, [56])
    assert [(each["logprob"], each["bytes"]) for each in written["top_logprobs"]] == [
        (-9999.0, [57]),
        (-3.0, None),
    ]


@pytest.mark.parametrize(("theirs", "ours"), [(401, 502), (400, 502), (429, 429), (500, 502)])
def test_its_errors_are_no_fault_of_ours(hosted: Running, other: Other, theirs: int, ours: int) -> None:
    other.answer = httpx.Response(theirs, json={"error": {"message": "no"}})
    try:
        answer = hosted.chat(about(picture_url()), model="sgl:large", max_tokens=4)
    finally:
        other.answer = None
    assert answer.status_code == ours
    assert answer.json()["error"]["code"].startswith("hosted_")


def test_its_key_may_come_from_a_file_with_a_line_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    small = tiny_vlm(size="small")

    def model(url: str, name: str, *, api_key: str) -> OpenAIModel:
        keys.append(api_key)
        return OpenAIModel(url, name, api_key=api_key)

    monkeypatch.setenv(serve.HOSTED_KEY, "sk-1\n")
    monkeypatch.setattr("sgl_engine.OpenAIModel", model)
    monkeypatch.setattr("sgl_engine.VLM", SimpleNamespace(from_pretrained=lambda *_, **__: small))
    given: Any = SimpleNamespace(hosted=["https://host/v1", "big"], small="x", device=None, dtype="auto")
    serve._with_hosted(given, EngineConfig()).close()
    assert keys == ["sk-1"]


def test_two_large_models_are_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--large", "x", "--hosted", "https://host/v1", "big"]) == 2
    assert "--hosted and --large" in capsys.readouterr().err
