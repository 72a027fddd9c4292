"""Regular expressions -> a short text that matches, as a hint for the search for a way to end a string.

Nothing here is matched against a caller's pattern: ``re`` goes back and forth, and some patterns keep it busy
for ever. A pattern is taken apart, and a text put together from its parts; whether that matches llguidance
says, which reads every character once.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from typing import Any

_CANDIDATES = "a0A1 -_.:/@" + "".join(map(chr, range(0x21, 0x7F))) + "éÄß€ \n"
_FORMATS = {
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a",
    "ipv4": "0.0.0.0",  # noqa: S104  # an example, not an address to bind to
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "uri": "a:a",
}
# A hint is tried at every place in it, wherever a value has to end.
_MAX_CHARACTERS = 512
_MAX_BYTES = 16_384
_SETTING = re.compile(r'"(pattern|format)": ("(?:[^"\\]|\\.)*")')


def hints(grammar: str) -> tuple[bytes, ...]:
    """How strings may go on and end that a grammar's schemas bind to a pattern or a format.

    Args:
        grammar: From ``sgl_engine.chat.grammar``; its schemas are JSON.

    Returns:
        Texts in UTF-8, escaped for JSON, closing quote included.
    """
    found: dict[bytes, None] = {}
    total = 0
    for keyword, quoted in dict.fromkeys(setting.groups() for setting in _SETTING.finditer(grammar)):
        value = json.loads(quoted)
        text = short_match(value) if keyword == "pattern" else _FORMATS.get(value)
        if text is not None:
            hint = json.dumps(text, ensure_ascii=False)[1:].encode("utf-8", "replace")
            total += len(hint)
            found[hint] = None
        if total > _MAX_BYTES:
            break
    return tuple(found)


def short_match(pattern: str) -> str | None:
    """A short text that ``pattern`` should be found in; None where the pattern is too much for this.

    Repetitions are taken as seldom as allowed, and of alternatives the shortest.
    """
    parser: Any = importlib.import_module("re._parser")  # what re itself reads patterns with
    try:
        return _sequence(parser.parse(pattern))
    except (re.error, KeyError, StopIteration, OverflowError, RecursionError, Warning):
        return None


def _sequence(parts: Any) -> str:
    """The text of parts that follow each other; OverflowError where it is long."""
    text = ""
    for kind, value in parts:
        text += _part(str(kind), value)
        _check_length(len(text))
    return text


def _repeated(parts: Any, times: int) -> str:
    text = _sequence(parts)
    _check_length(len(text) * times)  # before it is written
    return text * times


def _check_length(characters: int) -> None:
    if characters > _MAX_CHARACTERS:
        raise OverflowError


def _part(kind: str, value: Any) -> str:
    """One part of a parsed pattern; KeyError for one without a match here (back references, look-around)."""
    simple: dict[str, Callable[[], str]] = {
        "LITERAL": lambda: chr(value),
        "NOT_LITERAL": lambda: _member(lambda text: text != chr(value)),
        "ANY": lambda: "a",
        "AT": lambda: "",
        "IN": lambda: _member(lambda text: _is_in(value, text)),
        "BRANCH": lambda: min((_sequence(option) for option in value[1]), key=len),
        "SUBPATTERN": lambda: _sequence(value[-1]),
        "MAX_REPEAT": lambda: _repeated(value[2], value[0]),
        "MIN_REPEAT": lambda: _repeated(value[2], value[0]),
    }
    return simple[kind]()


def _member(allowed: Callable[[str], bool]) -> str:
    return next(text for text in _CANDIDATES if allowed(text))


def _is_in(members: Any, text: str) -> bool:
    categories = {
        "CATEGORY_DIGIT": r"[0-9]",
        "CATEGORY_NOT_DIGIT": r"[^0-9]",
        "CATEGORY_SPACE": r"\s",
        "CATEGORY_NOT_SPACE": r"\S",
        "CATEGORY_WORD": r"\w",
        "CATEGORY_NOT_WORD": r"\W",
    }
    inside, negated = False, False
    for kind, value in members:
        name = str(kind)
        negated = negated or name == "NEGATE"
        inside = (
            inside
            or (name == "LITERAL" and text == chr(value))
            or (name == "RANGE" and value[0] <= ord(text) <= value[1])
            or (name == "CATEGORY" and re.match(categories[str(value)], text, re.ASCII) is not None)
        )
    return inside != negated
