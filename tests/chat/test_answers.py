"""What becomes of an answer: whole, streamed, cut off, held to a schema."""

import json
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache
from typing import Any, Literal

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, TypeAdapter

from langchain_sgl import ChatSGL
from langchain_sgl.chat.answers import (
    NOT_A_CALL,
    response_metadata,
    to_ai_message,
    to_generation_chunks,
)
from langchain_sgl.chat.call_options import CallOptions
from langchain_sgl.structured.schemas import without_repeats
from sgl_engine import VLM, InvalidRequestError, Request, Response, RunReport, TokenLogprob, ToolCall
from sgl_engine.chat.text_stream import TextDelta
from sgl_engine.chat.tool_stream import ToolCallDelta
from sgl_engine.decoding import Generation
from sgl_engine.request import InvalidToolCall
from sgl_engine.testing import FakeEngine, tiny_vlm

LENGTH: Literal["length"] = "length"


class CutOff(FakeEngine):
    """Every scripted answer ends at the token limit."""

    def _say(self, vlm: Any, asked: Any) -> Any:
        said = super()._say(vlm, asked)
        generation = Generation(**{**vars(said.generation), "finish_reason": LENGTH})
        return type(said)(**{**vars(said), "generation": generation})


def joined(chunks: Iterator[AIMessageChunk]) -> AIMessageChunk:
    whole = next(chunks)
    for chunk in chunks:
        whole += chunk  # type: ignore[assignment]
    return whole


@pytest.fixture
def response(make_report: Callable[..., RunReport]) -> Response:
    return Response(
        text="a roof",
        finish_reason="stop",
        report=make_report(),
        tool_calls=(ToolCall("c1", "look", {"at": "roof"}),),
        tokens=(TokenLogprob("a", -0.5), TokenLogprob(" roof", -0.25)),
    )


def test_metadata_is_json_and_usage_is_ints(response: Response) -> None:
    metadata = response_metadata(response, logprobs=True, evidence=False)
    message = to_ai_message(response, metadata)
    assert json.loads(json.dumps(message.response_metadata)) == metadata
    assert metadata["sgl"] == response.report.model_dump(mode="json")
    assert metadata["model_name"] == "little"
    assert metadata["finish_reason"] == "tool_calls"
    assert [token["token"] for token in metadata["logprobs"]["content"]] == ["a", " roof"]
    usage = message.usage_metadata
    assert usage is not None
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (160, 3, 163)
    assert usage["input_token_details"] == {"image": 144}
    assert "logprobs" not in response_metadata(response, logprobs=False, evidence=True)


def test_an_escalated_answer_counts_the_large_models_tokens(make_report: Callable[..., RunReport]) -> None:
    report = make_report(
        route="large", escalated=True, large_input_tokens=200, large_output_tokens=9, kept_visual_tokens=28
    )
    response = Response(text="x", finish_reason="length", report=report)
    metadata = response_metadata(response, logprobs=False, evidence=False)
    usage = to_ai_message(response, metadata).usage_metadata
    assert usage is not None
    assert (usage["input_tokens"], usage["output_tokens"]) == (200, 9)
    assert (metadata["model_name"], metadata["finish_reason"]) == ("big", "length")


def test_chunks_join_to_the_message(response: Response) -> None:
    options = CallOptions.of(logprobs=True)
    deltas = (
        TextDelta("a "),
        TextDelta("roof"),
        ToolCallDelta(0, "c1", "look", ""),
        ToolCallDelta(0, None, None, '{"at": '),
        ToolCallDelta(0, None, None, '"roof"}'),
    )
    whole = to_ai_message(response, response_metadata(response, logprobs=True, evidence=False))
    chunks: list[Any] = [
        chunk.message for event in (*deltas, response) for chunk in to_generation_chunks(event, options)
    ]
    together = joined(iter(chunks))
    assert together.content == whole.content
    assert together.tool_calls == whole.tool_calls
    assert together.usage_metadata == whole.usage_metadata
    assert together.response_metadata == whole.response_metadata
    assert together.chunk_position == "last"
    # Whoever stops in between has no call, or a whole one.
    for end in range(1, len(chunks)):
        assert joined(iter(chunks[:end])).tool_calls in ([], whole.tool_calls)


