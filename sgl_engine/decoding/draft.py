"""What an answer is expected to be: a draft, and where in it the answer stands."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


class Draft:
    """A draft, and where in it the answer stands.

    All of it is expected at first. After a token that differs, the answer may come back to it: behind the
    nearest place with that token, or else behind the token that it stands for. From there, nothing is
    expected until a token is right, and then twice as much as has been right since: so little is fed in vain.

    Args:
        tokens: What the answer is expected to be.

    Attributes:
        tokens: The same.
        accepted: How many of them the answer has taken over, in order.
        wrong: Whether any token differed.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tuple(tokens)
        self.accepted = 0
        self.wrong = False
        self._next = self._earliest = 0
        self._right = len(tokens)
        self._places: dict[int, list[int]] = {}  # token -> where in the draft it is, in order
        for at, token in enumerate(self.tokens):
            self._places.setdefault(token, []).append(at)

    def expected(self) -> list[int]:
        """What comes next, if the draft is right."""
        return list(self.tokens[self._next : self._next + 2 * self._right])

    def take(self, token: int) -> None:
        """Goes on by one token of the answer."""
        if self._next < len(self.tokens) and self.tokens[self._next] == token:
            self.accepted += 1
            self._right += 1
            self._next = self._earliest = self._next + 1
            return
        self.wrong = True
        self._right = 0
        places = self._places.get(token, [])
        behind = bisect_left(places, self._next)
        # Never before what was right, so that nothing is accepted twice.
        nearest = [at for at in places[max(0, behind - 1) : behind + 1] if at >= self._earliest]
        self._next = 1 + min(nearest, key=lambda at: abs(at - self._next), default=self._next)


def draft_tokens(
    small: VLM, large: VLM, token_ids: Sequence[int], still_wanted: Callable[[], None] = lambda: None
) -> tuple[int, ...]:
    """The small answer in tokens of the large model, without its end.

    Token ids are taken over where both tokenizers mean the same tokens by them, tokens of tool calls and stop
    strings included; else the text is tokenised anew.

    Args:
        small: Who gave the answer.
        large: Whose answer is drafted.
        token_ids: The small answer, its end included or not.
        still_wanted: Called now and then while waiting for the large model's tokenizer.
    """
    ids = list(takewhile(lambda token: token not in small.eos_token_ids, token_ids))
    names, meant = (vlm.processor.tokenizer.convert_ids_to_tokens(ids) for vlm in (small, large))
    if names != meant or None in names:
        with large.processing(still_wanted):  # tokenizers have state
            ids = large.processor.tokenizer(small.text(ids), add_special_tokens=False)["input_ids"]
    return tuple(takewhile(lambda token: token not in large.eos_token_ids, ids))
