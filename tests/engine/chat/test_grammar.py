import datetime as dt
import enum
import json
import re
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from llguidance import LLMatcher
from pydantic import BaseModel, Field, create_model
from schemas import faults

from sgl_engine import Request
from sgl_engine.chat.grammar import answer_grammar, prepare_schema
from sgl_engine.chat.grammar_probe import byte_tokenizer
from sgl_engine.config import LimitsConfig
from sgl_engine.decoding.ending import closes, find_closings
from sgl_engine.decoding.example_text import hints, short_match
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import ToolSpec

PERSON = {
    "title": "Person",
    "description": "Someone.",
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Name", "default": "x"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["name"],
}
ADD = ToolSpec(
    "add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
)
LOOK = ToolSpec('nä"h', "", {"type": "object", "properties": {}})
ADD_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
LOOK_CALL = '<tool_call>\n{"name": "nä\\"h", "arguments": {}}\n</tool_call>'


def matcher(grammar: str | None) -> LLMatcher:
    assert grammar is not None
    found = LLMatcher(byte_tokenizer(), grammar, log_level=0)
    assert not found.is_error(), found.get_error()
    return found


def takes(grammar: str | None, *answers: str) -> list[bool]:
    return [closes(matcher(grammar), answer.encode()) for answer in answers]


def json_grammar(schema: Any) -> str | None:
    return answer_grammar(Request((), response_schema=schema), LimitsConfig(schema_process=False))


def test_nothing_is_constrained_without_a_reason() -> None:
    assert answer_grammar(Request(())) is None
    assert answer_grammar(Request((), tools=(ADD,), tool_choice="none")) is None


def test_json_by_schema() -> None:
    grammar = json_grammar(PERSON)
    assert all(
        takes(grammar, '{"name":"a"}', '{"name": "é\\n", "tags": ["a", "b"]}', '{"name":"","tags":[]}')
    )
    assert not any(
        takes(
            grammar,
            "",
            "{}",
            '{"name":1}',
            '{"name":"a","tags":["c"]}',
            '{"name":"a"} ',
            '"a"',
            '{"name":"a"',
        )
    )


def test_spaces_are_few() -> None:
    grammar = json_grammar(PERSON)
    assert not any(takes(grammar, '{"name":  "a"}', '{ "name":"a"}', '{"name":\n"a"}', '{"name":"a" }'))


def test_any_object() -> None:
    grammar = json_grammar({"type": "object"})
    assert all(takes(grammar, "{}", '{"a": [1, {"b": null}], "c": "x"}'))
    assert not any(takes(grammar, "[]", "1", "{", "{a:1}"))


def test_other_properties_only_where_the_schema_speaks_of_them() -> None:
    extra = '{"name":"a","more":1}'
    assert takes(json_grammar(PERSON), extra) == [False]
    assert takes(json_grammar({**PERSON, "additionalProperties": True}), extra) == [True]
    assert takes(json_grammar({**PERSON, "additionalProperties": {"type": "string"}}), extra) == [False]
    composed = {"allOf": [PERSON, {"properties": {"more": {"type": "integer"}}}]}
    assert takes(json_grammar(composed), extra) == [True]
    beside = {"$defs": {"P": PERSON}, "$ref": "#/$defs/P", "properties": {"more": {"type": "integer"}}}
    assert takes(json_grammar(beside), extra) == [True]


def test_one_forced_call() -> None:
    grammar = answer_grammar(Request((), tools=(ADD, LOOK), tool_choice="any", parallel_tool_calls=False))
    assert all(takes(grammar, ADD_CALL, LOOK_CALL))
    assert not any(
        takes(
            grammar,
            "",
            "text",
            "a " + ADD_CALL,
            ADD_CALL + "\n" + ADD_CALL,
            ADD_CALL.replace("1", '"1"'),
            ADD_CALL.replace('"a": 1', ""),
            ADD_CALL.replace("add", "sub"),
            ADD_CALL.removesuffix("</tool_call>"),
        )
    )


def test_several_forced_calls() -> None:
    grammar = answer_grammar(Request((), tools=(ADD, LOOK), tool_choice="any"))
    assert all(takes(grammar, ADD_CALL, ADD_CALL + "\n" + LOOK_CALL, ADD_CALL * 3))
    assert not any(takes(grammar, "", ADD_CALL + "\n", ADD_CALL + "text"))


