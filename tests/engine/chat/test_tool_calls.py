import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgl_engine import Request
from sgl_engine.chat.text_stream import TextDelta
from sgl_engine.chat.tool_calls import (
    ParsedAnswer,
    check_tools,
    is_hermes,
    parse_with_tokenizer,
    render_call,
    render_result,
    tool_instructions,
)
from sgl_engine.chat.tool_stream import ToolCallDelta, ToolCallStream
from sgl_engine.decoding.answer import Generation
from sgl_engine.decoding.reader import AnswerReader, read_answer
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import InvalidToolCall, ToolCall, ToolSpec
from sgl_engine.testing import tiny_vlm

ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
LOOK = ToolSpec("näh", 'Says "hi".', {"type": "object"})


def read(pieces: list[str]) -> tuple[list[TextDelta | ToolCallDelta], ToolCallStream]:
    stream = ToolCallStream()
    deltas = [delta for piece in pieces for delta in stream.push(piece)]
    return deltas + stream.flush(), stream


def joined(pieces: list[str]) -> dict[str, Any]:
    """What a consumer of the deltas has in the end, ids left out; checked against the stream's own view."""
    deltas, stream = read(pieces)
    calls: dict[int, list[Any]] = {}
    ids: dict[int, str] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            if delta.index not in calls:
                assert delta.id is not None
                ids[delta.index] = delta.id
                calls[delta.index] = [delta.name, ""]
            else:
                assert delta.id is None
                assert delta.name is None
            calls[delta.index][1] += delta.arguments
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    assert text == stream.text
    assert list(calls) == list(range(len(calls)))
    told = {call.id: call for call in (*stream.tool_calls, *stream.invalid_tool_calls)}
    assert set(told) == set(ids.values())
    for index, call_id in ids.items():
        call, (name, arguments) = told[call_id], calls[index]
        assert call.name == name
        assert (json.loads(arguments) if isinstance(call, ToolCall) else arguments) == call.arguments
    return {
        "text": text,
        "calls": [tuple(call) for call in calls.values()],
        "valid": [(call.name, call.arguments) for call in stream.tool_calls],
        "invalid": [(call.name, call.arguments, call.error) for call in stream.invalid_tool_calls],
    }


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


