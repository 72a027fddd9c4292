"""Lists of documents over HTTP: vLLM's shapes, and the scores and routes of LangChain's reranker."""

import base64
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.documents import Document
from PIL import Image
from pydantic import SecretStr
from served import Running, picture_url, serving

from langchain_sgl import ChatSGL, SGLImageReranker
from sgl_engine import EngineConfig, Request, SchedulerConfig, SGLEngine
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.response import AnswerScores
from sgl_engine.server import ServerSettings
from sgl_engine.testing import FakeHostedModel, tiny_vlm

KEY = "s3cret"
QUERY = "How much is the total?"
LIMIT_S = 60.0
"""Only ends a hang."""


def url_of(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


PAGES = sorted(PICTURES.glob("*.png"))
URLS = [url_of(path) for path in PAGES]
COLORS = ("red", "blue", "green", "white", "black")


@pytest.fixture(scope="module")
def bundled() -> Iterator[Running]:
    with serving(demo_engine()) as running:
        yield running


@pytest.fixture(scope="module")
def pair() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


@pytest.fixture(scope="module")
def tiny(pair: SGLEngine) -> Iterator[Running]:
    settings = ServerSettings(max_documents=8, vllm_metric_names=True, api_key=SecretStr(KEY))
    with serving(pair, settings) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


def rerank(server: Running, documents: Any, path: str = "/v1/rerank", **fields: Any) -> httpx.Response:
    return server.client.post(path, json={"query": QUERY, "documents": documents, **fields})


def by_langchain(documents: list[Document], **options: Any) -> list[tuple[int, float, str]]:
    chat, own = {}, {}
    for name, value in options.items():
        (own if name in {"max_rescored", "min_score", "top_n"} else chat)[name] = value
    ranked = SGLImageReranker(model=ChatSGL(**chat), **own).compress_documents(documents, QUERY)
    return [
        (
            int(document.id or 0),
            document.metadata["relevance_score"],
            document.metadata["sgl_relevance"]["route"],
        )
        for document in ranked
    ]


def by_server(body: dict[str, Any]) -> list[tuple[int, float, str]]:
    return [
        (each["index"], each["relevance_score"], body["sgl"]["reports"][each["index"]]["route"])
        for each in body["results"]
    ]


def same(found: Any, expected: Any) -> bool:
    """The same documents in the same order, by the same models; scores up to rounding."""
    return [(i, r) for i, _, r in found] == [(i, r) for i, _, r in expected] and [
        s for _, s, _ in found
    ] == pytest.approx([s for _, s, _ in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "sgl"),
    [
        ({}, {}),
        ({"escalate": "never"}, {"escalate": "never"}),
        ({"escalate": "always", "retention": "64%"}, {"escalate": "always", "retention": "64%"}),
        ({"exit_threshold": 1.0}, {"threshold": 1.0}),
        ({"exit_threshold": 1.0, "max_rescored": 1}, {"threshold": 1.0, "max_rescored": 1}),
        ({"min_score": 0.5}, {"min_score": 0.5}),
    ],
)
def test_it_ranks_as_langchains_reranker(bundled: Running, options: Any, sgl: Any) -> None:
    given = [Document("", id=str(n), metadata={"image_url": url}) for n, url in enumerate(URLS)]
    documents = [{"image": url} for url in URLS]
    answer = rerank(bundled, documents, sgl=sgl)
    assert answer.status_code == 200, answer.text
    expected = by_langchain(given, **options)
    assert same(by_server(answer.json()), expected)
    assert not same(by_server(rerank(bundled, documents, sgl=sgl, query="x").json()), expected)  # control
    assert PAGES[expected[0][0]].name == "receipt.png"


def test_an_answer_has_vllms_shape_and_the_report(tiny: Running, pair: SGLEngine) -> None:
    documents = ["A fox is red.", {"content": [{"type": "image_url", "image_url": {"url": picture_url()}}]}]
    answer = rerank(tiny, documents, model="sgl:small")
    body = answer.json()
    assert set(body) == {"id", "model", "usage", "results", "sgl"}
    assert body["model"] == "sgl:small"
    assert [set(each) for each in body["results"]] == [{"index", "document", "relevance_score"}] * 2
    scores = [each["relevance_score"] for each in body["results"]]
    assert scores == sorted(scores, reverse=True)
    echoed = {each["index"]: each["document"] for each in body["results"]}
    assert echoed == {
        0: {"text": documents[0], "multi_modal": None},
        1: {"text": None, "multi_modal": None},
    }
    report = body["sgl"]
    assert (report["route"], report["forced"], report["documents"]) == (
        "small",
        True,
        {"small": 2, "large": 0},
    )
    assert [each["route"] for each in report["reports"]] == ["small", "small"]
    tokens = [each["small_input_tokens"] for each in report["reports"]]
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == sum(tokens)
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 16
    assert answer.headers["x-sgl-route"] == "small"
    assert float(answer.headers["x-sgl-score"]) == pytest.approx(report["score"], abs=1e-4)
    assert float(answer.headers["x-sgl-saved"]) == pytest.approx(report["saved_fraction"], abs=1e-4)
    # A text is asked about as a document, a picture as a picture.
    request = Request.ask(
        f'A fox is red.\n\nCan this document answer the question "{QUERY}"? Answer Yes or No.'
    )
    shares = pair.score_answers(request, ["Yes", "No"], model="small").shares
    assert dict(zip((each["index"] for each in body["results"]), scores, strict=True))[0] == pytest.approx(
        shares[0], abs=1e-5
    )


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_how_many_come_back_and_what_is_repeated(tiny: Running, path: str) -> None:
    documents: list[Any] = ["one", {"text": "two"}, {"image": picture_url()}]
    few = rerank(tiny, documents, path, top_n=1).json()["results"]
    assert len(few) == 1
    assert len(rerank(tiny, documents, path, top_n=0).json()["results"]) == 3
    bare = rerank(tiny, documents, path, return_documents=False).json()["results"]
    assert all("document" not in each for each in bare)
    whole = {
        e["index"]: e["document"]
        for e in rerank(tiny, documents, path, return_documents=True).json()["results"]
    }
    assert whole[1]["text"] == "two"
    assert whole[2]["multi_modal"] == [documents[2]]


def test_a_document_goes_back_as_it_came(tiny: Running) -> None:
    """JSON can write half a surrogate pair, and UTF-8 cannot."""
    sent = {
        "query": QUERY,
        "documents": [{"image": picture_url(), "id": "\ud800é"}],
        "return_documents": True,
    }
    headers = {"content-type": "application/json"}
    answer = tiny.client.post("/rerank", content=json.dumps(sent).encode(), headers=headers)
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    assert result["document"]["multi_modal"] == sent["documents"]


FORMS: list[Any] = [
    picture_url(),
    {"image": picture_url()},
    {"image": picture_url().partition(",")[2]},
    {"image_url": picture_url()},
    {"image_url": {"url": picture_url()}},
    {"type": "image_url", "image_url": {"url": picture_url()}},
    {"type": "input_image", "image_url": picture_url()},
    {"content": [{"type": "image_url", "image_url": {"url": picture_url()}}]},
]


def test_a_picture_may_come_in_every_form(tiny: Running) -> None:
    body = rerank(tiny, FORMS, sgl={"escalate": "never"}).json()
    scores = [each["relevance_score"] for each in body["results"]]
    assert len(scores) == len(FORMS)
    assert scores == pytest.approx([scores[0]] * len(FORMS), abs=1e-6)
    text = rerank(tiny, ["not a picture"], sgl={"escalate": "never"}).json()
    assert text["results"][0]["relevance_score"] != pytest.approx(scores[0], abs=1e-6)
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 16 * len(FORMS)


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_come_in_the_order_of_the_pairs(tiny: Running, names: tuple[str, str], path: str) -> None:
    pictures = [{"image": picture_url(color)} for color in COLORS[:3]]

    def score(queries: Any, documents: Any, **fields: Any) -> dict[str, Any]:
        sent = {names[0]: queries, names[1]: documents, **fields}
        found: dict[str, Any] = tiny.client.post(path, json=sent).json()
        return found

    never = {"sgl": {"escalate": "never"}}
    body = score("How much?", pictures, **never)
    assert (body["object"], [each["index"] for each in body["data"]]) == ("list", [0, 1, 2])
    assert {each["object"] for each in body["data"]} == {"score"}
    scores = [each["score"] for each in body["data"]]
    each_alone = [score("How much?", picture, **never)["data"][0]["score"] for picture in pictures]
    assert scores == pytest.approx(each_alone, abs=1e-5)
    pairs = score(["How much?", "Which?", "How much?"], pictures, **never)
    assert [each["score"] for each in pairs["data"]][::2] == pytest.approx(scores[::2], abs=1e-5)
    assert pairs["data"][1]["score"] != pytest.approx(scores[1], abs=1e-5)


def test_pairs_are_settled_one_by_one_and_a_list_as_one(tiny: Running) -> None:
    """With one query the documents compete; with one query each, every one is a list of its own."""
    pictures = [{"image": picture_url(color)} for color in COLORS[:2]]
    small = tiny.client.post(
        "/score", json={"text_1": "x", "text_2": pictures, "sgl": {"escalate": "never"}}
    ).json()
    scores = [each["score"] for each in small["data"]]
    assert small["sgl"]["score"] == pytest.approx(max(1 - max(scores), min(max(scores), 1 - min(scores))))
    threshold = max(min(max(s, 1 - s) for s in scores) - 1e-3, 0.0)
    each = {"text_1": ["x", "x"], "text_2": pictures, "sgl": {"threshold": threshold}}
    assert tiny.client.post("/score", json=each).json()["sgl"]["documents"] == {"small": 2, "large": 0}
    each["sgl"] = {"threshold": 1.0}
    assert tiny.client.post("/score", json=each).json()["sgl"]["documents"] == {"small": 0, "large": 2}


GOOD = {"image": picture_url()}


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"documents": []}, 400, "invalid_value", "documents"),
        ({"documents": None}, 400, "invalid_value", "documents"),
        ({"documents": 7}, 400, "invalid_value", "documents"),
        ({"documents": [7]}, 400, "invalid_value", "documents.0"),
        ({"documents": [""]}, 400, "invalid_value", "documents.0"),
        ({"documents": [{}]}, 400, "invalid_value", "documents.0"),
        ({"documents": [{"content": []}]}, 400, "invalid_value", "documents.0"),
        ({"documents": [{"content": [{"type": "input_audio"}]}]}, 400, "invalid_value", "documents.0"),
        ({"documents": [GOOD] * 9}, 400, "invalid_value", None),
        ({"query": "  "}, 400, "invalid_value", "query"),
        ({"query": GOOD}, 400, "invalid_value", "query"),
        ({"query": None}, 400, "invalid_value", "query"),
        ({"top_n": -1}, 400, "invalid_value", "top_n"),
        ({"use_activation": False}, 400, "invalid_value", "use_activation"),
        ({"truncate_prompt_tokens": 5}, 400, "unknown_parameter", "truncate_prompt_tokens"),
        ({"sgl": {"scorer": "consistency"}}, 400, "unknown_parameter", "sgl.scorer"),
        ({"sgl": {"retention": "7%"}}, 400, "config", None),
        ({"sgl": {"prompt": "no place for it", "negative": "No"}}, 400, "config", None),
        ({"model": "gpt-5"}, 404, "model_not_found", "model"),
        ({"model": "sgl:small", "sgl": {"escalate": "always"}}, 400, "invalid_value", None),
        (
            {"documents": [GOOD, {"image": "data:image/png;base64,aGVsbG8="}]},
            400,
            "corrupt_image",
            "documents.1",
        ),
        ({"documents": [GOOD, {"image": "file:///etc/passwd"}]}, 400, "unsafe_path", "documents.1"),
        ({"documents": [GOOD, {"image": "http://example.org/x.png"}]}, 400, "unsafe_url", "documents.1"),
        ({"documents": [GOOD, {"image": "https://127.0.0.1/x.png"}]}, 400, "unsafe_url", "documents.1"),
        ({"documents": [GOOD, {"image": "/etc/passwd"}]}, 400, "corrupt_image", "documents.1"),
        ({"documents": ["long " * 3000]}, 400, "context_length_exceeded", "documents.0"),
        ({"sgl": {"timeout_s": 1e-6}}, 408, "deadline", "documents.0"),
    ],
)
def test_bad_lists_are_told_what_is_wrong(
    tiny: Running, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = tiny.client.post("/rerank", json={"query": QUERY, "documents": [GOOD], **fields})
    error = answer.json()["error"]
    if code == "deadline":  # whichever document came first
        error["param"] = "documents.0"
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error


def test_queries_and_documents_that_are_no_pairs(tiny: Running) -> None:
    answer = tiny.client.post("/score", json={"text_1": ["a", "b"], "text_2": [GOOD] * 3})
    assert answer.status_code == 400
    assert "one for each document" in answer.json()["error"]["message"]
    assert tiny.client.post("/score", json={"text_1": "a"}).status_code == 400


def test_documents_that_cannot_be_used_can_be_dropped(tiny: Running) -> None:
    broken = {"image": "data:image/png;base64,aGVsbG8="}
    answer = rerank(tiny, [broken, GOOD, "long " * 3000], sgl={"unreadable": "drop"})
    body = answer.json()
    assert [each["index"] for each in body["results"]] == [1]
    assert [(each["index"], each["code"]) for each in body["sgl"]["unreadable"]] == [
        (0, "corrupt_image"),
        (2, "context_length_exceeded"),
    ]
    none = rerank(tiny, [broken], sgl={"unreadable": "drop"}).json()
    assert none["results"] == []
    sent = {"text_1": "x", "text_2": [broken, GOOD], "sgl": {"unreadable": "drop"}}
    assert [each["index"] for each in tiny.client.post("/score", json=sent).json()["data"]] == [1]


def test_the_bundled_pair_says_that_it_reads_no_texts(bundled: Running) -> None:
    answer = rerank(bundled, [{"image": URLS[0]}, "a text"])
    assert answer.status_code == 400
    assert "documents.1 holds text" in answer.json()["error"]["message"]
    asked = {"prompt": "{query}", "negative": "none"}
    assert rerank(bundled, ["a text"], sgl=asked).status_code == 200  # who asks otherwise knows what he does


def test_a_hosted_large_model_cannot_score() -> None:
    with serving(SGLEngine(tiny_vlm(size="small"), FakeHostedModel("No"))) as server:
        answer = rerank(server, [GOOD])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "config")
    assert "hosted" in answer.json()["error"]["message"]