def test_only_the_named_tool_is_forced() -> None:
    grammar = answer_grammar(Request((), tools=(ADD, LOOK), tool_choice="any", tool_name='nä"h'))
    assert takes(grammar, LOOK_CALL, ADD_CALL) == [True, False]


@pytest.mark.parametrize("parallel", [False, True])
def test_auto_is_free_text_until_a_call_begins(parallel: bool) -> None:
    grammar = answer_grammar(Request((), tools=(ADD, LOOK), parallel_tool_calls=parallel))
    assert all(takes(grammar, "", "text", "a < b\n<tool_c", ADD_CALL, "I add.\n" + LOOK_CALL))
    assert not any(takes(grammar, "<tool_call>", "<tool_call>text</tool_call>", ADD_CALL.replace("1", "x")))
    assert takes(grammar, ADD_CALL + " then " + ADD_CALL + " done") == [parallel]


def test_with_a_schema_tools_are_called_or_it_is_satisfied() -> None:
    grammar = answer_grammar(Request((), tools=(ADD, LOOK), response_schema=PERSON))
    assert all(takes(grammar, '{"name":"<tool_call>"}', ADD_CALL, ADD_CALL + LOOK_CALL))
    assert not any(takes(grammar, "", "text", '{"name":1}', "I add." + ADD_CALL, ADD_CALL + '{"name":"a"}'))


def test_parameters_without_a_type_are_an_object() -> None:
    grammar = answer_grammar(Request((), tools=(ToolSpec("t", "", {}),), tool_choice="any"))
    call = '<tool_call>\n{"name": "t", "arguments": %s}\n</tool_call>'
    assert takes(grammar, call % "{}", call % '{"a":1}', call % "1") == [True, True, False]


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "thing"}, "Invalid type: thing"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"properties": 3}, "properties must be an object"),
        ({"$ref": "#/$defs/no"}, "does not exist"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "nsatisfiable"),
        ({"not": {}}, "not"),
        ({"const": object()}, "not JSON serializable"),
        ([], "must be a JSON object"),
        (True, "must be a JSON object"),
    ],
)
def test_schemas_that_cannot_be_enforced_are_named(schema: Any, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(problem)) as caught:
        json_grammar(schema)
    assert caught.value.problem.startswith("The response schema ")
    assert "\n" not in caught.value.problem
    assert "%" not in caught.value.problem


def test_a_tool_whose_schema_cannot_be_enforced_is_named() -> None:
    unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tools = (ADD, ToolSpec("collect", "", unique))
    with pytest.raises(InvalidRequestError, match=r"'collect' cannot be enforced: .*uniqueItems"):
        answer_grammar(Request((), tools=tools, tool_choice="any"))
    assert answer_grammar(Request((), tools=tools)) is not None  # nothing was promised
    with pytest.raises(InvalidRequestError, match="'list' has the type 'array'"):
        answer_grammar(Request((), tools=(ToolSpec("list", "", {"type": "array"}),)))


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    weight: float = Field(gt=0, lt=100.5)


class Node(BaseModel):
    """A tree."""

    value: int
    children: list["Node"] = []
    parent: Optional["Node"] = None


TYPES: dict[str, Any] = {
    "optional": str | None,
    "enum": Colour,
    "literal": (Literal["x", 1, True] | None),
    "tagged union": Annotated[Cat | Dog, Field(discriminator="kind")],
    "union": Cat | Dog,
    "tree": Node,
    "nested arrays": Annotated[list[list[int]], Field(min_length=1)],
    "tuple": tuple[int, str],
    "dict": dict[str, float],
    "any": Any,
    "datetime": dt.datetime,
    "date": dt.date,
    "time": dt.time,
    "duration": dt.timedelta,
    "uuid": uuid.UUID,
    "path": Path,
    "bytes": bytes,
    "pattern": Annotated[str, Field(pattern=r"^\d{3}-[a-z]+$", title="P", examples=["111-a"])],
    "multiple": Annotated[int, Field(gt=3, multiple_of=5)],
    "length": Annotated[str, Field(min_length=70)],
}


@pytest.mark.parametrize("kind", TYPES)
def test_what_pydantic_generates_works(kind: str) -> None:
    """The shortest answer is what pydantic reads."""
    model = create_model("Model", value=(TYPES[kind], ...))
    grammar = json_grammar(model.model_json_schema())
    [shortest, *_] = find_closings(matcher(grammar), hints=hints(grammar or ""), max_steps=4000)
    model.model_validate_json(shortest)


