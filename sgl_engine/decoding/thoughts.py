"""Where an answer stands between its thoughts and what it says, while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sgl_engine.chat.text_stream import HALF, ReasoningText, RunningText

if TYPE_CHECKING:
    from sgl_engine.model.thoughts import SpeltTags, ThoughtTags

MOST_AROUND = 8
"""Tokens at most that are neither thoughts nor the answer: tags, and white space behind them."""


class Thoughts:
    """The tokens before an answer: thoughts, the tag that ends them, and white space behind it.

    Thoughts end where the model ends them, or where their own budget is spent: then the tokens that end them
    are given. What is counted, scored, drafted and held to a grammar begins behind them.

    Args:
        tags: The model's; None thinks nothing.
        is_open: Whether the prompt has begun the thoughts; else the model may, with its first token.
        decode: Tokens -> text.
        most: Tokens of thoughts at most.
        formed: Whether a grammar holds the answer. The model then cannot begin thoughts, and what ends them
            is given as templates write it, so that the answer begins with its first character.

    Attributes:
        count: Tokens that are not the answer's.
        text: The thoughts so far, without space around them.
        most: What ``count`` can become at most.
    """

    def __init__(
        self,
        tags: ThoughtTags | SpeltTags | None,
        *,
        is_open: bool,
        decode: Callable[[Sequence[int]], str],
        most: int,
        formed: bool,
    ) -> None:
        self.count = 0
        self.text = ""
        self.most = 0 if tags is None else most + MOST_AROUND + tags.tokens
        self._tags: Any = tags  # spelt ones have another reader (``SpeltThoughts``)
        self._decode, self._limit, self._formed = decode, most, formed
        self._ids: list[int] = []
        self._running = RunningText(decode)
        self._given: list[int] = []
        self._place: Literal["first", "within", "behind", "answer"] = "answer"
        if tags is not None and (is_open or not formed):
            self._place = "within" if is_open else "first"

    @property
    def over(self) -> bool:
        """Whether the next token is the answer's."""
        return self._place in {"first", "answer"}

    def given(self, chosen: Callable[[], int], ends: frozenset[int]) -> int:
        """The next token while thoughts are not over: what is given, or else what is chosen.

        Args:
            chosen: Chooses it.
            ends: Tokens that end an answer. An answer that has to have a form is not ended by thoughts.
        """
        assert self._tags is not None
        if not self._given and self._place == "within" and len(self._ids) >= self._limit:
            self._given = list(self._tags.closing)
        if self._given:
            return self._given[0]
        token = chosen()
        if self._formed and token in ends:
            self._given = list(self._tags.closing)
            return self._given[0]
        return token

    def take(self, token: int, ends: frozenset[int]) -> ReasoningText | None:
        """Goes on by one token; returns text of thoughts that is newly final, or None: it is the answer's."""
        if self._place == "answer" or token in ends or self._tags is None:
            self._place = "answer"
            return None
        if self._place == "first" and token != self._tags.begin:
            self._place = "answer"
            return None
        if self._place == "behind" and not self._given and not self._is_space(token):
            self._place = "answer"
            return None
        self.count += 1
        return self._think(token, self._tags)

    def _think(self, token: int, tags: ThoughtTags) -> ReasoningText:
        if self._place == "first":
            self._place = "within"
        elif token == tags.end:
            self._place = "behind"
            if self._formed and not self._given:
                self._given = list(tags.closing[tags.closing.index(token) :])
        elif self._place == "within":
            self._ids.append(token)
        if self._given:
            self._given.pop(0)
            if not self._given:
                self._place = "answer"
        return self._new_text()

    def _new_text(self) -> ReasoningText:
        """What is final: not half a character, and not white space that may be the last."""
        text = self._running(self._ids).rstrip(HALF).strip() if self._ids else ""
        new = text[len(self.text) :]
        self.text = text
        return ReasoningText(new)

    def _is_space(self, token: int) -> bool:
        text = self._decode([token])
        return bool(text) and text.isspace() and self.count - len(self._ids) < MOST_AROUND
