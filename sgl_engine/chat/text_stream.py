"""Tokens, as they come -> text that is final."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HALF = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode the first bytes of a character to, while its last ones are still to come."""
OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""Around a tool call (``chat.tool_calls``)."""
_CALL = re.compile(f"{OPEN}.*?(?:{CLOSE}|$)", re.DOTALL)


@dataclass(frozen=True)
class TextDelta:
    """A piece of the answer, in order; the pieces of a stream join to ``Response.text``."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the thoughts, in order; the pieces of a stream join to ``Response.reasoning``."""

    text: str


class ReasoningText(str):
    """Text of thoughts, where text of the answer could be expected as well."""

    __slots__ = ()


_WINDOW = 16
"""Tokens before the new ones that are decoded with them: their text depends on a few neighbours."""
_FIRST_LOOK = 64


class RunningText:
    """Tokens so far -> their text, which takes as long for the last token as for the first.

    Only the last tokens are decoded. Each time when there are twice as many as at the time before, all of
    them are: should their text ever differ from what was put together, they are from then on.

    Args:
        decode: Tokens -> text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._begin = 0  # of the window
        self._text = self._window = ""  # of the tokens up to the window's end when it was moved, and its own
        self._move_at, self._look_at = 2 * _WINDOW, _FIRST_LOOK
        self._is_local = True

    def __call__(self, ids: Sequence[int]) -> str:
        """Takes all tokens so far, which only grow; returns their text."""
        tail = self._decode(ids[self._begin :])
        text = self._text + tail[len(self._window) :]
        self._is_local = self._is_local and tail.startswith(self._window)
        if self._is_local and len(ids) >= self._look_at:
            self._look_at = 2 * len(ids)
            self._is_local = text == self._decode(ids)
        if not self._is_local:
            return self._decode(ids)
        if len(ids) - self._begin >= self._move_at and not text.endswith(HALF):
            self._move(ids, text)
        return text

    def _move(self, ids: Sequence[int], text: str) -> None:
        """Begins the window later, at a token with which a character begins."""
        for begin in range(len(ids) - _WINDOW, len(ids) - 2 * _WINDOW, -1):
            window = self._decode(ids[begin:])
            if text.endswith(window):
                self._begin, self._text, self._window = begin, text, window
                self._move_at = 2 * _WINDOW + len(ids) - _WINDOW - begin
                return
        self._move_at *= 2


class TextStream:
    """Tokens so far -> the text that is final: no half characters, nothing that may become a stop string.

    Args:
        decode: Tokens -> text.
        stop: Strings that end the text.
        with_calls: Whether the text may hold tool calls, inside which stop strings mean nothing.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], *, with_calls: bool = False
    ) -> None:
        self._decode = decode
        self._with_calls = with_calls
        self._searches = [_Search(string) for string in stop if string]
        self._searched = ""
        self._sent = 0
        self.text = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """Takes all tokens so far; returns the text that is newly final."""
        self.text = self._decode(ids)
        whole = self.text.rstrip(HALF)
        self._search(_CALL.sub(lambda call: "\0" * len(call[0]), whole) if self._with_calls else whole)
        found = [search.found for search in self._searches if search.found is not None]
        if found:
            self.stopped = True
            self.text = self.text[: min(found)]
            return self.flush()
        held = max((search.matched for search in self._searches), default=0)
        return self._send(len(whole) - held)

    def flush(self, *, cut_off: bool = False) -> str:
        """Everything that was held back; of a text that was cut off within a character, whole ones only."""
        if cut_off:
            self.text = self.text.rstrip(HALF)
        return self._send(len(self.text))

    def _send(self, upto: int) -> str:
        delta = self.text[self._sent : upto]
        self._sent = max(self._sent, upto)
        return delta

    def _search(self, text: str) -> None:
        """Brings the searches up to ``text``, which mostly goes on where they stand."""
        if not text.startswith(self._searched):
            self._searched = ""
            for search in self._searches:
                search.restart()
        for search in self._searches:
            search.push(text[len(self._searched) :])
        self._searched = text


class _Search:
    """Looks for a string in a text that comes in pieces, at each character once (Knuth, Morris and Pratt).

    Args:
        string: What is looked for; not empty.

    Attributes:
        found: Where it begins first; None where it was not found yet.
        matched: How many of its first characters the text ends with.
    """

    def __init__(self, string: str) -> None:
        self._string = string
        self._shorter = _borders(string)
        self.restart()

    def restart(self) -> None:
        """Goes back to the beginning of the text."""
        self.found: int | None = None
        self.matched = self._seen = 0

    def push(self, text: str) -> None:
        """Takes the next piece; nothing behind the first place is looked for."""
        if self.found is not None:
            return
        for character in text:
            self._seen += 1
            while self.matched and self._string[self.matched] != character:
                self.matched = self._shorter[self.matched - 1]
            self.matched += self._string[self.matched] == character
            if self.matched == len(self._string):
                self.found = self._seen - self.matched
                return


def _borders(string: str) -> list[int]:
    """For each beginning of ``string``, the length of its longest proper beginning that is also its end."""
    borders, length = [0] * len(string), 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = borders[length - 1]
        length += string[index] == string[length]
        borders[index] = length
    return borders