ADD_CALL = hermes('{"name": "add", "arguments": {"a":  1}}')
READABLE = {
    "text": ("Hello <world>", "Hello <world>", []),
    "space at the end": (" a \n", " a \n", []),
    "an unfinished tag": ("a <tool_c", "a <tool_c", []),
    "one call": (ADD_CALL, "", [("add", {"a": 1})]),
    "text before": ("I look.\n\n" + ADD_CALL, "I look.", [("add", {"a": 1})]),
    "text after": (ADD_CALL + "\n done", "done", [("add", {"a": 1})]),
    "text around": ("a " + ADD_CALL + " b", "a\nb", [("add", {"a": 1})]),
    "two calls": (ADD_CALL + "\n" + ADD_CALL + "\n", "", [("add", {"a": 1})] * 2),
    "tags in strings": (
        hermes('{"name": "t", "arguments": {"x": "</tool_call> <tool_call> \\" {"}}'),
        "",
        [("t", {"x": '</tool_call> <tool_call> " {'})],
    ),
    "arguments first": (hermes('{"arguments": {"a": 1}, "name": "add"}'), "", [("add", {"a": 1})]),
    "parameters": (hermes('{"name": "add", "parameters": {"a": 1}}'), "", [("add", {"a": 1})]),
    "function": (hermes('{"function": {"name": "add", "arguments": {}}}'), "", [("add", {})]),
    "another key first": (hermes('{"id": 3, "name": "add", "arguments": {}}'), "", [("add", {})]),
    "another key behind": (hermes('{"name": "add", "arguments": {}, "id": 3}'), "", [("add", {})]),
    "arguments as text": (hermes('{"name": "add", "arguments": "{\\"a\\": 1}"}'), "", [("add", {"a": 1})]),
    "no arguments": (hermes('{"name": "add"}'), "", [("add", {})]),
    "no spaces": ('<tool_call>{"name":"add","arguments":{}}</tool_call>', "", [("add", {})]),
    "an escaped name": (hermes('{"name": "n\\u00e4\\"h", "arguments": {}}'), "", [('nä"h', {})]),
    "an unknown name": (hermes('{"name": "what", "arguments": {}}'), "", [("what", {})]),
    "no closing tag": ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}', "", [("add", {"a": 1})]),
    "no last bracket": ('<tool_call>{"name": "add", "arguments": {"a": [1]}', "", [("add", {"a": [1]})]),
    "no closing tag, text": ('<tool_call>{"name": "add", "arguments": {}} ok', "ok", [("add", {})]),
    "no closing tag, other layout": ('<tool_call>{"arguments": {}, "name": "add"} ok', "ok", [("add", {})]),
    "half a closing tag": ('<tool_call>{"arguments": {}, "name": "add"}</tool', "</tool", [("add", {})]),
    "calls that are not closed": (
        '<tool_call>{"name": "a", "arguments": {}}\n' * 2 + '<tool_call>{"name": "b"}',
        "",
        [("a", {}), ("a", {}), ("b", {})],
    ),
}
UNREADABLE = {
    "not JSON": (hermes("add(1)"), "", None, "add(1)", "not JSON"),
    "single quotes": (hermes("{'name': 'add'}"), "", None, "{'name': 'add'}", "not JSON"),
    "NaN": (hermes('{"name": "t", "arguments": {"a": NaN}}'), "", "t", '{"a": NaN}', "NaN is not JSON"),
    "no name": (hermes('{"arguments": {}}'), "", None, '{"arguments": {}}', '"name"'),
    "a list": (hermes("[1]"), "", None, "[1]", '"name"'),
    "a list of arguments": (
        hermes('{"name": "t", "arguments": [1]}'),
        "",
        "t",
        '{"name": "t", "arguments": [1]}',
        "not a JSON object",
    ),
    "broken arguments": (hermes('{"name": "t", "arguments": {"a": }}'), "", "t", '{"a": }', "not JSON"),
    "a wrong bracket": (hermes('{"name": "t", "arguments": {"a": 1]}'), "", "t", '{"a": 1]', "not JSON"),
    "an open bracket": (
        hermes('{"name": "t", "arguments": {"a": [1}') + " more",
        "more",
        "t",
        '{"a": [1}\n',
        "not JSON",
    ),
    "an open string": (
        '<tool_call>{"name": "t", "arguments": {"a": "b}}</tool_call>',
        "",
        "t",
        '{"a": "b}}</tool_call>',
        "ends within",
    ),
    "an open string, other layout": (
        '<tool_call>{"a": "b}</tool_call> more',
        "more",
        None,
        '{"a": "b}',
        "not JSON",
    ),
    "cut off": ('<tool_call>{"name": "t", "arguments": {"a": 1', "", "t", '{"a": 1', "ends within"),
    "cut off in the name": ('a<tool_call>\n{"name": "t', "a", None, '{"name": "t', "not JSON"),
    "nothing": ("<tool_call>", "", None, "", "not JSON"),
    "too deep": (
        hermes('{"name": "t", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}"),
        "",
        "t",
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "too deeply",
    ),
}


@pytest.mark.parametrize("case", READABLE)
def test_calls_and_text(case: str) -> None:
    answer, text, calls = READABLE[case]
    for pieces in ([answer], list(answer)):
        found = joined(pieces)
        assert found["text"] == text
        assert found["valid"] == calls
        assert found["invalid"] == []


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_says_why(case: str) -> None:
    answer, text, name, arguments, error = UNREADABLE[case]
    for pieces in ([answer], list(answer)):
        found = joined(pieces)
        assert found["text"] == text
        assert found["valid"] == []
        [(its_name, its_arguments, its_error)] = found["invalid"]
        assert (its_name, its_arguments) == (name, arguments)
        assert error in its_error


FRAGMENTS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<tool_call>\n",
            "\n</tool_call>",
            "<",
            "tool_call>",
            "</",
            " ",
            "\n",
        ),
        *(
            '{"name": "add", "arguments": ',
            '{"arguments": ',
            ', "name": "x"}',
            '{"a": 1}',
            '{"a": [',
            "]",
            "}",
        ),
        *("text", '"', "\\", '\\"', "{", '{"b": "é"}', "}}", ADD_CALL),
    ]
)


