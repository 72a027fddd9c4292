"""Tools and schemas as callers write them: what is kept of them, and what is refused and how."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel, Field, RootModel

from langchain_sgl import ChatSGL, image_block
from langchain_sgl.chat.call_options import CallOptions
from langchain_sgl.structured.schemas import boxed, convert_tools, to_json_schema
from sgl_engine.chat.grammar import answer_grammar
from sgl_engine.demo import PICTURES
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Request

QUESTION = [("user", [image_block(PICTURES / "receipt.png"), "How much is the total?"])]
FLAG = {"type": "object", "properties": {"paid": {"type": "boolean"}}, "required": ["paid"]}
METHODS = ["json_schema", "json_mode", "function_calling"]
Method = Literal["json_schema", "json_mode", "function_calling"]


class Node(BaseModel):
    """A tree."""

    leaf: bool
    parts: list[Node] = Field(default=[], max_length=2)


class Tree(BaseModel):
    """Holds a tree."""

    root: Node


class Flags(RootModel[list[bool]]):
    """No object."""


class Flat(BaseModel):
    """Refers to nothing."""

    paid: bool


@tool
def plant(node: Node) -> str:
    """Plants a tree."""
    return f"{node.leaf}"


@pytest.fixture(scope="module")
def chat() -> ChatSGL:
    return ChatSGL(max_tokens=72)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": FLAG}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Node, Tree])
@pytest.mark.parametrize("escalate", ["never", "always"])
def test_recursive_models_are_valid(
    chat: ChatSGL, method: Method, schema: type[BaseModel], escalate: str
) -> None:
    answer = chat.with_structured_output(schema, method=method).invoke(QUESTION, escalate=escalate)
    assert isinstance(answer, schema)


def test_a_schema_that_refers_to_itself_is_kept_whole() -> None:
    (converted,) = convert_tools([plant], strict=None)
    assert converted["function"]["name"] == "plant"
    for schema in (converted["function"]["parameters"], to_json_schema(Tree), to_json_schema(Node)):
        parts = schema["$defs"]["Node"]["properties"]["parts"]
        assert parts["items"] == {"$ref": "#/$defs/Node"}
    assert "$defs" not in json.dumps(to_json_schema(Flat))


def test_a_forced_call_with_recursive_arguments_can_be_run(chat: ChatSGL) -> None:
    message = chat.bind_tools([plant], tool_choice="plant").invoke(QUESTION)
    assert plant.invoke(message.tool_calls[0]).status == "success"


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        (
            {"title": "Flags", "type": "array", "items": {"type": "boolean"}, "maxItems": 2},
            lambda answer: isinstance(answer, list) and len(answer) <= 2,
        ),
        ({"title": "Choice", "enum": ["a", "b"]}, lambda answer: answer in ("a", "b")),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, lambda answer: answer in (True, False, None)),
        (FLAG, lambda answer: set(answer) == {"paid"}),
        (Flags, lambda answer: isinstance(answer, Flags)),
    ],
)
def test_schemas_need_no_title_and_no_object(
    chat: ChatSGL, method: Method, schema: Any, fits: Callable[[Any], bool]
) -> None:
    assert fits(chat.with_structured_output(schema, method=method).invoke(QUESTION))


def test_function_calling_needs_an_object_but_no_title(chat: ChatSGL) -> None:
    answer: Any = chat.with_structured_output(FLAG, method="function_calling").invoke(QUESTION)
    assert set(answer) == {"paid"}
    enum = chat.with_structured_output({"title": "C", "enum": ["a"]}, method="function_calling")
    array = chat.with_structured_output({"title": "A", "type": "array"}, method="function_calling")
    for unusable in (enum, array):
        with pytest.raises(InvalidRequestError, match=r"The schema of the tool '[AC]'"):
            unusable.invoke(QUESTION)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [5, None, "receipt", {}, {"type": "xml"}])
def test_what_is_no_schema_is_refused_when_it_is_written(chat: ChatSGL, method: Method, schema: Any) -> None:
    with pytest.raises(InvalidRequestError):
        chat.with_structured_output(schema, method=method)


def test_function_calling_takes_no_other_tools(chat: ChatSGL) -> None:
    with pytest.raises(InvalidRequestError, match="takes no other tools"):
        chat.with_structured_output(Flat, method="function_calling", tools=[plant])
    bound: Any = chat.with_structured_output(Flat, tools=[plant])
    assert [spec["function"]["name"] for spec in bound.first.kwargs["tools"]] == ["plant"]


class Callback(BaseModel):
    """Has a field that JSON cannot hold."""

    call: Callable[[], None]


@pytest.mark.parametrize(
    "unusable",
    [
        {"type": "web_search_preview"},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "function", "function": {}},
        {"type": "function", "function": {"name": None}},
        {"toolSpec": {}},
        {"type": ["string"]},
        "plant",
        5,
        Callback,
    ],
)
def test_what_is_no_tool_is_refused_when_it_is_bound(chat: ChatSGL, unusable: Any) -> None:
    with pytest.raises(InvalidRequestError):
        chat.bind_tools([unusable])
    with pytest.raises(InvalidRequestError):
        chat.bind_tools(unusable)


@pytest.mark.parametrize("choice", [["plant"], {"function": "plant"}, {"plant": 1}.keys(), 3])
def test_what_is_no_choice_is_refused(chat: ChatSGL, choice: Any) -> None:
    with pytest.raises(InvalidRequestError):
        chat.bind_tools([plant], tool_choice=choice)


def test_flat_functions_are_read() -> None:
    flat = {"type": "function", "name": "pay", "parameters": FLAG}
    (converted,) = convert_tools([flat], strict=None)
    assert converted == {"type": "function", "function": {"name": "pay", "parameters": FLAG}}


@pytest.mark.parametrize("name", ["any", "none", "auto", "required"])
def test_a_tool_may_be_named_like_a_choice(chat: ChatSGL, name: str) -> None:
    tools = [named("other"), named(name)]
    for choice in (
        {"type": "function", "function": {"name": name}},
        {"type": "function", "name": name},
        {"type": "tool", "name": name},
    ):
        request = CallOptions.of(tools=tools, tool_choice=choice).request(())
        assert (request.tool_choice, request.tool_name) == ("any", name)
    answer: Any = chat.with_structured_output({"title": name, **FLAG}, method="function_calling").invoke(
        QUESTION
    )
    assert set(answer) == {"paid"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [({"type": "auto"}, "auto"), ({"type": "any"}, "any"), ({"type": "none"}, "none")],
)
def test_anthropics_choices(choice: dict[str, Any], expected: str) -> None:
    request = CallOptions.of(tools=[named("pay")], tool_choice=choice).request(())
    assert (request.tool_choice, request.parallel_tool_calls) == (expected, True)
    single = {**choice, "disable_parallel_tool_use": True}
    assert not CallOptions.of(tools=[named("pay")], tool_choice=single).request(()).parallel_tool_calls


def test_error_messages_stay_short(chat: ChatSGL) -> None:
    data = "A" * 1_000_000
    for write in (
        lambda: chat.invoke(QUESTION, picture=data),
        lambda: chat.bind_tools([{"picture": data}]),
        lambda: chat.bind_tools([named("pay")], tool_choice=data),
        lambda: chat.with_structured_output({"picture": data}),
        lambda: chat.invoke(QUESTION, response_format={"type": "json_schema", "json_schema": {"x": data}}),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            write()
        assert len(str(caught.value)) < 1000


def test_remedies_name_the_options_of_a_call(chat: ChatSGL) -> None:
    with pytest.raises(InvalidRequestError, match=r"Raise max_tokens to \d+ or more"):
        chat.bind_tools([plant], tool_choice="plant").invoke(QUESTION, max_tokens=2)


class Typed(TypedDict):
    """A typed dictionary."""

    paid: bool


@pytest.mark.parametrize("written", [Flat, Typed, {"title": "Flat", **FLAG}, FLAG])
def test_every_form_gives_a_schema_that_can_be_enforced(written: Any) -> None:
    schema = to_json_schema(written)
    assert schema["properties"]["paid"]["type"] == "boolean"
    assert answer_grammar(Request((), response_schema=schema))


@pytest.mark.parametrize("schema", [float, list[int], Literal["a", "b"], int | None], ids=str)
def test_types_that_are_no_objects_travel_to_other_processes(schema: Any) -> None:
    asked = ChatSGL().with_structured_output(schema)
    again = pickle.loads(pickle.dumps(asked))
    assert again.get_output_jsonschema() == asked.get_output_jsonschema()
    box = boxed(schema)
    assert box is not None
    made = pickle.loads(pickle.dumps(box))
    assert (made.__name__, made.model_json_schema()) == (box.__name__, box.model_json_schema())
