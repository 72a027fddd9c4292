"""A large model behind OpenAI's interface: what is sent and what comes back, and all that can go wrong."""

import asyncio
import base64
import io
import json
import math
import pickle
import threading
import time
import traceback
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hosted_servers import KEY, Pieces, Script, chunk, events, never, says, stream, unix_server, usage
from PIL import Image
from pydantic import SecretStr

from sgl_engine import (
    ConfigError,
    DeadlineError,
    EngineConfig,
    HostedAccessError,
    HostedAnswerError,
    HostedError,
    HostedLimitError,
    HostedRequestError,
    HostedServerError,
    ImagePart,
    InvalidToolCall,
    Message,
    OpenAIModel,
    ReasoningDelta,
    Request,
    RequestCancelledError,
    Response,
    SendConfig,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
)
from sgl_engine.hosted import connection
from sgl_engine.hosted.openai_body import AnswerStream
from sgl_engine.testing import FakeEngine, tiny_vlm

PICTURE = Image.new("RGB", (64, 48), "white")
QUESTION = Request.ask("What is the total?", PICTURE)
WEATHER = ToolSpec("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between repetitions, which take no time."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(connection, "_sleep", sleep)
    return waited


small = cache(partial(tiny_vlm, size="small"))


def engine(model: OpenAIModel, *, score: float = 0.1, **settings: Any) -> FakeEngine:
    """The small model says "7", and is not sure."""
    config = EngineConfig(send=SendConfig(mode="full"), **settings)
    return FakeEngine(lambda _: "7", score=score, small=small(), large=model, config=config)


def test_the_request_goes_out_as_it_is_but_for_the_pictures() -> None:
    script = Script(says("8"))
    history = (
        Message("system", ("Be brief.",)),
        Message("user", ("Before", ImagePart(PICTURE), "after")),
        Message("assistant", (), tool_calls=(ToolCall("c1", "weather", {"city": "Bonn"}),)),
        Message("tool", ("sunny",), tool_call_id="c1", name="weather"),
        Message("user", ("And now?",)),
    )
    request = Request(
        history,
        max_new_tokens=20,
        temperature=0.0,
        top_p=0.9,
        seed=np.int64(0),  # type: ignore[arg-type]  # as tables have them
        stop=("\n",),
        tools=(WEATHER,),
        tool_name="weather",
        tool_choice="auto",
        parallel_tool_calls=False,
        logprobs=True,
        top_logprobs=2,
        presence_penalty=0.5,
    )
    with script.model(extra_body={"priority": 1}, detail="high") as model:
        engine(model).run(request)
    [body] = script.bodies
    sent = body["messages"][1]["content"][1]["image_url"]
    data = base64.b64decode(sent["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).tobytes() == PICTURE.tobytes()
    assert sent.pop("url")
    assert body == {
        "model": "big",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Before"},
                    {"type": "image_url", "image_url": {"detail": "high"}},
                    {"type": "text", "text": "after"},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
                    }
                ],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            {"role": "user", "content": "And now?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 0.9,
        "seed": 0,
        "presence_penalty": 0.5,
        "max_tokens": 20,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells it.",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "priority": 1,
    }
    assert script.headers[0]["authorization"] == f"Bearer {KEY}"


def test_what_a_request_leaves_open_is_left_to_the_server() -> None:
    script = Script(says("8"))
    with script.model() as model:
        engine(model).run(QUESTION)
    assert script.bodies[0].keys() == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ({"type": "object"}, {"type": "json_object"}),
        (
            {"title": "Total", "type": "object", "properties": {"sum": {"type": "number"}}},
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "Total",
                    "schema": {
                        "title": "Total",
                        "type": "object",
                        "properties": {"sum": {"type": "number"}},
                    },
                },
            },
        ),
    ],
)
def test_a_schema_goes_out(schema: dict[str, Any], form: dict[str, Any]) -> None:
    script = Script(says('{"sum": 8}'))
    with script.model() as model, FakeEngine(lambda _: "{}", score=0.1, small=small(), large=model) as asked:
        answer = asked.run(Request((Message("user", ("Sum?",)),), response_schema=schema))
    assert script.bodies[0]["response_format"] == form
    assert answer.text == '{"sum": 8}'