@given(st.lists(FRAGMENTS, max_size=12), st.data())
def test_the_pieces_do_not_matter(fragments: list[str], data: st.DataObject) -> None:
    answer = "".join(fragments)
    cuts = sorted({0, len(answer), *data.draw(st.lists(st.integers(0, len(answer)), max_size=8))})
    whole = joined([answer])
    assert joined(list(answer)) == whole
    assert joined([answer[start:stop] for start, stop in pairwise(cuts)]) == whole


def test_arguments_are_passed_on_while_they_come_character_by_character() -> None:
    stream = ToolCallStream()
    shown = [stream.push(character) for character in ADD_CALL]
    first = ADD_CALL.index('{"a"') + 1  # the bracket makes the layout certain
    assert [delta for deltas in shown[: first - 1] for delta in deltas] == []
    [start, bracket] = shown[first - 1]
    assert isinstance(start, ToolCallDelta)
    assert (start.name, start.arguments) == ("add", "")
    assert bracket == ToolCallDelta(0, None, None, "{")
    rest = [delta for deltas in shown[first:] for delta in deltas]
    assert rest == [ToolCallDelta(0, None, None, character) for character in '"a":  1}']
    assert stream.tool_calls[0].id == start.id


def test_text_is_held_back_only_where_it_may_become_a_call() -> None:
    stream = ToolCallStream()
    pieces = ["a", " ", "b", " <", "tool", "x", "\n"]
    shown = [
        "".join(delta.text for delta in stream.push(piece) if isinstance(delta, TextDelta))
        for piece in pieces
    ]
    assert shown == ["a", "", " b", "", "", " <toolx", ""]
    assert stream.flush() == [TextDelta("\n")]


def test_ids_differ_and_look_like_ids() -> None:
    calls = read([ADD_CALL * 3])[1].tool_calls
    assert len({call.id for call in calls}) == 3
    assert all(len(call.id) == len("call_") + 24 and call.id.startswith("call_") for call in calls)


def test_without_tools_everything_is_text() -> None:
    vlm, request = tiny_vlm(), Request.ask("Add.")
    prompt = vlm.encode(request)
    pieces = [ADD_CALL[:5], ADD_CALL[5:], " \n"]
    reader = AnswerReader(vlm, request, prompt)
    assert [delta for piece in pieces for delta in reader.push(piece)] == [TextDelta(part) for part in pieces]
    nothing = torch.empty(0)
    said = Generation("".join(pieces), nothing, nothing, nothing, "stop")
    assert read_answer(vlm, request, prompt, said) == ParsedAnswer("".join(pieces))
    with_tools = read_answer(vlm, replace(request, tools=(ADD,)), prompt, said)
    assert with_tools.tool_calls


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_calls_may_count_only_at_the_start(size: int) -> None:
    def parts(answer: str) -> tuple[str, int]:
        stream = ToolCallStream(only_at_start=True)
        for at in range(0, len(answer), size):
            stream.push(answer[at : at + size])
        stream.flush()
        return stream.text, len(stream.tool_calls)

    json_text = '{"a": "' + "<tool_call>" + '"}'
    assert parts(json_text) == (json_text, 0)
    assert parts(ADD_CALL + "\n" + ADD_CALL) == ("", 2)
    assert parts("<tool") == ("<tool", 0)
    assert parts("") == ("", 0)


def test_what_is_rendered_is_read_again() -> None:
    call = ToolCall("1", 'nä"h', {"a": [1, None, {"b": "</tool_call>"}], "é": 'q"\n'})
    found = joined([render_call(call)])
    assert found["valid"] == [(call.name, call.arguments)]