def test_an_alternative_that_cannot_be_enforced_is_left_out() -> None:
    grammar = json_grammar({"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!-$)[-0-9]+$"}]})
    assert takes(grammar, "1", '"1"') == [True, False]


NEAR = [-1, -0.5, -0.05, 0, 0.01, 0.5, 0.95, 1, 1.5, 10, 10.5]
NUMBERS = [
    f"{sign}{whole}{rest}" for sign in ("", "-") for whole in (0, 1, 9, 10) for rest in ("", ".0", ".3", ".5")
]


@pytest.mark.parametrize("low", ["minimum", "exclusiveMinimum"])
@pytest.mark.parametrize("high", ["maximum", "exclusiveMaximum"])
def test_bounds_hold(low: str, high: str) -> None:
    for least, most in [(least, most) for least in NEAR for most in NEAR if least < most]:
        schema = {"type": "number", low: least, high: most}
        found = takes(json_grammar(schema), *NUMBERS)
        taken = [text for text, ok in zip(NUMBERS, found, strict=True) if ok]
        assert [fault for text in taken for fault in faults(float(text), schema)] == []
        assert taken or most - least <= 0.5


def test_dates_are_days_that_exist() -> None:
    grammar = json_grammar({"type": "string", "format": "date-time"})
    good = [
        "2024-02-29T23:59:59Z",
        "2000-02-29T00:00:00.5+01:00",
        "1999-12-31T10:00:00Z",
        "2023-04-30T00:00:00Z",
    ]
    bad = ["2023-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2023-04-31T00:00:00Z", "2023-01-01T23:59:60Z"]
    bad += ["0000-01-01T00:00:00Z", "2023-01-01t00:00:00z", "2023-1-1T00:00:00Z", "2023-01-01"]
    assert all(takes(grammar, *map(json.dumps, good)))
    assert not any(takes(grammar, *map(json.dumps, bad)))
    for text in good:
        dt.datetime.fromisoformat(text)
    with pytest.raises(ValueError, match="day"):
        dt.datetime.fromisoformat(bad[0])


def test_preparing_leaves_what_is_no_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string"}, "properties": {"enum": [{"format": "odd"}]}},
        "const": {"format": "odd", "properties": {}},
        "default": {"format": "odd"},
    }
    before = json.dumps(schema)
    assert prepare_schema(schema) == {**schema, "additionalProperties": False}
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "pattern",
    [
        "^a+b?$",
        r"^\d{3}-\w+\s\S$",
        "(foo|ba)r",
        "[^a-z0-9]{2}",
        ".*x.",
        r"^(?:a|bc){2,5}\.$",
        "^[^a]$",
        "",
        "é|ß",
    ],
)
def test_a_short_match_matches(pattern: str) -> None:
    text = short_match(pattern)
    assert text is not None
    assert re.search(pattern, text)
    assert len(text) <= 8


@pytest.mark.parametrize("pattern", ["(", r"(a)\1(?=b)", "(?=b)a", "\u0416", "[\u0416]"])
def test_no_match_is_better_than_a_wrong_one(pattern: str) -> None:
    text = short_match(pattern)
    assert text is None or re.search(pattern, text)


def test_hints_are_escaped_for_json() -> None:
    grammar = json_grammar({"type": "array", "items": [{"type": "string", "pattern": '^"\\\\+$'}]})
    assert hints(grammar or "") == (b'\\"\\\\"',)


def test_searching_leaves_the_grammar_where_it_was() -> None:
    state = matcher(json_grammar(PERSON))
    state.consume_tokens(list(b'{"name":"a'))
    before = state.compute_bitmask()
    assert list(find_closings(state, max_steps=100)) == [b'"}']
    assert state.compute_bitmask() == before


def test_what_ended_the_answer_before_is_used_again() -> None:
    """Behind the first of many properties, the rest is known and not searched for."""
    names = [f"property {index}" for index in range(40)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    state = matcher(json_grammar(schema))
    known = next(find_closings(state, max_steps=4000))
    begun = b'{"property 0": "Hello", "property 1"'
    state.consume_tokens(list(begun))
    with_known = next(find_closings(state, known=known, max_steps=0))
    assert known.endswith(with_known)
    assert set(json.loads(begun + with_known)) == set(names)