@pytest.mark.parametrize(
    "written",
    [
        '{"at": "ro',
        '{"at": "roof"',
        '{"at": "roof"} and more',
        "",
        "7",
        '"roof"',
        "add(7)",
        "{" * 9,
        pytest.param('{"a":' * (2 * sys.getrecursionlimit()), id="deep"),
    ],
)
def test_what_is_no_call_stays_none_however_it_is_read(
    make_report: Callable[..., RunReport], written: str
) -> None:
    good, bad = ToolCall("c1", "look", {"at": "roof"}), InvalidToolCall("c2", "look", written, "It is none.")
    response = Response("", LENGTH, make_report(), tool_calls=(good,), invalid_tool_calls=(bad,))
    whole = to_ai_message(response, response_metadata(response, logprobs=False, evidence=False))
    chunks: Any = [chunk.message for chunk in to_generation_chunks(response, CallOptions())]
    together = joined(iter(chunks))
    for message in (whole, together):
        assert [call["id"] for call in message.tool_calls] == ["c1"]
        assert [(call["id"], call["args"]) for call in message.invalid_tool_calls] == [
            ("c2", NOT_A_CALL + written)
        ]


HALF = '<tool_call>\n{"name": "delete", "arguments": {"target": "/data/tmp'
WHOLE = '<tool_call>\n{"name": "delete", "arguments": {"target": "/data/tmp/x"}}\n</tool_call>'


def run_agent(answer: str, mode: Any) -> list[str]:
    """What an agent deletes when its model says this."""
    deleted = []

    def delete(target: str) -> str:
        """Deletes records."""
        deleted.append(target)
        return "done"

    def say(request: Request) -> str:
        return "bye" if any(message.role == "tool" for message in request.messages) else answer

    model = ChatSGL(engine=FakeEngine(say)).bind_tools([delete])
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([delete]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "model")
    list(graph.compile().stream({"messages": [HumanMessage("go")]}, stream_mode=mode))
    return deleted


@pytest.mark.parametrize("mode", ["values", "messages"])
def test_an_agent_does_not_run_a_call_that_is_cut_off(mode: Any) -> None:
    assert run_agent(HALF, mode) == []
    assert run_agent(WHOLE, mode) == ["/data/tmp/x"]


@pytest.mark.filterwarnings("ignore:.*is in beta:langchain_core._api.LangChainBetaWarning")
async def test_a_cut_off_call_is_invalid_by_every_way_to_ask() -> None:
    tool = {"type": "function", "function": {"name": "delete", "parameters": {"type": "object"}}}
    model: Any = ChatSGL(engine=CutOff(lambda _: HALF)).bind_tools([tool])
    answers: list[Any] = [
        model.invoke("go"),
        await model.ainvoke("go"),
        joined(model.stream("go")),
        joined(iter([chunk async for chunk in model.astream("go")])),
        model.stream_events("go", version="v3").output,
    ]
    for answer in answers:
        assert answer.tool_calls == []
        [call] = answer.invalid_tool_calls
        assert call["args"].startswith(NOT_A_CALL)
        assert answer.response_metadata["finish_reason"] == LENGTH
        assert answer.response_metadata["normalized_finish_reason"] == LENGTH


def test_why_an_answer_ends(make_report: Callable[..., RunReport]) -> None:
    def reasons(*calls: ToolCall, reason: Any = "stop") -> tuple[str, str]:
        response = Response("", reason, make_report(), tool_calls=calls)
        metadata = response_metadata(response, logprobs=False, evidence=False)
        return metadata["finish_reason"], metadata["normalized_finish_reason"]

    call = ToolCall("c1", "look", {})
    assert reasons() == ("stop", "stop")
    assert reasons(call) == ("tool_calls", "tool_call")
    assert reasons(reason=LENGTH) == reasons(call, reason=LENGTH) == (LENGTH, LENGTH)


