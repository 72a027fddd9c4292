"""Fields of a request that are of another type, or out of every range, are refused at the door."""

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from samples import noise

from sgl_engine import Message, Request, Response, SGLEngine, ToolCall, ToolSpec
from sgl_engine.errors import InvalidRequestError
from sgl_engine.prompt.texts import check_fields
from sgl_engine.request import ImagePart
from sgl_engine.testing import tiny_vlm

GOOD = Request.ask("What is it?", noise(40, 40), max_new_tokens=2)
TOOL = ToolSpec("look", "Looks.", {"type": "object"})
WRONG: dict[str, list[Any]] = {
    "seed": [1.5, "x", 2**64, -(2**63) - 1, True],
    "deadline": ["x", math.nan, True],
    "cancel": [5],
    "may_escalate": [5],
    "tools": [None, ("look",), TOOL],
    "tool_choice": ["junk", None, ["any"]],
    "tool_name": [5],
    "parallel_tool_calls": [None, "no"],
    "logprobs": ["yes"],
    "response_schema": ["{}", [("type", "object")], {"type": object()}],
    "chat_template_kwargs": ["x", {5: 1}],
    "skip_special_tokens": [5, "no"],
    "max_reasoning_tokens": [-1, "x", 1.5],
    "messages": [None, "hi", ("hi",), Message("user", ("hi",))],
    "stop": [(5,), None, "abc"],
    "temperature": ["x", math.nan, -1.0, math.inf],
    "top_p": [0.0, "x"],
    "top_k": [0, 1.5],
    "max_new_tokens": [0, -1, "x", 1.5],
    "logit_bias": [None, 5, {"a": 1}, {1: 101}, {1: math.nan}],
}


def wrong_messages() -> Iterator[Any]:
    yield from (Message(role, ("a",)) for role in ("alien", None, ["user"]))  # type: ignore[arg-type]
    yield from (Message("user", content) for content in (None, "abc", (5,), ("a\ud800b",)))  # type: ignore[arg-type]
    yield Message("tool", ("q",), name=5)  # type: ignore[arg-type]
    yield Message("tool", ("q",), tool_call_id=5)  # type: ignore[arg-type]
    yield Message("assistant", ("q",), reasoning=5)  # type: ignore[arg-type]
    for call in (ToolCall("1", "f", {"a": object()}), ToolCall(1, "f", {}), ToolCall("1", "f", "{}"), 5):  # type: ignore[arg-type]
        yield Message("assistant", ("",), tool_calls=(call,))  # type: ignore[arg-type]


def cases() -> Iterator[Any]:
    for name, values in WRONG.items():
        yield from (replace(GOOD, **{name: value}) for value in values)
    yield from (Request((*GOOD.messages, message)) for message in wrong_messages())
    yield from (
        replace(GOOD, tools=(tool,))
        for tool in (
            replace(TOOL, name=5),  # type: ignore[arg-type]
            replace(TOOL, description=None),  # type: ignore[arg-type]
            replace(TOOL, parameters={"a": object()}),
        )
    )
    yield "What is it?"
    yield None


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


def test_every_wrong_field_is_named_and_harms_no_neighbour(engine: SGLEngine) -> None:
    bad = list(cases())
    got = engine.run_batch([GOOD, *bad, GOOD])
    assert [type(got[0]), type(got[-1])] == [Response, Response]
    for request, outcome in zip(bad, got[1:-1], strict=True):
        assert isinstance(outcome, InvalidRequestError), (request, outcome)
    for request in (bad[0], replace(GOOD, cancel=5), "What is it?"):  # type: ignore[arg-type]
        for call in (
            engine.run,
            lambda each: engine.submit(each).result(),
            lambda each: list(engine.stream(each)),
        ):
            with pytest.raises(InvalidRequestError):
                call(request)
        with pytest.raises(InvalidRequestError):
            engine.score_answers(request, ["a", "b"])
    with pytest.raises(InvalidRequestError, match=r"seed is 1\.5 \(float\)\. Use an integer"):
        engine.run(replace(GOOD, seed=1.5))  # type: ignore[arg-type]


@pytest.mark.parametrize("answers", [None, 5, [], "yes", [5], ["yes", None], [""], ["a\ud800"]])
def test_answers_to_score_are_texts(engine: SGLEngine, answers: Any) -> None:
    with pytest.raises(InvalidRequestError):
        engine.score_answers(GOOD, answers)


def test_what_is_right_passes() -> None:
    check_fields(
        replace(
            GOOD,
            messages=[Message("user", ["hi", ImagePart(noise(8, 8))])],  # type: ignore[arg-type,list-item]
            seed=-(2**63),
            deadline=math.inf,
            cancel=threading.Event(),
            may_escalate=lambda: True,
            tools=[TOOL],  # type: ignore[arg-type]
            tool_name="look",
            response_schema={"type": "object"},
            chat_template_kwargs={"x": object()},
        )
    )
