"""Text of the caller, disguised: a chat template sees all of it and can make no control token of it.

A template joins the caller's text and its own, so afterwards nobody could say whose ``<|im_end|>`` is whose.
Therefore every character of the caller's that also stands in some control token is exchanged, one for one,
for a private one before the template is rendered, and back when the text is tokenized. What spells a control
token in between was written by the template; no trimming, splitting or joining can change that.

Templates also look into text ("does it start with <tool_response>?"). ``CallerText`` answers them as the
undisguised text would, so that a prompt is worded as if there were no disguise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any, Self

from sgl_engine.chat.interruptible import bound_operators, check_size
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Message, Request, ToolCall, ToolSpec

_PRIVATE = range(0x100000, 0x10FFFE)
"""Code points of the last plane for private use: no letters, no case, no space, not escaped in JSON."""

_KEPT = frozenset('"\\')  # JSON writes them in another way; no control token consists of them alone


class Disguise:
    """Exchanges characters for private ones, and back.

    Args:
        control: The control tokens' texts.
        used: Texts whose private characters cannot be taken.

    Raises:
        InvalidRequestError: The texts use nearly all private characters.
    """

    def __init__(self, control: Iterable[str], used: Iterable[str]) -> None:
        alphabet = sorted(_with_other_case(set("".join(control)) - _KEPT))
        taken = {ord(character) for text in used for character in set(text) if ord(character) in _PRIVATE}
        free = list(islice((code for code in _PRIVATE if code not in taken), len(alphabet)))
        if len(free) < len(alphabet):
            raise InvalidRequestError(
                f"The text uses {len(taken)} of the {len(_PRIVATE)} characters U+100000 to U+10FFFD; at most "
                f"{len(_PRIVATE) - len(alphabet)} can be used.",
                remedy="Send text: these characters have no meaning.",
            )
        self._hiding = {ord(character): code for character, code in zip(alphabet, free, strict=True)}
        self._showing = {code: character for character, code in self._hiding.items()}
        self._hidden = re.compile(f"[{''.join(map(chr, free))}]") if free else re.compile(r"(?!)")

    def hide(self, text: str) -> str:
        """The text, disguised; as long as before."""
        return text.translate(self._hiding)

    def show(self, text: str) -> str:
        """The text, undisguised; as long as before."""
        return str.translate(text, self._showing) if self.first_hidden(text) is not None else text

    def first_hidden(self, text: str, start: int = 0, end: int | None = None) -> int | None:
        """Position of the first disguised character from ``start`` on and before ``end``, or None."""
        found = self._hidden.search(text, start, len(text) if end is None else end)
        return None if found is None else found.start()

    def wrap(self, value: Any) -> Any:
        """Plain data whose disguised strings answer a template as undisguised ones would."""
        return _map_strings(
            lambda text: text if self.first_hidden(text) is None else CallerText(text, self), value
        )

    def hide_all(self, value: Any) -> Any:
        """Plain data with every string in it disguised."""
        return _map_strings(self.hide, value)

    def hide_request(self, request: Request) -> Request:
        """The request with every text that a prompt can hold disguised; roles and choices are ours."""
        return replace(
            request,
            messages=tuple(self._hide_message(message) for message in request.messages),
            tools=tuple(
                ToolSpec(self.hide(tool.name), self.hide(tool.description), self.hide_all(tool.parameters))
                for tool in request.tools
            ),
            tool_name=None if request.tool_name is None else self.hide(request.tool_name),
        )

    def _hide_message(self, message: Message) -> Message:
        calls = (
            ToolCall(self.hide(call.id), self.hide(call.name), self.hide_all(call.arguments))
            for call in message.tool_calls
        )
        return replace(
            message,
            content=tuple(self.hide(part) if isinstance(part, str) else part for part in message.content),
            tool_calls=tuple(calls),
            tool_call_id=None if message.tool_call_id is None else self.hide(message.tool_call_id),
            name=None if message.name is None else self.hide(message.name),
            reasoning=None if message.reasoning is None else self.hide(message.reasoning),
        )


def write_json(dump: Callable[..., str]) -> Callable[..., str]:
    """A filter that writes as JSON what ``dump`` does of the undisguised data, and disguises all of it."""

    def write(value: Any, *args: Any, **settings: Any) -> str:
        found: list[Disguise] = []
        shown = _map_strings(lambda text: _shown(text, found), value)
        text = dump(shown, *args, **settings)
        return CallerText(found[0].hide(text), found[0]) if found else text

    return write


def _shown(text: str, found: list[Disguise]) -> str:
    """The text, undisguised; its disguise is added to ``found``."""
    if not isinstance(text, CallerText):
        return text
    found.append(text.disguise)
    return text.shown


def _map_strings(change: Callable[[str], str], value: Any) -> Any:
    """Plain data with each string in it, keys too, changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(change, key): _map_strings(change, item) for key, item in value.items()}
    return [_map_strings(change, item) for item in value] if isinstance(value, list | tuple) else value