def test_the_answer_comes_back_as_it_is() -> None:
    token = {"token": "8", "logprob": -0.5, "top_logprobs": [{"token": "9", "logprob": -2.0}]}
    script = Script(
        stream(
            chunk({"role": "assistant", "reasoning_content": "Let me "}),
            chunk({"reasoning_content": "see."}),
            chunk({"content": "8"}, logprobs={"content": [token]}),
            chunk({}, "length"),
            usage(1234, 56, cached=1000, thought=50),
        )
    )
    with script.model() as model:
        found = list(engine(model).stream(Request(QUESTION.messages, logprobs=True, top_logprobs=1)))
    decision, *deltas, answer = found
    assert not decision.exit
    assert deltas == [ReasoningDelta("Let me "), ReasoningDelta("see."), TextDelta("8")]
    assert isinstance(answer, Response)
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("8", "Let me see.", "length")
    assert [(each.token, each.logprob, each.top[0].token) for each in answer.tokens] == [("8", -0.5, "9")]
    report = answer.report
    assert (report.route, report.escalated, report.large_hosted) == ("large", True, True)
    assert (report.large_input_tokens, report.large_output_tokens) == (1234, 56)
    assert (report.large_known_tokens, report.large_reasoning_tokens) == (1000, 50)
    assert (report.large_model.name, report.large_answered_as) == ("big", "big-2026-10")
    assert (report.small_answer, report.large_agreed) == ("7", False)
    assert (report.large_tflops, report.large_alone_tflops, report.saved_fraction) == (0.0, 0.0, 0.0)
    assert {"evidence", "wait_large", "generate_large"} < report.stage_ms.keys()


def test_tool_calls_come_back() -> None:
    first = {"index": 0, "id": "c9", "function": {"name": "weather", "arguments": '{"city": '}}
    more = {"index": 0, "function": {"arguments": '"Bonn"}'}}
    broken = {"index": 1, "id": "c10", "function": {"name": "weather", "arguments": '{"city"'}}
    script = Script(
        stream(*(chunk({"tool_calls": [each]}) for each in (first, more, broken)), chunk({}, "tool_calls"))
    )
    with script.model() as model:
        *events_, answer = engine(model).stream(Request(QUESTION.messages, tools=(WEATHER,)))
    assert [each for each in events_ if isinstance(each, ToolCallDelta)] == [
        ToolCallDelta(0, "c9", "weather", '{"city": '),
        ToolCallDelta(0, None, None, '"Bonn"}'),
        ToolCallDelta(1, "c10", "weather", '{"city"'),
    ]
    assert isinstance(answer, Response)
    assert answer.tool_calls == (ToolCall("c9", "weather", {"city": "Bonn"}),)
    [wrong] = answer.invalid_tool_calls
    assert isinstance(wrong, InvalidToolCall)
    assert wrong.arguments == '{"city"'
    assert answer.report.large_input_tokens is None  # the server did not tell


def _called(**piece: Any) -> dict[str, Any]:
    """A chunk with a piece of a tool call; of the function, what is given as name and arguments."""
    function = {name: piece.pop(name) for name in ("name", "arguments") if name in piece}
    return chunk({"tool_calls": [{**piece, "function": function}]})


@pytest.mark.parametrize("index", [{}, {"index": 0}])
@pytest.mark.parametrize("repeated", [False, True])
def test_calls_that_are_not_counted_are_told_apart_by_their_ids(
    *, index: dict[str, int], repeated: bool
) -> None:
    more = {name: {"id": name} if repeated else {} for name in ("c1", "c2")}
    script = Script(
        stream(
            _called(id="c1", name="weather", arguments='{"city": ', **index),
            _called(arguments='"Bonn"}', **index, **more["c1"]),
            _called(id="c2", name="weather", arguments='{"city"', **index),
            _called(arguments=': "Ulm"}', **index, **more["c2"]),
            chunk({}, "tool_calls"),
        )
    )
    with script.model() as model:
        *events_, answer = engine(model).stream(Request(QUESTION.messages, tools=(WEATHER,)))
    assert [each for each in events_ if isinstance(each, ToolCallDelta)] == [
        ToolCallDelta(0, "c1", "weather", '{"city": '),
        ToolCallDelta(0, None, None, '"Bonn"}'),
        ToolCallDelta(1, "c2", "weather", '{"city"'),
        ToolCallDelta(1, None, None, ': "Ulm"}'),
    ]
    assert isinstance(answer, Response)
    assert answer.tool_calls == (
        ToolCall("c1", "weather", {"city": "Bonn"}),
        ToolCall("c2", "weather", {"city": "Ulm"}),
    )
    assert not answer.invalid_tool_calls


