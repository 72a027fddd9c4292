"""Every error has one status and OpenAI's body; nothing that a client sends is a 422 or a 500."""

import json
from typing import Any

import pytest
from served import QUESTION, Running, about, picture_url, serving

import sgl_engine.errors as tree
from sgl_engine import EngineConfig, Request, SchedulerConfig, SGLError
from sgl_engine.server import errors
from sgl_engine.testing import FakeEngine

BROKEN = "data:image/png;base64," + "aGVsbG8="
CUT = picture_url(size=300)[:120]
NESTED = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "[" * 100_000}}


@pytest.mark.parametrize(
    ("messages", "fields", "status", "code", "param"),
    [
        ([], {}, 400, "invalid_value", "messages"),
        (QUESTION, {"temprature": 1}, 400, "unknown_parameter", "temprature"),
        (QUESTION, {"sgl": {"treshold": 1}}, 400, "unknown_parameter", "sgl.treshold"),
        (QUESTION, {"temperature": "warm"}, 400, "invalid_value", "temperature"),
        (QUESTION, {"n": 2}, 400, "invalid_value", None),
        (QUESTION, {"max_tokens": 1, "max_completion_tokens": 2}, 400, "invalid_value", None),
        (QUESTION, {"top_logprobs": 2}, 400, "invalid_value", None),
        (QUESTION, {"model": "gpt-5"}, 404, "model_not_found", "model"),
        (QUESTION, {"model": "sgl:small", "sgl": {"escalate": "always"}}, 400, "invalid_value", None),
        (QUESTION, {"tool_choice": "look"}, 400, "invalid_value", None),
        (QUESTION, {"tools": [{"type": "web_search"}]}, 400, "invalid_value", None),
        (QUESTION, {"response_format": {"type": "xml"}}, 400, "invalid_value", None),
        (QUESTION, {"modalities": ["text", "audio"]}, 400, "invalid_value", "modalities.1"),
        (QUESTION, {"sgl": {"retention": "7%"}}, 400, "config", None),
        ([{"role": "robot", "content": "x"}], {}, 400, "invalid_value", None),
        ([{"role": "user", "content": 7}], {}, 400, "invalid_value", None),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], {}, 400, "invalid_value", None),
        ([{"role": "user", "content": [{"type": "text", "text": {"a": 1}}]}], {}, 400, "invalid_value", None),
        ([{"role": "user", "content": [{"type": "text", "text": 0}]}], {}, 400, "invalid_value", None),
        ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], {}, 400, "invalid_value", None),
        ([{"role": "assistant", "tool_calls": 5}], {}, 400, "invalid_value", None),
        ([{"role": "assistant", "tool_calls": [NESTED]}], {}, 400, "invalid_value", None),
        ([{"role": "user", "content": [{"type": ["text"]}]}], {}, 400, "invalid_value", None),
        ([{"role": ["user"], "content": "x"}], {}, 400, "invalid_value", None),
        ([{"role": "user", "content": "long " * 3000}], {}, 400, "context_length_exceeded", None),
        (about(BROKEN), {}, 400, "corrupt_image", None),
        (about(CUT), {}, 400, "corrupt_image", None),
        (about("no base64!"), {}, 400, "corrupt_image", None),
        (about(""), {}, 400, "missing_image", None),
        (about("file:///etc/passwd"), {}, 400, "unsafe_path", None),
        (about("http://example.org/x.png"), {}, 400, "unsafe_url", None),
        (about("https://127.0.0.1/x.png"), {}, 400, "unsafe_url", None),
        (about("https://169.254.169.254/latest"), {}, 400, "unsafe_url", None),
    ],
)
def test_bad_requests_are_told_what_is_wrong(
    server: Running, messages: Any, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    for stream in (False, True):  # before the first byte, a stream has a status as well
        answer = server.chat(messages, stream=stream, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
        assert error["type"] == "invalid_request_error"
        assert error["message"]


def test_what_is_no_json_is_a_400(server: Running) -> None:
    answer = server.client.post(
        "/v1/chat/completions", content="{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_value"


def test_paths_and_methods_that_do_not_exist(server: Running) -> None:
    assert server.client.get("/v2/nothing").status_code == 404
    assert server.client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    wrong = server.client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert "error" in wrong.json()


def subclasses(kind: type[SGLError]) -> list[type[SGLError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in subclasses(child))]


def test_every_error_of_the_tree_has_one_status_and_a_code_of_its_own() -> None:
    kinds = [kind for kind in subclasses(SGLError) if kind.__module__ == tree.__name__]
    assert len(kinds) > 20
    made = [kind("It is so.", remedy="Do this.") for kind in kinds]
    statuses = {type(error).__name__: errors.status_of(error) for error in made}
    assert {name for name, status in statuses.items() if status >= 500} == {
        "SGLError",
        "EngineError",
        "EngineClosedError",
        "ModelError",
        "ModelNotFoundError",
        "UnsafeWeightsError",
        "UnsupportedModelError",
        "ProcessorError",
        "IncompatiblePairError",
        "HostedError",
        "HostedAccessError",
        "HostedRequestError",
        "HostedServerError",
        "HostedAnswerError",
    }
    assert {status for name, status in statuses.items() if name.startswith("Hosted")} == {429, 502}
    assert statuses["DeadlineError"] == 408
    assert statuses["OverloadedError"] == 429
    assert statuses["EngineClosedError"] == 503
    codes = [errors.code_of(error) for error in made]
    assert len(set(codes)) == len(codes)
    assert all(errors.body_of(error)["error"]["message"] == "It is so. Do this." for error in made)


def test_what_nobody_foresaw_is_a_500_that_tells_nothing(caplog: Any) -> None:
    def fails(request: Request) -> str:
        raise ValueError("the secret is 4711")

    with serving(FakeEngine(fails)) as server:
        whole, streamed = server.chat(), server.chat(stream=True)
    for answer in (whole, streamed):
        assert answer.status_code == 500
        assert "4711" not in answer.text
        assert answer.json()["error"]["code"] == "internal_error"
    assert "4711" in caplog.text


def test_an_error_after_the_first_piece_is_an_event() -> None:
    """The small model's answer is not good enough, and the large one fails: headers have gone by then."""
    engine = FakeEngine(lambda request: "no", score=0.0)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("4711")

    engine.large.model.lm_head.forward = broken
    with serving(engine) as server:
        answer = server.chat(stream=True)
    *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert answer.status_code == 200
    assert done == "[DONE]"
    assert json.loads(events[-1])["error"]["code"] == "internal_error"
    assert "4711" not in answer.text


def test_a_late_request_is_a_408(server: Running) -> None:
    answer = server.chat(about(picture_url()), sgl={"timeout_s": 1e-6})
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "deadline"


def test_a_full_queue_is_a_429_that_says_when() -> None:
    import threading

    inside, go_on = threading.Event(), threading.Event()

    def waits(request: Request) -> str:
        inside.set()
        assert go_on.wait(60)
        return "late"

    engine = FakeEngine(waits, config=EngineConfig(scheduler=SchedulerConfig(max_queue=1)))
    with serving(engine) as server:
        answers: list[Any] = []
        first = threading.Thread(target=lambda: answers.append(server.chat()))
        first.start()
        assert inside.wait(60)
        refused = server.chat()
        go_on.set()
        first.join(60)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert answers[0].json()["choices"][0]["message"]["content"] == "late"


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"messages": "\xff"}'])
def test_a_body_that_no_parser_takes_is_not_called_a_wrong_path(server: Running, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = server.client.post("/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert server.client.get("/nothing").json()["error"]["code"] == "no_such_route"


def test_an_error_may_repeat_what_is_no_text(server: Running) -> None:
    """Half a surrogate pair can be written in JSON, and in no UTF-8."""
    content = json.dumps({"messages": about("https://127.0.0.1/\ud800")}).encode()
    headers = {"content-type": "application/json"}
    answer = server.client.post("/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "image_fetch")
