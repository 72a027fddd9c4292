"""Keeps one generation inside a grammar, and inside its budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgl_engine.decoding.compiled import check_matcher, grammars_of
from sgl_engine.decoding.ending import Allowance, SpentError, closes, find_closings
from sgl_engine.errors import InvalidRequestError

# The searches are rare: for what the likeliest end of each value does not end.
_SEARCH_STEPS = 1_000
_ALLOWANCE = 10_000  # for all tokens of one answer together; then it ends as it can


class TokenConstraint:
    """The state of one generation under a grammar.

    Beside the grammar's state it keeps a closing: tokens that end the answer from here. A token is taken only
    if a closing that fits the rest of the budget is known behind it; otherwise the answer goes on with the
    closing that is known already. So an answer that has to be whole is whole, whatever the model wants.

    Args:
        tokenizer: The model's, a fast one of transformers.
        vocab_size: Width of the model's logits, which may be padded beyond the tokenizer's tokens.
        eos_token_ids: What ends an answer; may be empty.
        grammar: From ``sgl_engine.chat.grammar.answer_grammar``.
        max_new_tokens: The budget.
        still_wanted: Called now and then where there is much to do; what it raises ends the answer.

    Raises:
        InvalidRequestError: The grammar is none, or the shortest answer known does not fit the budget.
        ProcessorError: The tokenizer is not a fast one.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int,
        eos_token_ids: Collection[int],
        grammar: str,
        max_new_tokens: int,
        still_wanted: Callable[[], None] = lambda: None,
    ) -> None:
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        grammars = grammars_of(tokenizer, vocab_size, self._eos)
        self._tokenizer = grammars.tokenizer
        self._grammar = grammars.get(grammar, still_wanted)
        self._tokens = self._grammar.over_tokens.deep_copy()
        self._bytes = self._grammar.over_bytes.deep_copy()
        self._left = max_new_tokens
        self._allowance = Allowance(_ALLOWANCE, still_wanted)
        self._rest, self._closing = self._first_closing()

    @property
    def finished(self) -> bool:
        """Whether nothing but an end-of-sequence token could follow, or one was accepted."""
        return bool(self._tokens.is_stopped())

    def choose(self, logits: Tensor, pick: Callable[[Tensor], int]) -> int | None:
        """The next token: what ``pick`` takes among those that are allowed, or the first of the closing.

        Args:
            logits: (vocab,), float; left as they are.
            pick: Chooses from logits; tokens at -inf are not to be chosen.

        Returns:
            The token, accepted; None where the answer has to end here, which it may only where it is whole.
        """
        open_ = self._allowed()
        allowed = _restricted(logits, open_)
        while open_.any():
            token = pick(allowed)
            closing = self._closing_behind(token) if open_[token] else None
            if closing is not None:
                return self._take(token, closing)
            if self._closing or not open_[token]:
                break
            open_[token] = False  # the answer is whole, and this would begin what cannot be ended
            allowed[token] = -torch.inf
        if not self._closing:
            return None
        token = self._closing[0]
        return self._take(token, (self._rest[len(self._text(token)) :], self._closing[1:]))

    def _take(self, token: int, closing: tuple[bytes, list[int]]) -> int:
        self._rest, self._closing = closing
        self.accept(token)
        return token

    def restrict(self, logits: Tensor) -> Tensor:
        """A copy of ``logits``, (vocab,), with -inf where the grammar does not allow the token."""
        return _restricted(logits, self._allowed())

    def accept(self, token: int) -> None:
        """Goes one token on, without regard to the budget; ``choose`` does it by itself."""
        self._left -= 1
        if token not in self._eos:
            self._bytes.consume_tokens(list(self._text(token)))
            check_matcher(self._bytes)
        self._tokens.consume_token(token)
        check_matcher(self._tokens)

    def _allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens the grammar allows next, (vocab,)."""
        mask = np.frombuffer(self._tokens.compute_bitmask(), dtype=np.uint8)
        check_matcher(self._tokens)
        allowed = np.unpackbits(mask, count=self._vocab_size, bitorder="little").view(np.bool_)
        allowed[self._tokenizer.eos_token :] &= bool(self._eos)  # where there is none, a number stands for it
        return allowed

    def _first_closing(self) -> tuple[bytes, list[int]]:
        needed = None
        for rest in self._grammar.closings:
            closing = self._encode(rest)
            if closing is not None and len(closing) <= self._left:
                return rest, closing
            if closing is not None:
                needed = len(closing) if needed is None else min(needed, len(closing))
        if needed is None:
            raise InvalidRequestError(
                "No answer that satisfies the schema was found; it may be endless, or its patterns too hard.",
                remedy="Make recursive properties optional, and patterns simpler.",
            )
        raise InvalidRequestError(
            f"The shortest answer known that satisfies the schema has {needed} tokens, but {self._left} are "
            "allowed or left in the context.",
            remedy=f"Raise max_new_tokens to {needed} or more, or shorten the prompt.",
        )

    def _closing_behind(self, token: int) -> tuple[bytes, list[int]] | None:
        """A closing that follows ``token`` and still fits; None where none is found."""
        if token in self._eos:
            return b"", []
        text = self._text(token)
        # Mostly the closing stays as it is (inside a string), or the token is its beginning.
        guesses = [self._rest, self._rest[1:]]
        if self._rest.startswith(text):
            guesses.insert(0, self._rest[len(text) :])
        for rest in guesses:
            if closes(self._bytes, text + rest) and (closing := self._fitting(rest)) is not None:
                return rest, closing
        behind = self._bytes.deep_copy()
        behind.consume_tokens(list(text))
        # The first that is found is short enough, unless the budget is nearly spent; then the one at hand is.
        found = find_closings(
            behind,
            known=self._rest,
            hints=self._grammar.hints,
            max_steps=_SEARCH_STEPS,
            allowance=self._allowance,
        )
        try:
            first = next(found, None)
        except SpentError:
            return None
        closing = None if first is None else self._fitting(first)
        return None if first is None or closing is None else (first, closing)

    def _fitting(self, rest: bytes) -> list[int] | None:
        """The tokens of ``rest``, where one token and they fit what is left of the budget."""
        closing = self._closing if rest == self._rest else self._encode(rest)
        return closing if closing is not None and len(closing) < self._left else None

    def _text(self, token: int) -> bytes:
        return bytes(self._tokenizer.decode_bytes([token]))

    def _encode(self, rest: bytes) -> list[int] | None:
        """Tokens that spell ``rest``; None where the vocabulary has none for some of its bytes."""
        within = len(rest) - len(rest.lstrip(bytes(range(0x80, 0xC0))))  # the end of a character
        tokens = [token for byte in rest[:within] for token in self._tokenizer.tokenize_bytes(bytes([byte]))]
        tokens += self._tokenizer.greedy_tokenize(rest[within:].decode())
        return tokens if self._tokenizer.decode_bytes(tokens) == rest else None


def _restricted(logits: Tensor, allowed: npt.NDArray[np.bool_]) -> Tensor:
    return logits.masked_fill(torch.from_numpy(~allowed).to(logits.device), -torch.inf)