def test_without_the_key_nothing_is_ranked(tiny: Running) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"):
        answer = tiny.client.post(path, json={}, headers={"authorization": "Bearer no"})
        assert answer.status_code == 401


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(tiny: Running) -> None:
    body = json.dumps({"model": "sgl", "query": QUERY, "documents": [GOOD, "a text"], "top_n": 1})
    command = ["curl", "-sS", f"{tiny.url}/v1/rerank", "-d", body]
    headers = ["-H", "content-type: application/json", "-H", f"authorization: Bearer {KEY}"]
    done = subprocess.run([*command, *headers], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["results"]) == 1


def test_runs_are_counted(pair: SGLEngine) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs the extra server")
    with serving(pair, ServerSettings(vllm_metric_names=True)) as server:
        pictures = [{"image": picture_url(color)} for color in COLORS[:3]]
        body = rerank(server, pictures, sgl={"threshold": 1.0}).json()
        assert rerank(server, []).status_code == 400
        families = parser.text_string_to_metric_families(server.client.get("/metrics").text)
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
    rescored = body["sgl"]["documents"]["large"]
    assert rescored > 0
    assert samples["sgl_lists_total", (("path", "/v1/rerank"), ("route", "large"))] == 1
    assert samples["sgl_documents_total", (("route", "large"),)] == rescored
    assert samples["sgl_escalations_total", (("reason", "list"),)] == rescored
    assert samples["sgl_score_count", ()] == 1
    assert samples["sgl_score_sum", ()] == pytest.approx(body["sgl"]["score"])
    assert samples["sgl_tflops_total", (("of", "large_alone"),)] == pytest.approx(
        body["sgl"]["large_alone_tflops"]
    )
    assert samples["sgl_errors_total", (("code", "invalid_value"),)] == 1
    assert samples["sgl_tflops_total", (("of", "large"),)] == pytest.approx(body["sgl"]["large_tflops"])
    assert samples["vllm:prompt_tokens_total", (("engine", "0"), ("model_name", "sgl"))] > 0


