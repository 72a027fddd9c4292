"""Thoughts between tags that are spelt in several tokens, as any text is: found in the text, not by a token.

A tag may end within a token that goes on with white space. What could still become a tag is no text yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sgl_engine.chat.text_stream import HALF, ReasoningText
from sgl_engine.decoding.thoughts import Thoughts

if TYPE_CHECKING:
    from sgl_engine.model.thoughts import SpeltTags


class SpeltThoughts(Thoughts):
    """``Thoughts`` of a model whose tags are no tokens of their own.

    Args:
        tags: The model's.
        is_open: Whether the prompt has begun the thoughts; else the answer's first characters may.
        decode: Tokens -> text.
        most: Tokens of thoughts at most.
        formed: As in ``Thoughts``.
        limit: Tokens of the answer at most. What may become a tag is held back for fewer.
    """

    def __init__(
        self,
        tags: SpeltTags,
        *,
        is_open: bool,
        decode: Callable[[Sequence[int]], str],
        most: int,
        formed: bool,
        limit: int,
    ) -> None:
        super().__init__(tags, is_open=is_open, decode=decode, most=most, formed=formed)
        self._spelt, self._room = tags, limit
        self._begin = "" if is_open else tags.begin

    def take(self, token: int, ends: frozenset[int]) -> ReasoningText | None:
        """As of ``Thoughts``; tokens that did not become a tag are the answer's after all."""
        if self._place == "answer" or token in ends:
            self._answer()
            return None
        if self._place == "behind" and not self._given and not self._is_space(token):
            self._answer()
            return None
        if self._place in {"first", "within"} and not self._given:
            return self._read(token)
        self.count += 1
        if self._given:
            self._given.pop(0)
            self._place = self._place if self._given else "answer"
        thought, _, _ = self._parted(self._running(self._ids))
        return self._new(thought, whole=True)

    def _answer(self) -> None:
        """The token, and those that did not become a tag, are the answer's."""
        if self._place == "first":
            self.count = 0
        self._place = "answer"

    def _read(self, token: int) -> ReasoningText | None:
        """Goes on by a token that may be of the first tag, of the thoughts, or of the last tag."""
        running = self._running([*self._ids, token])
        if self._place == "first":
            text = running.lstrip().rstrip(HALF)
            if text.startswith(self._begin):
                self._place = "within"
                self._limit += len(self._ids) + 1
            elif not self._begin.startswith(text) or self.count + 1 >= self._room:
                self._answer()
                return None
        thought, ended, rest = self._parted(running)
        if ended and rest.strip():
            self._answer()  # of this token, a part is the answer's
            return None
        self._ids.append(token)
        self.count += 1
        if ended:
            self._end(rest)
        return self._new(thought, whole=bool(ended))

    def _parted(self, running: str) -> tuple[str, str, str]:
        """Text so far: thoughts, the tag that ends them, and what is behind it."""
        return running.lstrip().removeprefix(self._begin).partition(self._spelt.end)

    def _end(self, space: str) -> None:
        """The model has ended its thoughts."""
        self._place = "behind"
        if self._formed:
            self._given = [] if space else list(self._spelt.behind)
            self._place = "behind" if self._given else "answer"

    def _new(self, thought: str, *, whole: bool) -> ReasoningText:
        """What is newly final of the thoughts."""
        if self._place == "first":
            return ReasoningText()
        end, thought = self._spelt.end, thought.rstrip(HALF)
        held = 0 if whole else max(n for n in range(len(end)) if thought.endswith(end[:n]))
        text = thought[: len(thought) - held].strip()
        new = text[len(self.text) :]
        self.text = text
        return ReasoningText(new)