class Bill(BaseModel):
    """A bill."""

    total: float = 0.0
    paid: bool = False


class Color(Enum):
    RED = "red"
    BLUE = "blue"


TAGS = {
    "title": "Tags",
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
}
METHODS: list[Any] = ["json_schema", "json_mode", "function_calling"]


@cache
def models() -> tuple[VLM, VLM]:
    """Of all engines here; to make them takes longer than to ask."""
    return tiny_vlm(size="small"), tiny_vlm(size="large")


def saying(text: str, *, method: str = "json_schema", cut_off: bool = False) -> ChatSGL:
    """A model that answers so, as the method wants it written."""

    def say(request: Request) -> str:
        if method != "function_calling":
            return text
        name = request.tools[0].name
        whole = f'<tool_call>\n{{"name": "{name}", "arguments": {text}'
        return whole if cut_off else whole + "}\n</tool_call>"

    small, large = models()
    return ChatSGL(engine=(CutOff if cut_off else FakeEngine)(say, small=small, large=large))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("schema", "half"),
    [
        (Bill, '{"total": 3.7'),
        (Bill.model_json_schema(), '{"total": 3.7'),
        (TAGS, '{"tags": ["a"'),
        (float, '{"value": 3.7'),
    ],
)
async def test_half_a_json_is_no_structured_answer(schema: Any, half: str, method: Any) -> None:
    chain = saying(half, method=method, cut_off=True).with_structured_output(schema, method=method)
    with pytest.raises(OutputParserException):
        chain.invoke("How much?")
    with pytest.raises(OutputParserException):
        list(chain.stream("How much?"))
    with pytest.raises(OutputParserException):
        [piece async for piece in chain.astream("How much?")]
    raw = saying(half, method=method, cut_off=True).with_structured_output(
        schema, method=method, include_raw=True
    )
    answer: Any = raw.invoke("How much?")
    assert answer["parsed"] is None
    assert isinstance(answer["parsing_error"], OutputParserException)
    assert isinstance(answer["raw"], AIMessage)
    # Whole, it is one.
    whole = half + ("]}" if "[" in half else "}")
    assert saying(whole, method=method).with_structured_output(schema, method=method).invoke("How much?")


@pytest.mark.parametrize("text", ["7", '{"total": 3.7}', "{}"])
def test_what_is_cut_off_may_look_whole(text: str) -> None:
    chain = saying(text, cut_off=True).with_structured_output({"title": "Any", "anyOf": [{}]})
    with pytest.raises(OutputParserException, match="max_tokens"):
        chain.invoke("How much?")