class Held:
    """Has every scored document wait to be let go on, and notes who was cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pair: SGLEngine, *, max_queue: int = 1) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.requests: list[Request] = []
        config = EngineConfig(scheduler=SchedulerConfig(max_queue=max_queue))
        self.engine = pair.with_config(config)
        original = SGLEngine._admit

        def admit(engine: SGLEngine, requests: Any) -> Any:
            tickets = original(engine, requests)
            self.requests += [ticket.request for ticket in tickets]
            self.inside.set()
            while not self.go_on.wait(0.01) and not any(ticket.request.cancel.is_set() for ticket in tickets):
                pass
            return tickets

        monkeypatch.setattr(SGLEngine, "_admit", admit)


def test_a_list_that_is_not_let_in_is_a_429_and_one_that_is_waits(
    pair: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one place: the second list finds it taken; the first one's documents take turns."""
    held = Held(monkeypatch, pair)
    with serving(held.engine) as server:
        answers: list[httpx.Response] = []
        first = threading.Thread(target=lambda: answers.append(rerank(server, FORMS[:4])))
        first.start()
        assert held.inside.wait(LIMIT_S)
        refused = rerank(server, [GOOD])
        held.go_on.set()
        first.join(LIMIT_S)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert len(answers[0].json()["results"]) == 4


