"""How an answer that a grammar constrains can end from here: the search for a short rest, in bytes.

The search runs on a copy of the grammar over single bytes, whatever the model's tokenizer: a state then has
at most 256 successors, and one step costs microseconds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

END = 256
"""The end-of-sequence token of the byte grammar; its other tokens are the bytes."""

_USUAL_BYTES = 512
_MAX_BYTES = 4096
_LONG_VALUE_BYTES = 48
_DELIMITERS = b'"}],:'
_BEAM_WIDTH = 24
# More successors than that means the inside of a string, or free text: JSON's own grammar has fewer.
_FEW = 32
# Where there are few successors: what ends something comes first, what begins something last.
_STRUCTURE = b'}]",1234567890ntfabcdeghijklmopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_[{'
_CONTENT = bytes(dict.fromkeys(b"a01AZ-@.:/ " + bytes(range(0x21, 0x7F)).translate(None, b'\\"')))
_QUOTE, _SPACE = ord('"'), ord(" ")


@functools.cache
def byte_tokenizer() -> LLTokenizer:
    """A tokenizer with one token per byte, and ``END``."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=END + 1, eos_token=END, slices=[])


class _Bytes:
    """What llguidance asks of a tokenizer."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def closes(matcher: LLMatcher, rest: bytes) -> bool:
    """Whether the grammar takes ``rest`` from here, and may end behind it."""
    tokens = [*rest, END]
    return bool(matcher.validate_tokens(tokens) == len(tokens))


def find_closings(
    matcher: LLMatcher, *, known: bytes = b"", hints: Sequence[bytes] = (), max_steps: int
) -> Iterator[bytes]:
    """Ways to end, the quickly found first; none where the search gives up.

    Args:
        matcher: A grammar over ``byte_tokenizer()``, somewhere; left as it is.
        known: What ended the answer from a little before; its last part often still does.
        hints: How values may go on and end that are hard to end (``sgl_engine.decoding.example_text``).
        max_steps: How much to search; a step takes some microseconds, with hard patterns more.

    Yields:
        What follows from always taking the likeliest end of each value, then what a search for the shortest
        finds: for patterns and recursion, where the first never ends or takes a long way.
    """
    quick = _value_by_value(matcher, known=known, hints=hints, max_bytes=_USUAL_BYTES, max_steps=max_steps)
    if quick is not None:
        yield quick
    if quick == b"":
        return
    found = _search(matcher, max_steps=max_steps, max_bytes=_MAX_BYTES if quick is None else len(quick) - 1)
    if found is None and quick is None:
        found = _value_by_value(matcher, known=known, hints=hints, max_bytes=_MAX_BYTES, max_steps=max_steps)
    if found is not None:
        yield found


def _value_by_value(
    matcher: LLMatcher, *, known: bytes, hints: Sequence[bytes], max_bytes: int, max_steps: int
) -> bytes | None:
    """The likeliest end of each value, or, where that goes on and on, the shortest."""
    state, rest = matcher.deep_copy(), b""
    while not state.is_accepting():
        if (end := _last_part(state, known)) is not None:
            return rest + end
        value = (
            _follow(state, max_bytes=_LONG_VALUE_BYTES)
            or _hinted(state, hints)
            or _search(state, max_steps=max_steps, max_bytes=max_bytes, ends=_DELIMITERS)
            or _follow(state, max_bytes=max_bytes)
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


def _hinted(matcher: LLMatcher, hints: Sequence[bytes]) -> bytes | None:
    """The shortest end of a hint that may follow; the string may stand at its beginning or within."""
    ends = (hint[at:] for hint in hints for at in range(len(hint) - 1, -1, -1))
    return next((end for end in ends if matcher.validate_tokens(list(end)) == len(end)), None)


def _follow(matcher: LLMatcher, *, max_bytes: int) -> bytes | None:
    """The likeliest bytes up to a delimiter, or to the end; None where neither comes."""
    state, value = matcher.deep_copy(), bytearray()
    while len(value) < max_bytes:
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


def _search(matcher: LLMatcher, *, max_steps: int, max_bytes: int, ends: bytes = b"") -> bytes | None:
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
                following = state.matcher.deep_copy()
                if steps > max_steps:
                    return None
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
