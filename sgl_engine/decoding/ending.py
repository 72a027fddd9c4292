"""How an answer that a grammar constrains can end from here: the search for a short rest, in bytes.

The search runs on a copy of the grammar over single bytes, whatever the model's tokenizer: a state then has
at most 256 successors, and one step costs microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_engine.chat.grammar_probe import END

if TYPE_CHECKING:
    from llguidance import LLMatcher

_USUAL_BYTES = 512
_MAX_BYTES = 4096
_LONG_VALUE_BYTES = 48
_DELIMITERS = b'"}],:'
_BEAM_WIDTH = 24
_BYTES_A_STEP = 8  # of a hint: they are only looked at, and nothing is copied
# More successors than that means the inside of a string, or free text: JSON's own grammar has fewer.
_FEW = 32
# Where there are few successors: what ends something comes first, what begins something last.
_STRUCTURE = b'}]",1234567890ntfabcdeghijklmopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_[{'
_CONTENT = bytes(dict.fromkeys(b"a01AZ-@.:/ " + bytes(range(0x21, 0x7F)).translate(None, b'\\"')))
_QUOTE, _SPACE = ord('"'), ord(" ")


def closes(matcher: LLMatcher, rest: bytes) -> bool:
    """Whether the grammar takes ``rest`` from here, and may end behind it."""
    tokens = [*rest, END]
    return bool(matcher.validate_tokens(tokens) == len(tokens))


def find_closings(
    matcher: LLMatcher,
    *,
    known: bytes = b"",
    hints: Sequence[bytes] = (),
    max_steps: int,
    allowance: Allowance | None = None,
) -> Iterator[bytes]:
    """Ways to end, the quickly found first; none where the search gives up.

    Args:
        matcher: A grammar over ``byte_tokenizer()``, somewhere; left as it is.
        known: What ended the answer from a little before; its last part often still does.
        hints: How values may go on and end that are hard to end (``sgl_engine.decoding.example_text``).
        max_steps: How much one search may be; a step takes some microseconds, with hard patterns more.
        allowance: What is left for this and other calls; None is without end.

    Yields:
        What follows from always taking the likeliest end of each value, then what a search for the shortest
        finds: for patterns and recursion, where the first never ends or takes a long way.

    Raises:
        SpentError: The allowance is spent.
    """
    effort = _Effort(hints, max_steps, Allowance() if allowance is None else allowance)
    quick = _value_by_value(matcher, effort, known=known, max_bytes=_USUAL_BYTES)
    if quick is not None:
        yield quick
    if quick == b"":
        return
    found = _search(matcher, effort, max_bytes=_MAX_BYTES if quick is None else len(quick) - 1)
    if found is None and quick is None:
        found = _value_by_value(matcher, effort, known=known, max_bytes=_MAX_BYTES)
    if found is not None:
        yield found


class SpentError(Exception):
    """An allowance is spent."""


class Allowance:
    """Steps that may be taken in all, by any number of searches.

    Args:
        steps: How many.
        still_wanted: Called before every step; what it raises ends the search.
    """

    def __init__(self, steps: int = 2**62, still_wanted: Callable[[], None] = lambda: None) -> None:
        self._left = steps
        self._still_wanted = still_wanted

    def spend(self, steps: int = 1) -> None:
        """Takes steps off.

        Raises:
            SpentError: There are not as many.
        """
        self._still_wanted()
        if steps > self._left:
            raise SpentError
        self._left -= steps


@dataclass(frozen=True)
class _Effort:
    """What the parts of one call share: hints, steps of one search, and steps in all."""

    hints: Sequence[bytes]
    max_steps: int
    allowance: Allowance


def _value_by_value(matcher: LLMatcher, effort: _Effort, *, known: bytes, max_bytes: int) -> bytes | None:
    """The likeliest end of each value, or, where that goes on and on, the shortest."""
    state, rest = matcher.deep_copy(), b""
    while not state.is_accepting():
        if (end := _last_part(state, known)) is not None:
            return rest + end
        value = (
            _follow(state, effort, max_bytes=_LONG_VALUE_BYTES)
            or _hinted(state, effort)
            or _search(state, effort, max_bytes=max_bytes, ends=_DELIMITERS)
            or _follow(state, effort, max_bytes=max_bytes)
        )
        if not value or len(rest) + len(value) > max_bytes:
            return None
        state.consume_tokens(list(value))
        rest += value
    return rest


def _last_part(matcher: LLMatcher, known: bytes) -> bytes | None:
    """The shortest part of ``known`` that starts at a delimiter, goes up to its end, and ends the answer."""
    starts = (at for at in range(len(known) - 1, -1, -1) if known[at] in _DELIMITERS)
    return next((known[at:] for at in starts if closes(matcher, known[at:])), None)


def _hinted(matcher: LLMatcher, effort: _Effort) -> bytes | None:
    """The shortest end of a hint that may follow; the string may stand at its beginning or within."""
    for hint in effort.hints:
        for at in range(len(hint) - 1, -1, -1):
            taken = matcher.validate_tokens(list(hint[at:]))
            effort.allowance.spend(1 + taken // _BYTES_A_STEP)
            if taken == len(hint) - at:
                return hint[at:]
    return None


def _follow(matcher: LLMatcher, effort: _Effort, *, max_bytes: int) -> bytes | None:
    """The likeliest bytes up to a delimiter, or to the end; None where neither comes."""
    state, value = matcher.deep_copy(), bytearray()
    while len(value) < max_bytes:
        effort.allowance.spend()
        allowed = _allowed(state)
        byte = _preferred(allowed)
        if byte is None or not state.consume_token(byte):
            return None
        value.append(byte)
        if (byte in _DELIMITERS and not _is_content(allowed, byte)) or state.is_accepting():
            return bytes(value)
    return None


def _preferred(allowed: int) -> int | None:
    count = allowed.bit_count()
    if count <= 1:
        return allowed.bit_length() - 1 if count else None
    if count > _FEW and _has(allowed, _QUOTE):
        return _QUOTE
    order = _STRUCTURE if count <= _FEW else _CONTENT
    named = next((byte for byte in order if _has(allowed, byte)), None)
    return allowed.bit_length() - 1 if named is None else named


@dataclass(frozen=True)
class _State:
    """A state of the search.

    Attributes:
        matcher: Where the grammar stands.
        rest: How it came there.
        shape: The same with everything replaced that is as good as another: digits, content of strings.
        depth: Brackets that ``rest`` opens, less those it closes.
        allowed: What may follow, one bit per byte.
    """

    matcher: Any
    rest: bytes
    shape: bytes
    depth: int
    allowed: int


def _search(matcher: LLMatcher, effort: _Effort, *, max_bytes: int, ends: bytes = b"") -> bytes | None:
    """The shortest way to an end of the answer, or to one of the bytes ``ends``.

    Breadth first, so shortest first; states that look the same are one, and the deepest are given up.
    """
    states = [_State(matcher.deep_copy(), b"", b"", 0, _allowed(matcher))]
    steps = 0
    for _ in range(max_bytes):
        found: dict[tuple[int, bytes], _State] = {}
        for state in states:
            for byte in _successors(state.allowed):
                steps += 1
                if steps > effort.max_steps:
                    return None
                effort.allowance.spend()
                following = state.matcher.deep_copy()
                if not following.consume_token(byte):
                    continue
                if (byte in ends and not _is_content(state.allowed, byte)) or following.is_accepting():
                    return state.rest + bytes([byte])
                reached = _reached(state, byte, following)
                found.setdefault((reached.allowed, reached.shape), reached)
        states = sorted(found.values(), key=lambda state: state.depth)[:_BEAM_WIDTH]
    return None


def _reached(state: _State, byte: int, matcher: LLMatcher) -> _State:
    content = _is_content(state.allowed, byte)
    opened = 0 if content else (byte in b"[{") - (byte in b"]}")
    alike = b"\0" if content else b"0" if byte in b"0123456789" else bytes([byte])
    rest = state.rest + bytes([byte])
    return _State(matcher, rest, state.shape + alike, state.depth + opened, _allowed(matcher))


def _successors(allowed: int) -> list[int]:
    """The bytes that are worth trying."""
    if allowed.bit_count() <= _FEW:
        every = _bits(allowed)
        return [byte for byte in every if byte != _SPACE] or every
    if _has(allowed, _QUOTE):
        return [_QUOTE]
    named = [byte for byte in _CONTENT if _has(allowed, byte)]
    # Beyond ASCII any byte is as good as the next: it is the first or a later one of some character.
    return named or [allowed.bit_length() - 1]


def _allowed(matcher: LLMatcher) -> int:
    """What may follow, one bit per byte; 0 where nothing may."""
    if matcher.is_stopped():
        return 0
    return int.from_bytes(matcher.compute_bitmask()[:32], "little")


def _is_content(allowed: int, byte: int) -> bool:
    """Whether ``byte`` stands for itself inside a string."""
    return allowed.bit_count() > _FEW and byte != _QUOTE


def _bits(allowed: int) -> list[int]:
    found = []
    while allowed:
        found.append((allowed & -allowed).bit_length() - 1)
        allowed &= allowed - 1
    return found


def _has(allowed: int, byte: int) -> bool:
    return bool(allowed >> byte & 1)