def test_a_client_that_leaves_stops_its_list(pair: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch, pair, max_queue=8)
    with serving(held.engine) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(
                "/rerank",
                json={"query": "x", "documents": [GOOD] * 20},
                timeout=httpx.Timeout(LIMIT_S, read=0.5),
            )
        assert held.inside.wait(LIMIT_S)
        assert all(request.cancel is not None and request.cancel.wait(LIMIT_S) for request in held.requests)
        while held.engine.load()["under_way"]:
            pass
    assert len(held.requests) < 20


def test_one_bad_document_stops_the_others(pair: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    original = SGLEngine.score_answers

    def score(self: SGLEngine, request: Request, *given: Any, **options: Any) -> AnswerScores:
        scored.append(request)
        return original(self, request, *given, **options)

    monkeypatch.setattr(SGLEngine, "score_answers", score)
    broken = {"image": "data:image/png;base64,aGVsbG8="}
    with serving(pair) as server:
        assert rerank(server, [broken, *([GOOD] * 40)]).status_code == 400
        while pair.load()["under_way"]:
            pass
    assert len(scored) < 40


def test_what_nobody_foresaw_is_a_500_that_tells_nothing(
    pair: SGLEngine, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: Any, **__: Any) -> AnswerScores:
        raise ValueError("the secret is 4711")

    monkeypatch.setattr(SGLEngine, "score_answers", fail)
    with serving(pair) as server:
        answer = rerank(server, [GOOD])
        assert b'sgl_errors_total{code="internal_error"} 1.0' in server.client.get("/metrics").content
    assert answer.status_code == 500
    assert "4711" not in answer.text
    assert "4711" in caplog.text


def test_pictures_are_scaled_as_the_request_says(tiny: Running) -> None:
    large = Image.new("RGB", (400, 300), "red")
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    refused = rerank(tiny, [{"image": url}], sgl={"max_pixels": 0})
    assert refused.json()["error"]["param"] == "sgl.max_pixels"
    assert rerank(tiny, [{"image": url}], sgl={"max_visual_tokens": 16}).status_code == 200