def test_instructions_list_the_tools_and_the_format() -> None:
    text = tool_instructions((ADD, LOOK), "auto")
    listed = [json.loads(line) for line in text.splitlines() if line.startswith('{"type"')]
    assert [tool["function"]["name"] for tool in listed] == ["add", "näh"]
    assert listed[0]["function"]["parameters"] == ADD.parameters
    assert "<tool_call>" in text
    assert "näh" in text  # letters, not escapes
    assert "Answer with a tool call." not in text
    assert "Answer with a tool call." in tool_instructions((ADD,), "any")


def test_instructions_show_only_what_may_be_called() -> None:
    request = Request((), tools=(ADD, LOOK))
    assert request.callable_tools == (ADD, LOOK)
    assert replace(request, tool_name="näh").callable_tools == (LOOK,)
    assert replace(request, tool_choice="none").callable_tools == ()
    assert tool_instructions((ADD,), "none") == tool_instructions((), "auto") == ""


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tools": (ADD, ADD)}, "named ['add', 'add']; each needs a name of its own"),
        ({"tools": (ToolSpec("", "", {}),)}, "named ['']"),
        ({"tool_name": "sub"}, "'sub' shall be called, but the tools are ['add', 'näh']"),
        ({"tools": (), "tool_choice": "any"}, "there is none"),
        ({"tool_choice": "any", "response_schema": {}}, "response_schema"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], problem: str) -> None:
    request = Request((), tools=(ADD, LOOK))
    check_tools(request)
    with pytest.raises(InvalidRequestError, match=re.escape(problem)):
        check_tools(replace(request, **changes))


def test_results_name_their_tool() -> None:
    assert render_result("add", "3") == "Result of add:\n3"
    assert render_result(None, "3") == "Result of the tool:\n3"


@pytest.mark.parametrize(
    ("template", "hermes_style"),
    [
        ("{% if tools %}<tool_call>{% endif %}", True),
        ("{% if tools %}<tool_call><function=x>{% endif %}", False),
        ("{% if tools %}<|python_tag|>{% endif %}", False),
        ("{{ messages }}", False),
    ],
)
def test_templates_with_this_format_are_known(template: str, hermes_style: bool) -> None:
    assert is_hermes(template) is hermes_style


TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<call:(?P<name>\w+)>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"},
    },
}


class TestTokenizerFormats:
    """Through transformers' own parser."""

    @pytest.fixture
    def tokenizer(self) -> Any:
        from sgl_engine.testing import tiny_vlm

        tokenizer = tiny_vlm().processor.tokenizer
        tokenizer.response_template = TEMPLATE
        return tokenizer

    def parse(self, tokenizer: Any, answer: str) -> ParsedAnswer | None:
        return parse_with_tokenizer(tokenizer, answer, prompt="<|im_start|>assistant\n", tools=(ADD,))

    def test_text_and_calls(self, tokenizer: Any) -> None:
        parsed = self.parse(tokenizer, 'I add. <call:add>{"a": 1}</call> <call:add>{}</call><|im_end|>')
        assert parsed is not None
        assert parsed.text == "I add."
        assert [(call.name, call.arguments) for call in parsed.tool_calls] == [("add", {"a": 1}), ("add", {})]
        assert parsed.tool_calls[0].id != parsed.tool_calls[1].id

    def test_what_is_no_object_is_invalid(self, tokenizer: Any) -> None:
        parsed = self.parse(tokenizer, "<call:add>[1]</call>")
        assert parsed is not None
        [invalid] = parsed.invalid_tool_calls
        assert isinstance(invalid, InvalidToolCall)
        assert invalid.name == "add"
        assert "not a JSON object" in invalid.error

    def test_what_cannot_be_parsed_stays_text(self, tokenizer: Any) -> None:
        answer = "<call:add>{a</call>"
        assert self.parse(tokenizer, answer) == ParsedAnswer(answer)

    def test_most_tokenizers_bring_no_format(self, tokenizer: Any) -> None:
        tokenizer.response_template = None
        assert self.parse(tokenizer, "a") is None
