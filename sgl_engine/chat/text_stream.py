"""Tokens, as they come -> text that is final."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sgl_engine.chat.tool_calls import CLOSE, OPEN

HALF = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode the first bytes of a character to, while its last ones are still to come."""
_CALL = re.compile(f"{OPEN}.*?(?:{CLOSE}|$)", re.DOTALL)


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
        self._stop = tuple(string for string in stop if string)
        self._sent = 0
        self.text = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> str:
        """Takes all tokens so far; returns the text that is newly final."""
        self.text = self._decode(ids)
        free = _CALL.sub(lambda call: "\0" * len(call[0]), self.text) if self._with_calls else self.text
        ends = [at for at in (free.find(string) for string in self._stop) if at >= 0]
        if ends:
            self.stopped = True
            self.text = self.text[: min(ends)]
            return self.flush()
        return self._send(len(self.text) - self._pending())

    def flush(self) -> str:
        """Everything that was held back."""
        return self._send(len(self.text))

    def _send(self, upto: int) -> str:
        delta = self.text[self._sent : upto]
        self._sent = max(self._sent, upto)
        return delta

    def _pending(self) -> int:
        """Characters at the end that must wait for the next token."""
        final = self.text.rstrip(HALF)
        beginnings = (string[:size] for string in self._stop for size in range(1, len(string)))
        held = max((len(start) for start in beginnings if final.endswith(start)), default=0)
        return len(self.text) - len(final) + held