def _with_other_case(alphabet: set[str]) -> set[str]:
    """``alphabet`` without space, and each letter in both cases: some templates change it."""
    cases = {form for letter in alphabet for form in (letter, letter.lower(), letter.upper())}
    return {letter for letter in cases if len(letter) == 1 and not letter.isspace()}


class CallerText(str):
    """Disguised text that compares, searches and splits like what it hides.

    Its characters are the disguised ones, so whatever is not written out below (``%``, a filter that joins)
    yields disguised text too: it may then answer wrongly, but it never shows anything.
    """

    __slots__ = ("disguise",)
    disguise: Disguise

    def __new__(cls, text: str, disguise: Disguise) -> Self:
        """``text`` is disguised, at least in part."""
        self = super().__new__(cls, text)
        self.disguise = disguise
        return self

    @property
    def plain(self) -> str:
        """Its characters as a plain string, still disguised."""
        return str.__getitem__(self, slice(None))

    @property
    def shown(self) -> str:
        """What it hides."""
        return self.disguise.show(self.plain)

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return self.disguise.hide(repr(self.shown))

    def __add__(self, other: str) -> CallerText:
        return CallerText(f"{self}{other}", self.disguise)

    def __radd__(self, other: str) -> CallerText:
        return CallerText(f"{other}{self}", self.disguise)

    def __getitem__(self, key: Any) -> CallerText:
        return CallerText(super().__getitem__(key), self.disguise)

    def strip(self, chars: str | None = None, /) -> CallerText:
        """Without ``chars`` at both ends."""
        return self.rstrip(chars).lstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> CallerText:
        """Without ``chars`` at the beginning."""
        return self[len(self) - len(self.shown.lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> CallerText:
        """Without ``chars`` at the end."""
        return self[: len(self.shown.rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> CallerText:
        """Without ``prefix``."""
        return self[len(self) - len(self.shown.removeprefix(str(prefix))) :]

    def removesuffix(self, suffix: str, /) -> CallerText:
        """Without ``suffix``."""
        return self[: len(self.shown.removesuffix(str(suffix)))]

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[Any]:
        """The parts between ``sep``; white space is never disguised."""
        if sep is None:
            return [CallerText(part, self.disguise) for part in super().split(None, maxsplit)]
        return self._cut(self.shown.split(self._show(sep), maxsplit), len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[Any]:
        """As ``split``, from the end."""
        if sep is None:
            return [CallerText(part, self.disguise) for part in super().rsplit(None, maxsplit)]
        return self._cut(self.shown.rsplit(self._show(sep), maxsplit), len(sep))

    def splitlines(self, keepends: Any = False) -> list[Any]:  # noqa: FBT002  # as in str
        """The lines."""
        return [CallerText(line, self.disguise) for line in super().splitlines(keepends)]

    def partition(self, sep: str, /) -> tuple[Any, Any, Any]:
        """What is before, at and after the first ``sep``."""
        before, at, after = self._cut(self.shown.partition(self._show(sep)), 0)
        return before, at, after

    def rpartition(self, sep: str, /) -> tuple[Any, Any, Any]:
        """What is before, at and after the last ``sep``."""
        before, at, after = self._cut(self.shown.rpartition(self._show(sep)), 0)
        return before, at, after

    def replace(self, old: str, new: str, /, count: Any = -1) -> CallerText:
        """With ``new`` for ``old``."""
        parts = self.split(old, count) if old else [super().replace(old, new, count)]
        return CallerText(str.join(new, parts), self.disguise)

    def _cut(self, pieces: Sequence[str], gap: int) -> list[CallerText]:
        """Parts of this text that are as long as ``pieces``, with ``gap`` characters left out in between."""
        found, start = [], 0
        for piece in pieces:
            found.append(self[start : start + len(piece)])
            start += len(piece) + gap
        return found

    def _show(self, value: Any) -> Any:
        """The undisguised form of an argument; tuples are those of ``startswith``."""
        if isinstance(value, tuple):
            return tuple(map(self._show, value))
        return self.disguise.show(value) if isinstance(value, str) else value


def _asking(name: str) -> Callable[..., Any]:
    """A method that answers as the undisguised text does."""

    def ask(self: CallerText, *args: Any) -> Any:
        return getattr(self.shown, name)(*map(self._show, args))

    return ask


def _recasing(name: str) -> Callable[..., Any]:
    """A method that changes case: of what is hidden too, unless that changes the text's length."""

    def recase(self: CallerText) -> CallerText:
        changed = getattr(self.shown, name)()
        if len(changed) != len(self):
            return CallerText(getattr(str, name)(self), self.disguise)
        hidden = self.disguise.first_hidden
        pairs = zip(str.__iter__(self), changed, strict=True)
        parts = (new if hidden(old) is None else self.disguise.hide(new) for old, new in pairs)
        return CallerText("".join(parts), self.disguise)

    return recase


for _name in (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__contains__"),
    *("startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
    *("isalpha", "isalnum", "isdigit", "isdecimal", "isnumeric", "islower", "isupper", "istitle"),
    *("isascii", "isidentifier", "isprintable"),
):
    setattr(CallerText, _name, _asking(_name))

for _name in ("lower", "upper", "casefold", "capitalize", "title", "swapcase"):
    setattr(CallerText, _name, _recasing(_name))

_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})  # only the conversation's


def run_template(source: str, variables: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Renders a template; what was disguised still is, in a plain string.

    Args:
        source: The template.
        variables: ``messages``, ``tools`` and whatever else it is given; strings may be ``CallerText``.
        arguments: The caller's own, which win over ``variables``.

    Raises:
        InvalidRequestError: An argument has the name of a variable that only the conversation can set.
    """
    wrong = sorted(_OURS.intersection(arguments))
    if wrong:
        raise InvalidRequestError(
            f"chat_template_kwargs sets {', '.join(wrong)}, which the conversation sets.",
            remedy="Leave it out; messages and tools are fields of the request.",
        )
    rendered: str = _compile(source).render({"documents": None, **variables, **arguments})
    return rendered.plain if isinstance(rendered, CallerText) else rendered


@lru_cache(maxsize=64)
def literals(source: str) -> str:
    """All text that a template can write by itself, in pieces with a null character in between."""
    from jinja2 import nodes

    tree = _compile(source).environment.parse(source)
    data = {node.data for node in tree.find_all(nodes.TemplateData)}
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(data | constants))


@lru_cache(maxsize=64)
def _compile(source: str) -> Any:
    """The template in transformers' environment, but that joined text stays ``CallerText``."""
    from jinja2.compiler import CodeGenerator
    from transformers.utils import chat_template_utils

    class Generator(CodeGenerator):
        """Writes ``~`` so that the environment joins its operands."""

        def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802  # jinja2's name
            """``a ~ b``."""
            self.write("environment.concat((")
            for operand in node.nodes:
                self.write("str(")
                self.visit(operand, frame)
                self.write("), ")
            self.write("))")

    # transformers' own renderer takes every string apart, so only its environment is used (no public way). Of
    # an empty template: compiling works out what is constant, and would do so before anything is bounded.
    environment = chat_template_utils._compile_jinja_template("").environment.overlay()  # noqa: SLF001
    environment.concat = _join
    bound_operators(environment)
    environment.code_generator_class = Generator
    environment.filters = {**environment.filters, "tojson": write_json(environment.filters["tojson"])}
    return environment.from_string(source)


def _join(parts: Iterable[str]) -> str:
    """``"".join``, except that what holds text of the caller's goes on answering as such."""
    parts = list(parts)
    check_size(sum(map(len, parts)))
    disguised = next((part for part in parts if isinstance(part, CallerText)), None)
    return "".join(parts) if disguised is None else CallerText("".join(parts), disguised.disguise)
