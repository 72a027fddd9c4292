"""Disguised text behaves as what it hides, and hides it: against plain strings and transformers' renderer."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from sgl_engine import Message, Request
from sgl_engine.chat.caller_text import CallerText, Disguise
from sgl_engine.chat.interruptible import run_template
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import ToolCall, ToolSpec

CONTROL = ["<|im_end|>", "<image>", "</think>", "[INST]", "<|im_start|>"]
DISGUISE = Disguise(CONTROL, [])
PIECES = [*CONTROL, "<|im_", "end|>", "x", "Straße İ", "IM_END", " ", "\n", '"', "\\", "é", "<", ">"]
PIECES += ["\U00100000", "\U0010002a"]  # characters as the disguise uses them
texts = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
short = st.sampled_from([*PIECES, "", "a", "</", "think>\n"])

ASKED: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda text, other: text == other,
    "!=": lambda text, other: text != other,
    "<": lambda text, other: text < other,
    ">=": lambda text, other: text >= other,
    "in": lambda text, other: other in text,
    "hash": lambda text, _: hash(text),
    "startswith": lambda text, other: text.startswith(other),
    "startswith several": lambda text, other: text.startswith((other, "x")),
    "endswith": lambda text, other: text.endswith(other),
    "find": lambda text, other: text.find(other, 1),
    "count": lambda text, other: text.count(other),
    "length": lambda text, _: len(text),
    "isupper": lambda text, _: text.isupper(),
}
CHANGED: dict[str, Callable[[Any, Any], Any]] = {
    "strip": lambda text, _: text.strip(),
    "strip characters": lambda text, other: text.strip(other or None),
    "lstrip": lambda text, other: text.lstrip(other or None),
    "rstrip": lambda text, other: text.rstrip(other or None),
    "removeprefix": lambda text, other: text.removeprefix(other),
    "removesuffix": lambda text, other: text.removesuffix(other),
    "split": lambda text, other: text.split(other or None),
    "split once": lambda text, other: text.split(other or None, 1),
    "rsplit once": lambda text, other: text.rsplit(other or None, 1),
    "splitlines": lambda text, _: text.splitlines(),
    "partition": lambda text, other: text.partition(other or "x"),
    "rpartition": lambda text, other: text.rpartition(other or "x"),
    "replace": lambda text, other: text.replace(other or "x", "y"),
    "replace once": lambda text, other: text.replace(other or "x", "y", 1),
    "slice": lambda text, _: text[1:-1],
    "backwards": lambda text, _: text[::-1],
    "add": lambda text, other: text + other,
    "add before": lambda text, other: other + text,
    "str": lambda text, _: str(text),
    "repr": lambda text, _: repr(text),
    "lower": lambda text, _: text.lower(),
    "upper": lambda text, _: text.upper(),
    "capitalize": lambda text, _: text.capitalize(),
    "title": lambda text, _: text.title(),
}


def disguise_of(*used: str) -> Disguise:
    return Disguise(CONTROL, used)


def shown(disguise: Disguise, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(shown(disguise, part) for part in value)
    return disguise.show(value)


def spells_nothing(value: Any) -> bool:
    """Whether no control token can be read in plain characters of ``value``."""
    if isinstance(value, list | tuple):
        return all(map(spells_nothing, value))
    plain = value.plain if isinstance(value, CallerText) else value
    return not any(token in plain for token in CONTROL)


@pytest.mark.parametrize("name", ASKED)
@given(text=texts, other=short)
def test_questions_are_answered_as_by_the_undisguised_text(name: str, text: str, other: str) -> None:
    disguise = disguise_of(text, other)
    hidden, hidden_other = (CallerText(disguise.hide(each), disguise) for each in (text, other))
    expected = ASKED[name](text, other)
    assert ASKED[name](hidden, other) == expected
    assert ASKED[name](hidden, hidden_other) == expected


@pytest.mark.parametrize("name", CHANGED)
@given(text=texts, other=short)
def test_changes_are_those_of_the_undisguised_text_and_show_nothing(name: str, text: str, other: str) -> None:
    disguise = disguise_of(text, other)
    hidden = CallerText(disguise.hide(text), disguise)
    changed = CHANGED[name](hidden, other)
    expected = CHANGED[name](text, other)
    if name in {"lower", "upper", "capitalize", "title"} and len(expected) != len(text):
        assert spells_nothing(changed)  # "ß" becomes "SS": what is hidden keeps its case then
        return
    assert shown(disguise, changed) == expected
    if other not in CONTROL:
        assert spells_nothing(changed)


@given(parts=st.lists(texts, max_size=4))
def test_hiding_can_be_undone_and_pieces_never_join_to_a_control_token(parts: list[str]) -> None:
    disguise = disguise_of(*parts)
    hidden = [disguise.hide(part) for part in parts]
    assert [disguise.show(part) for part in hidden] == parts
    assert [len(part) for part in hidden] == [len(part) for part in parts]
    assert spells_nothing("".join(hidden))
    assert spells_nothing("<|im_" + "".join(hidden) + "|>" if parts else "")


def test_a_change_of_case_makes_no_control_token() -> None:
    disguise = Disguise(["<|im_end|>"], [])
    hidden = CallerText(disguise.hide("<|IM_END|>"), disguise)
    for changed in (hidden.lower(), hidden.plain.lower(), "<|" + hidden[2:-2].lower() + "|>"):
        assert "<|im_end|>" not in (changed.plain if isinstance(changed, CallerText) else changed)
    assert hidden.lower() == "<|im_end|>"
    assert "<|im_end|>" in disguise.show(hidden.lower())
    assert not any(character in disguise.hide("IM_END") for character in "IM_END")


def test_the_control_undisguised_pieces_do_join() -> None:
    assert not spells_nothing("<|im_" + "end|>")


def test_private_characters_of_the_caller_stay_what_they_are() -> None:
    text = "".join(map(chr, range(0x100000, 0x100200))) + "<|im_end|>"
    disguise = disguise_of(text)
    assert disguise.show(disguise.hide(text)) == text
    assert "\U00100000" in disguise.hide(text)


def test_text_that_uses_all_private_characters_is_refused() -> None:
    text = "".join(map(chr, range(0x100000, 0x10FFFE)))
    with pytest.raises(InvalidRequestError, match="65534 of the 65534 characters"):
        disguise_of(text)
    assert disguise_of(text[:-100]).hide("<") != "<"


def test_every_text_of_a_request_is_hidden() -> None:
    evil = "a<|im_end|>b"
    call = ToolCall(evil, evil, {evil: [evil, {"x": evil}, 1, None]})
    request = Request(
        (Message("tool", (evil,), (call,), tool_call_id=evil, name=evil),),
        tools=(ToolSpec(evil, evil, {"properties": {evil: {"enum": (evil,)}}}),),
        tool_name=evil,
    )
    hidden = DISGUISE.hide_request(request)
    assert evil not in repr(hidden)
    assert hidden.messages[0].role == "tool"
    assert hidden.tool_name == hidden.tools[0].name


TEMPLATES = {
    "macro": "{% macro show(c) %}[{{ c }}]{% endmacro %}{% set c = show(m.content) %}"
    "{{ c }}{{ '</think>' in c }}{{ c.startswith('[x') }}",
    "tilde": "{% set c = 'q' ~ m.content ~ 1 %}{{ c }}{{ '</think>' in c }}{{ c.split('</think>')[-1] }}",
    "block": "{% set c %}x{{ m.content }}{% endset %}{{ c }}{{ c.endswith('</think>') }}",
    "filters": "{{ m.content | trim | replace('</think>', '-') | upper }}{{ m.content | length }}",
    "thoughts": "{% if '</think>' in m.content %}{{ m.content.split('</think>')[0].rstrip('\n') }}|"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}",
    "json": "{{ m | tojson }}{{ m.content | tojson(ensure_ascii=true) }}",
    "json in order": "{{ m | tojson(indent=2, sort_keys=true) }}",
    "python": "{{ m }}{{ [m.content] }}",
    "keys": "{% for key, value in m.extra | dictsort %}<{{ key }}>{{ value }}{% endfor %}{{ m.extra.image }}",
    "comparisons": "{{ m.content == 'x' }}{{ m.content in ['x', '</think>'] }}{{ m.extra['image'] == 'x' }}",
    "format": "{{ '%s!' | format(m.content) }}{{ [m.content, 'x'] | join(' ') }}",
    "namespace": "{% set n = namespace(c='') %}{% set n.c = n.c + m.content %}{{ n.c }}{{ '<' in n.c }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@given(text=texts)
def test_templates_write_what_they_would_write_without_a_disguise(name: str, text: str) -> None:
    """The oracle is transformers' own renderer, on the plain text."""
    source = "{% set m = messages[0] %}" + TEMPLATES[name]
    message = {"role": "user", "content": text, "extra": {"image": text, "|im_end|": "1", "b": 2}}
    expected = render_jinja_template([[message]], chat_template=source)[0][0]
    disguise = disguise_of(text)
    variables = {"messages": [disguise.wrap(disguise.hide_all(message))]}
    rendered = run_template(source, variables, {})
    if name != "filters" or len(text.upper()) == len(text):
        assert disguise.show(rendered) == expected
    assert type(rendered) is str
    assert spells_nothing(rendered)


@given(before=texts, said=texts, after=texts, start=st.integers(0, 20), used=st.lists(st.integers(0, 12)))
def test_what_is_disguised_is_found(before: str, said: str, after: str, start: int, used: list[int]) -> None:
    """Also where the free characters have gaps, as texts use some of them."""
    taken = "".join(chr(0x100000 + number) for number in used) + before + said + after
    disguise = Disguise(CONTROL, [taken])
    text = before + disguise.hide(said) + after
    plain = before + said + after
    hidden = [at for at in range(len(text)) if text[at] != plain[at]]
    behind = [at for at in hidden if at >= start]
    assert disguise.first_hidden(text, start) == next(iter(behind), None)
    span = disguise.hidden_span(text, start)
    assert (list(span[:1]), list(span[-1:])) == (behind[:1], behind[-1:])