@pytest.mark.parametrize(
    "pieces",
    [
        # Some servers give every piece an id of its own, and a name only the first of a call.
        [("c1", "weather", ""), ("x2", "", '{"city": '), ("x3", "", '"Bonn"}')],
        # Others repeat both.
        [("c1", "weather", '{"city": '), ("c1", "weather", '"Bonn"}')],
    ],
)
def test_a_call_may_come_in_pieces_of_any_kind(pieces: list[tuple[str, str, str]]) -> None:
    parts = [_called(id=id_, name=name, arguments=text, index=0) for id_, name, text in pieces]
    with Script(stream(*parts, chunk({}, "tool_calls"))).model() as model:
        answer = engine(model).run(Request(QUESTION.messages, tools=(WEATHER,)))
    assert answer.tool_calls == (ToolCall("c1", "weather", {"city": "Bonn"}),)
    assert not answer.invalid_tool_calls


def test_calls_that_come_whole_need_neither_numbers_nor_ids() -> None:
    parts = [_called(name="weather", arguments=f'{{"city": "{city}"}}') for city in ("Bonn", "Ulm")]
    with Script(stream(*parts, chunk({}, "tool_calls"))).model() as model:
        answer = engine(model).run(Request(QUESTION.messages, tools=(WEATHER,)))
    assert [call.arguments for call in answer.tool_calls] == [{"city": "Bonn"}, {"city": "Ulm"}]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_only_what_ends_lines_everywhere_ends_a_line(ending: str) -> None:
    """U+2028 and the like may stand in a JSON string; here a piece ends behind every byte."""
    said = "a\u2028b\u2029c\x85d\x0be \u00fc\U0001f600"
    chunks = chunk({"content": said}), usage(), chunk({}, "stop")
    written = [f"data: {json.dumps(each, ensure_ascii=False)}" for each in chunks]  # the last one has no end

    async def answer() -> httpx.Response:
        sent = (ending * 2).join(written).encode()
        return httpx.Response(200, stream=Pieces(*(bytes([byte]) for byte in sent)))

    with Script(answer).model() as model:
        found = engine(model).run(QUESTION)
    assert (found.text, found.report.large_input_tokens) == (said, 1000)