def test_an_answer_that_is_not_wanted_is_refused() -> None:
    chain = saying('{"total": "much"}').with_structured_output(Bill)
    with pytest.raises(OutputParserException, match="Bill"):
        chain.invoke("How much?")
    with pytest.raises(OutputParserException, match="no valid call"):
        saying("3.73").with_structured_output(Bill, method="function_calling").invoke("How much?")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("schema", "written", "expected"),
    [
        (Color, '"blue"', Color.BLUE),
        (float, "3.73", 3.73),
        (int, "3", 3),
        (bool, "true", True),
        (str, '"a roof"', "a roof"),
        (list[int], "[3, 1, 3]", [3, 1, 3]),
        (list[Bill], '[{"total": 3}]', [Bill(total=3)]),
        (set[str], '["b", "a", "b"]', {"a", "b"}),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (Literal["a", "b"], '"b"', "b"),
        (int | None, "null", None),
        (Bill | Color, '"red"', Color.RED),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
async def test_types_that_are_no_objects(schema: Any, written: str, expected: Any, method: Any) -> None:
    model = saying(f'{{"value": {written}}}', method=method)
    chain: Any = model.with_structured_output(schema, method=method)
    assert chain.invoke("?") == expected
    assert list(chain.stream("?")) == [expected]
    assert [piece async for piece in chain.astream("?")] == [expected]
    raw: Any = model.with_structured_output(schema, method=method, include_raw=True)
    assert raw.invoke("?")["parsed"] == expected


@pytest.mark.parametrize("schema", [Color, float, list[bool], set[Literal["a", "b"]], TAGS], ids=str)
def test_a_model_is_held_to_them(schema: Any) -> None:
    answer: Any = ChatSGL(max_tokens=90).with_structured_output(schema).invoke("?")
    kind = schema if isinstance(schema, type) and not getattr(schema, "__args__", None) else None
    if kind is not None:
        assert isinstance(answer, kind)
    elif schema is TAGS:
        assert len(answer.get("tags", [])) == len(set(answer.get("tags", [])))
    else:
        assert isinstance(answer, (list, set))


@pytest.mark.parametrize("schema", [Callable[[], None], type(len), list[type(len)]], ids=str)  # type: ignore[misc]
def test_types_that_json_cannot_hold_are_refused_at_once(schema: Any) -> None:
    with pytest.raises(InvalidRequestError, match="type of answers"):
        saying("1").with_structured_output(schema)


def test_repeated_items_go_where_all_items_differ() -> None:
    answer: Any = (
        saying('{"tags": ["b", "a", "b"], "more": ["a", "a"]}').with_structured_output(TAGS).invoke("?")
    )
    assert answer == {"tags": ["b", "a"], "more": ["a", "a"]}


class Tagged(BaseModel):
    """As pydantic writes sets that may be missing, or stand in a part of their own."""

    class Part(BaseModel):
        """A part."""

        inner: set[int]

    outer: set[int] | None = None
    part: Part
    more: "list[Tagged]" = []


def test_repeated_items_go_wherever_a_schema_says_so() -> None:
    schema = Tagged.model_json_schema()
    part = '"part": {"inner": [4, 4]}'
    said = f'{{"outer": [1, 1, 2], "part": {{"inner": [3, 3]}}, "more": [{{"outer": null, {part}}}]}}'
    answer: Any = saying(said).with_structured_output(schema).invoke("?")
    assert answer == {
        "outer": [1, 2],
        "part": {"inner": [3]},
        "more": [{"outer": None, "part": {"inner": [4]}}],
    }


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        # What another branch says is nothing to a value that cannot be of it.
        (
            {"kind": "order", "amounts": [5, 5]},
            (list[int] | set[str], {"kind": "order"}),
            {"kind": "order", "amounts": [5, 5]},
        ),
        ([5, 5], list[int] | set[str], [5, 5]),
        (["a", "a"], list[int] | set[str], ["a"]),
        ([5, 5], list[int] | set[int], [5, 5]),
        ({"a": [1, 1]}, dict[str, set[int]], {"a": [1]}),
        ([[1, 1], [1, 1]], tuple[set[int], list[int]], [[1], [1, 1]]),
        ([1, True, 1], set[int | bool], [1, True]),
    ],
)
def test_repeated_items_stay_where_they_may(value: Any, schema: Any, expected: Any) -> None:
    if isinstance(schema, tuple):
        kind, constants = schema
        amounts = TypeAdapter(kind).json_schema()
        named = {name: {"const": constant} for name, constant in constants.items()}
        tags = {"properties": {"kind": {"const": "tags"}, "amounts": {"uniqueItems": True}}}
        schema = {"oneOf": [{"properties": {**named, "amounts": amounts}}, tags]}
    else:
        schema = TypeAdapter(schema).json_schema()
    assert without_repeats(value, schema) == expected


def test_plain_json_comes_as_it_grows() -> None:
    pieces: Any = list(
        saying('{"a": "bc"}').with_structured_output({"title": "A", "type": "object"}).stream("?")
    )
    assert pieces[-1] == {"a": "bc"}


def test_a_tool_with_a_set_can_be_forced() -> None:
    def tag(names: set[Literal["a", "b"]]) -> str:
        """Tags."""
        return f"{names}"

    message = ChatSGL(max_tokens=120).bind_tools([tag], tool_choice="any").invoke("?")
    assert set(message.tool_calls[0]["args"]["names"]) <= {"a", "b"}
