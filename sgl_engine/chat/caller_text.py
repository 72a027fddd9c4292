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
from itertools import islice
from typing import Any, Self

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
        hidden = f"[{_ranges(free)}]" if free else "(?!)"
        self._hidden, self._last = re.compile(hidden), re.compile(f"(?s:.*){hidden}")

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

    def hidden_span(self, text: str, start: int = 0) -> range:
        """From the first disguised character, from ``start`` on, to the last; empty where there is none."""
        first, last = self.first_hidden(text, start), self._last.match(text, start)
        return range(0) if first is None or last is None else range(first, last.end())

    def wrap(self, value: Any) -> Any:
        """Plain data whose disguised strings answer a template as undisguised ones would."""
        return _map_strings(
            lambda text: (
                text
                if isinstance(text, CallerText) or self.first_hidden(text) is None
                else CallerText(text, self)
            ),
            value,
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
        calls = message.tool_calls
        return replace(
            message,
            content=tuple(self.hide(part) if isinstance(part, str) else part for part in message.content),
            tool_calls=tuple(
                ToolCall(self.hide(c.id), self.hide(c.name), self.hide_all(c.arguments)) for c in calls
            ),
            tool_call_id=self.hide_all(message.tool_call_id),
            name=self.hide_all(message.name),
            reasoning=self.hide_all(message.reasoning),
        )


def _ranges(codes: Sequence[int]) -> str:
    """Ascending code points as the inside of a character class."""
    # Searched 40 times as fast as a list of them: outside of the basic plane, re compares one by one.
    runs: list[list[int]] = []
    for code in codes:
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


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

    def joined(self, parts: Sequence[str]) -> CallerText:
        """All of ``parts``, of which it is one, in one text."""
        return CallerText("".join(parts), self.disguise)

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