def test_a_server_that_does_not_stream_is_understood() -> None:
    message = {
        "choices": [{"message": {"content": "8"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3},
    }
    with Script(httpx.Response(200, json=message)).model() as model:
        answer = engine(model).run(QUESTION)
    assert (answer.text, answer.report.large_input_tokens) == ("8", 3)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_content_of_parts_is_understood(*, streamed: bool) -> None:
    """As Mistral's reasoning models write it: thoughts are parts too."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]}
    parts = [thought, {"type": "text", "text": "4"}, {"type": "reference", "reference_ids": [1]}]
    choice = {("delta" if streamed else "message"): {"content": parts}, "finish_reason": "stop"}
    read = AnswerStream()
    data = json.dumps({"choices": [choice]})
    pieces = [*read.push(f"data: {data}" if streamed else data), *read.finish()]
    assert pieces == [ReasoningDelta("hm"), TextDelta("4")]


@pytest.mark.parametrize("content", [5, {"text": "4"}, ["4"]])
def test_a_content_that_is_none_is_an_error(content: Any) -> None:
    line = json.dumps({"choices": [{"delta": {"content": content}}]})
    with pytest.raises(HostedAnswerError, match="neither a text nor a list"):
        list(AnswerStream().push(f"data: {line}"))


MALFORMED = [
    {"choices": {"0": {"delta": {"content": "4"}}}},
    {"choices": "4"},
    {"choices": [["4"]]},
    {"choices": [{"delta": "4"}]},
    {"choices": [{"delta": {"tool_calls": ["look"]}}]},
    {"choices": [{"delta": {"tool_calls": [{"function": "look"}]}}]},
    {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "4"}]}}]},
    {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "4", "logprob": "sure"}]}}]},
    {"choices": [{"delta": {}, "logprobs": "sure"}]},
    {"usage": 3},
    {"usage": {"prompt_tokens": "many"}},
    {"usage": {"prompt_tokens": 3, "prompt_tokens_details": [1]}},
    {"usage": {"prompt_tokens": math.inf}},
    {"usage": {"completion_tokens": -1}},
    {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "4", "logprob": 10**400}]}}]},
    {"choices": [{"delta": {}, "logprobs": {"content": [{"token": 4, "logprob": -1.0}]}}]},
    {"choices": [{"delta": {}, "finish_reason": ["stop"]}]},
    {"choices": [{"delta": {"tool_calls": [{"index": "one", "function": {"name": "look"}}]}}]},
    {"choices": [{"delta": {"tool_calls": [{"function": {"name": ["look"]}}]}}]},
    {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": {"x": 1}}}]}}]},
    {"choices": [{"delta": {"tool_calls": [{"id": 3, "function": {"name": "look"}}]}}]},
    {"model": ["x"], "choices": []},
]


@pytest.mark.parametrize("chunk", MALFORMED, ids=json.dumps)
def test_what_is_put_together_otherwise_is_an_error(chunk: Any) -> None:
    with pytest.raises(HostedAnswerError, match="not put together as this interface says"):
        list(AnswerStream().push(f"data: {json.dumps(chunk)}"))


def test_what_cannot_be_read_is_quoted_in_part() -> None:
    chunk = {"choices": [{"delta": {}, "logprobs": {"content": [{"token": "4", "logprob": "x" * 9999}]}}]}
    for data in (json.dumps(chunk), "[" * 9999):
        with pytest.raises(HostedAnswerError) as caught:
            list(AnswerStream().push(f"data: {data}"))
        assert len(str(caught.value)) < 500


def test_a_sure_small_answer_sends_nothing() -> None:
    script = Script(says("8"))
    with script.model() as model:
        answer = engine(model, score=0.9).run(QUESTION)
    assert (answer.text, answer.report.route, script.bodies) == ("7", "small", [])
    assert answer.report.sent is None
    assert answer.report.large_hosted


def test_a_budget_keeps_the_question_here() -> None:
    script = Script(says("8"))
    with script.model() as model:
        answer = engine(model).run(Request(QUESTION.messages, may_escalate=lambda: False))
    assert (answer.text, script.bodies) == ("7", [])


def refusal(status: int, **headers: str) -> httpx.Response:
    said = {"error": {"message": f"no, not with {KEY}, never"}}
    return httpx.Response(status, json=said, headers=headers)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([refusal(429, **{"retry-after": "7"}), says("8")], [7.0]),
        ([refusal(429, **{"retry-after-ms": "250"}), says("8")], [0.25]),
        ([refusal(500), refusal(503, **{"retry-after": "3"}), says("8")], [None, 3.0]),
        ([httpx.ConnectError("no route"), says("8")], [None]),
        ([httpx.ReadTimeout("slow"), refusal(408), says("8")], [None, None]),
    ],
)
def test_what_may_pass_is_repeated(
    answers: list[Any], expected: list[float | None], pauses: list[float]
) -> None:
    script = Script(*answers)
    with script.model() as model:
        assert engine(model).run(QUESTION).text == "8"
    assert len(script.bodies) == len(answers)
    for number, (waited, wanted) in enumerate(zip(pauses, expected, strict=True)):
        if wanted is None:  # half a second, twice as long each time, a quarter less at most
            assert 0.375 * 2**number <= waited <= 0.5 * 2**number
        else:
            assert waited == wanted


def test_a_date_to_wait_for_is_understood(pauses: list[float]) -> None:
    script = Script(refusal(429, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), says("8"))
    with script.model() as model:
        engine(model).run(QUESTION)
    assert pauses == [0.0]  # it is past


@pytest.mark.parametrize(
    ("answer", "kind", "asked"),
    [
        (refusal(429), HostedLimitError, 3),
        (refusal(429, **{"retry-after": "3600"}), HostedLimitError, 1),  # longer than anybody waits
        (refusal(500), HostedServerError, 3),
        (refusal(401), HostedAccessError, 1),
        (refusal(403), HostedAccessError, 1),
        (refusal(400), HostedRequestError, 1),
        (refusal(404), HostedRequestError, 1),
        (httpx.Response(302, headers={"location": "https://thief.example"}), HostedRequestError, 1),
        (httpx.ConnectError(f"no {KEY}"), HostedServerError, 3),
        (httpx.ReadTimeout("slow"), HostedServerError, 3),
        (httpx.Response(200, text="<html>hello</html>"), HostedAnswerError, 1),
        (stream(chunk({"content": "8"}), {"error": {"message": f"lost {KEY}"}}), HostedAnswerError, 1),
        (stream(chunk({"content": "8"}), done=False), HostedAnswerError, 1),
    ],
)
def test_errors_are_typed_and_hold_no_key(
    answer: Any, kind: type[HostedError], asked: int, pauses: list[float]
) -> None:
    script = Script(answer)
    with script.model() as model, pytest.raises(kind) as caught:
        engine(model).run(QUESTION)
    assert len(script.bodies) == asked
    assert type(caught.value) is kind
    written = "".join(traceback.format_exception(caught.value))
    assert KEY not in written + repr(caught.value) + repr(pickle.dumps(caught.value))
    if kind is not HostedAnswerError:
        assert "https://host.example/v1/chat/completions" in str(caught.value)


def cut() -> Any:
    async def answer() -> httpx.Response:
        first = events(chunk({"content": "eig"}), done=False)
        return httpx.Response(200, stream=Pieces(first, httpx.RemoteProtocolError("closed")))

    return answer


def test_a_cut_stream_is_an_error_and_is_not_repeated() -> None:
    script = Script(cut())
    with script.model() as model:
        found = engine(model).stream(QUESTION)
        assert [next(found), next(found)][1] == TextDelta("eig")
        with pytest.raises(HostedAnswerError, match="cut off"):
            next(found)
    assert len(script.bodies) == 1


@pytest.mark.parametrize("answer", [refusal(401), cut(), httpx.ReadTimeout("slow"), refusal(429)])
def test_the_small_answer_is_kept_where_that_is_wished(answer: Any, pauses: list[float]) -> None:
    script = Script(answer)
    with script.model() as model:
        _, *deltas, kept = engine(model, on_large_error="keep").stream(QUESTION)
    assert deltas == [TextDelta("7")]  # and nothing of what broke off
    assert isinstance(kept, Response)
    report = kept.report
    assert (kept.text, report.route, report.escalated, report.small_answer) == ("7", "small", True, None)
    assert report.large_error is not None
    assert report.large_error.startswith("Hosted")
    assert report.sent is not None
    assert KEY not in report.model_dump_json()


def test_a_whole_answer_is_shown_where_the_small_one_would_have_been_kept() -> None:
    with Script(says("ei", "ght")).model() as model:
        _, *deltas, answer = engine(model, on_large_error="keep").stream(QUESTION)
    assert deltas == [TextDelta("ei"), TextDelta("ght")]
    assert isinstance(answer, Response)
    assert answer.report.large_error is None


def test_a_failed_request_is_no_failure_of_the_model(pauses: list[float]) -> None:
    script = Script(never)
    with script.model() as model:
        asked = engine(model, on_large_error="keep")
        late = Request(QUESTION.messages, deadline=time.monotonic() + 0.3)
        with pytest.raises(DeadlineError):
            asked.run(late)
    assert script.left.wait(10)


def test_cancelling_ends_the_connection() -> None:
    script, cancel = Script(never), threading.Event()
    with script.model() as model:
        threading.Thread(target=lambda: (script.asked.wait(10), cancel.set()), daemon=True).start()
        with pytest.raises(RequestCancelledError):
            engine(model).run(Request(QUESTION.messages, cancel=cancel))
    assert script.left.wait(10)


def test_lines_that_say_nothing_keep_no_question_alive() -> None:
    """Signs of life that come faster than anybody looks up."""
    cancel = threading.Event()

    async def alive() -> Any:
        for _ in range(9):
            await asyncio.sleep(0)
            yield ": alive"

    def still_wanted() -> None:
        if cancel.is_set():
            raise ZeroDivisionError("not wanted")

    lines = connection.read_lines(alive, still_wanted)
    assert next(lines) == ": alive"
    cancel.set()
    with pytest.raises(ZeroDivisionError):
        next(lines)


def test_cancelling_a_future_ends_the_connection() -> None:
    script = Script(never)
    with script.model() as model:
        future = engine(model).submit(QUESTION)
        assert script.asked.wait(10)
        assert future.cancel()
        assert script.left.wait(10)


def test_a_wait_between_repetitions_is_cancelled() -> None:
    script, cancel = Script(refusal(429, **{"retry-after": "30"})), threading.Event()
    with script.model() as model:
        threading.Thread(target=lambda: (script.asked.wait(10), cancel.set()), daemon=True).start()
        with pytest.raises(RequestCancelledError):
            engine(model).run(Request(QUESTION.messages, cancel=cancel))


def test_leaving_a_stream_ends_the_connection() -> None:
    gone = threading.Event()

    class Watched(Pieces):
        async def aclose(self) -> None:
            gone.set()

    async def answer() -> httpx.Response:
        return httpx.Response(200, stream=Watched(events(chunk({"content": "a"}), done=False), None))

    with Script(answer).model() as model:
        found: Iterator[Any] = engine(model).stream(QUESTION)
        next(found), next(found)
        found.close()  # type: ignore[attr-defined]
        assert gone.wait(10)


async def test_asyncio_waits_beside_it() -> None:
    with Script(says("8")).model() as model:
        found = await asyncio.gather(*(asyncio.wrap_future(engine(model).submit(QUESTION)) for _ in range(3)))
    assert [each.text for each in found] == ["8"] * 3


def test_a_batch_asks_all_at_once() -> None:
    together = asyncio.Event()
    count = 0

    async def answer() -> httpx.Response:
        nonlocal count, together
        if count == 0:
            together = asyncio.Event()
        count += 1
        if count == 4:
            together.set()
        await together.wait()
        return says("8")

    with Script(answer).model() as model:
        found = engine(model).run_batch([QUESTION] * 4)
    assert [each.text for each in found if isinstance(each, Response)] == ["8"] * 4


def test_of_a_batch_one_may_fail_alone(pauses: list[float]) -> None:
    with Script(says("8"), refusal(400), says("9")).model() as model:
        found = engine(model).run_batch([QUESTION] * 3)
    texts = sorted(each.text if isinstance(each, Response) else type(each).__name__ for each in found)
    assert texts == ["8", "9", "HostedRequestError"]


def test_over_a_real_connection(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> list[bytes]:
        asked.append(body)
        said = events(chunk({"content": "grün"}), chunk({"content": " 8"}), chunk({}, "stop"), usage())
        return [said[:50], said[50:73], said[73:]]  # cut anywhere

    with unix_server(tmp_path, answer) as model:
        found = [engine(model).run(QUESTION).text for _ in range(2)]
    assert found == ["grün 8"] * 2
    headers = {name.lower(): value for name, value in asked[0]["headers"].items()}
    assert headers["authorization"] == f"Bearer {KEY}"


def test_a_real_connection_that_breaks_off(tmp_path: Path) -> None:
    def answer(_: dict[str, Any]) -> list[bytes]:
        return [events(chunk({"content": "eig"}), done=False)]

    with unix_server(tmp_path, answer) as model, pytest.raises(HostedAnswerError, match="after 3 characters"):
        engine(model).run(QUESTION)


def test_the_key_is_not_shown() -> None:
    model = OpenAIModel(
        "https://host.example/v1/", "big", api_key=SecretStr(KEY), headers={"x-key": "other-9"}
    )
    assert repr(model) == "OpenAIModel('https://host.example/v1', 'big')"
    shown = repr(engine(model)) + repr(vars(model))
    assert KEY not in shown
    assert "other-9" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "host.example/v1",
        "me:pass@host.example/v1",
        "ftp://host.example",
        "https://me:pass@host.example/v1",
        "https://h.example/?k=pass",
        "https://h.example/v1#pass",
        "https://h.example/v1?",
        "http://host:abc/v1",
        "http://host:70000/v1",
        "http://[bad/v1",
        "http://me:pass@[bad/v1",
        "http://me:pa/ss@host/v1",
        "http://host\n/v1",
        "http://a..\u00fc/v1",
        "http://xn--/v1",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIModel(url, "big")
    written = "".join(traceback.format_exception_only(caught.value)).replace("a password", "")
    assert "pass" not in written
    assert "pa/ss" not in written
    assert caught.value.__context__ is None  # urllib's and httpx's errors show what they could not read


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        ("tellnobody\n", {}),
        ("tell\r\nx-more: nobody", {}),
        ("tellnob\u00f6dy", {}),
        ("tellnobody\u2028", {}),
        (" tellnobody", {}),
        (SecretStr("tell\0nobody"), {}),
        (None, {"x-key": "tellnobody\n"}),
        (None, {"x-key": "tellnob\u00f6dy"}),
        (None, {"x-key: tellnobody": "1"}),
        (None, {"": "tellnobody"}),
        (None, {"x-key": b"tellnobody"}),
    ],
)
def test_keys_and_headers_that_cannot_be_sent(key: Any, headers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIModel("https://host.example/v1", "big", api_key=key, headers=headers)
    assert "tell" not in str(caught.value) + repr(caught.value)
    assert caught.value.__context__ is None
