"""One answer while it is generated: chosen, held to its grammar, compared with its draft, read as text.

Every token is chosen from the logits behind the tokens that were chosen before it, whether those were fed one
by one or, because a draft foresaw them, all at once. So a draft changes what an answer costs, not what it
says: neither where a grammar, a stop string or a limit ends it, nor where it is sampled. A draft proposes
each token with certainty, and for such a proposal the rule of speculative sampling (Leviathan et al., 2023)
is just this: draw from the target distribution, accept where the draw is the proposal. Nothing is drawn
behind the first difference, so a seed gives the same answer with a draft as without one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from sgl_engine.chat.text_stream import RunningText, TextStream
from sgl_engine.decoding.choice import Chooser, Penalties
from sgl_engine.decoding.constraint import TokenConstraint
from sgl_engine.errors import InvalidRequestError, RequestError
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import Decoding, check_wanted

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, eq=False)
class Generation:
    """A finished answer.

    Attributes:
        text: Without special tokens, cut before a stop string.
        token_ids: int64 (T,), the end-of-sequence token included where it was generated.
        logprobs: float32 (T,), natural log of each token's probability under the model's own distribution:
            temperature 1, nothing masked, without penalties, whatever the sampling did.
        entropies: float32 (T,), in nats, of the same distribution at each step.
        finish_reason: "stop" (end-of-sequence token, stop string, or the end of the grammar) or "length".
        likeliest: Per token, the likeliest tokens of that distribution with their log-probabilities, the best
            first; empty where nobody asked.
    """

    text: str
    token_ids: Tensor
    logprobs: Tensor
    entropies: Tensor
    finish_reason: FinishReason
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __len__(self) -> int:
        """T."""
        return int(self.token_ids.shape[0])


@dataclass(frozen=True)
class TokenLogprob:
    """One token of an answer.

    Attributes:
        token: What it adds to the text: the tokens of an answer join to its text. Empty for a control token,
            and for the first bytes of a character, which shows with its last byte.
        logprob: Natural log of its probability under the model's own distribution, see ``Generation``.
        top: The likeliest tokens in its place, likeliest first, as far as the request asked for them.
    """

    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class AnswerTask:
    """What one prompt's answer is to be like.

    Attributes:
        prompt: The prompt.
        max_new_tokens: Upper limit; the context's end is one too.
        decoding: How tokens are chosen, stop strings, deadline, cancellation.
        stop_at_eos: False goes on to the limit, whatever the model says.
        draft: Tokens that the answer is expected to begin with. They change how much work it is, and nothing
            else.
    """

    prompt: EncodedPrompt
    max_new_tokens: int
    decoding: Decoding = field(default_factory=Decoding)
    stop_at_eos: bool = True
    draft: tuple[int, ...] = ()


class Answer:
    """One answer while it is generated. What is wrong with it stops nobody else's: it is kept in ``error``.

    Args:
        vlm: Whose answer it is.
        task: What it is to be like.

    Attributes:
        error: What is wrong with it.
        ids: The tokens so far.
        steps: How often a token was chosen.
        draft: The task's, and where in it the answer stands. What would be the last token is not in it: that
            one is never fed.
        fed: As in ``LargePassResult``.
    """

    def __init__(self, vlm: VLM, task: AnswerTask) -> None:
        self.error: RequestError | None = None
        self.ids: list[int] = []
        self.steps = 0
        self.fed: list[tuple[int, int]] = []
        self._vlm = vlm
        self._task = task
        self._limit = min(task.max_new_tokens, vlm.context_tokens - len(task.prompt))
        self.draft = Draft(task.draft[: max(0, self._limit - 1)])
        self._choose = Chooser(task.decoding, vlm.device)
        self._penalties = self.attempt(
            partial(Penalties, vlm, task.prompt.input_ids, task.decoding, self._limit)
        )
        self._logprobs: list[float] = []
        self._entropies: list[float] = []
        self._likeliest: list[tuple[tuple[int, float], ...]] = []
        self._ended = self._done = False
        self._held = self.attempt(self._constrain)
        self._text = TextStream(RunningText(vlm.text), task.decoding.stop, with_calls=self._held is not None)

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns; None where it finds something wrong with the request, or where it was."""
        if self.error is None:
            try:
                return work()
            except RequestError as error:
                self.error = error
        return None

    @property
    def prompt(self) -> EncodedPrompt:
        """What it answers."""
        return self._task.prompt

    @property
    def over(self) -> bool:
        """Whether it has ended, well or in error."""
        return self._done or self.error is not None

    def goes_on(self, where: str | None = None) -> bool:
        """Whether more is to be done for it; an answer that is not wanted any more is in error.

        Args:
            where: How far it got, for the message; None counts its tokens.
        """
        if not self._done:
            self.check_wanted(where)
        return self.error is None and not self._done

    def check_wanted(self, where: str | None = None) -> None:
        """Puts an answer that is not wanted any more in error."""
        where = where or f"after {len(self.ids)} of {self._limit} answer tokens"
        self.attempt(partial(check_wanted, self._task.decoding, where))

    def take(self, logits: Tensor) -> str:
        """Chooses the next token from logits (vocab,); returns the text that is newly final."""
        return self.attempt(lambda: self._take(logits)) or ""

    def ahead(self, fed: int, *, again: bool) -> list[int]:
        """The tokens behind the first ``fed``: those that are chosen, and those that are expected.

        Args:
            fed: How many are in the cache.
            again: Whether more is expected after an expected token was wrong.
        """
        expected = self.draft.expected() if again or not self.draft.wrong else []
        return self.ids[fed:] + expected[: self._limit - 1 - len(self.ids)]

    def note_forward(self, start: int, stop: int) -> None:
        """Notes that the tokens from ``start`` to ``stop`` were fed, for ``fed``."""
        if stop > start or not self.fed:
            self.fed.append((start, stop - start))

    def follow(self, logits: Tensor, chunk: Sequence[int], fed: int) -> str:
        """Takes as many tokens as were foreseen, and the one behind them.

        Args:
            logits: (N, vocab), of the last tokens of the chunk; one row more, the first, is the prompt's.
            chunk: The answer's tokens in this forward.
            fed: How many were fed before it.

        Returns:
            The text that is newly final.
        """
        text = ""
        known = len(self.ids) - fed - len(chunk) + len(logits) - 1  # rows that say what is chosen already
        for row in logits[known:]:
            text += self.take(row)
            place = len(self.ids) - 1 - fed
            if not (self.goes_on() and place < len(chunk) and chunk[place] == self.ids[-1]):
                break
        return text

    def generation(self) -> Generation:
        """The whole.

        Raises:
            RequestError: What is wrong with it.
        """
        if self.error is not None:
            raise self.error
        return Generation(
            text=self._text.text,
            token_ids=torch.tensor(self.ids, dtype=torch.int64),
            logprobs=torch.tensor(self._logprobs, dtype=torch.float32),
            entropies=torch.tensor(self._entropies, dtype=torch.float32),
            finish_reason="stop" if self._ended or self._text.stopped else "length",
            likeliest=tuple(self._likeliest),
        )

    def _take(self, logits: Tensor) -> str:
        self.steps += 1
        assert self._penalties is not None, "an answer in error takes no tokens"
        wanted = self._penalties(self.ids, logits)
        token = self._choose(wanted) if self._held is None else self._held.choose(wanted, self._choose)
        if token is None:  # whole, and nothing that the grammar allows fits any more
            self._done = True
            return self._text.flush()
        self.ids.append(token)
        self.draft.take(token)
        logprobs = logits.log_softmax(dim=-1)  # unmasked, without penalties: how likely by itself
        entropy = torch.special.entr(logprobs.exp()).sum()
        logprob, spread = torch.stack((logprobs[token], entropy)).tolist()
        self._logprobs.append(logprob)
        self._entropies.append(spread)
        if count := min(self._task.decoding.top_logprobs, len(logprobs)):
            values, tokens = logprobs.topk(count)
            self._likeliest.append(tuple(zip(tokens.tolist(), values.tolist(), strict=True)))
        at_end = self._task.stop_at_eos and token in self._vlm.eos_token_ids
        self._ended = at_end or (self._held is not None and self._held.finished)
        text = self._text.push(self.ids)
        self._done = self._ended or self._text.stopped or len(self.ids) == self._limit
        return text + self._text.flush() if self._done else text

    def _constrain(self) -> TokenConstraint | None:
        """What holds the answer to the decoding's grammar, where it has one."""
        vlm, decoding = self._vlm, self._task.decoding
        if self._task.max_new_tokens < 1:
            raise InvalidRequestError(
                f"max_new_tokens is {self._task.max_new_tokens}; it must be at least 1.", remedy="Raise it."
            )
        if decoding.grammar is None:
            return None
        waiting = partial(check_wanted, decoding, "while the answer was held to its grammar")
        with vlm.processing(waiting):
            return TokenConstraint(
                vlm.processor.tokenizer,
                vocab_size=vlm.vocab_size,
                eos_token_ids=vlm.eos_token_ids,
                grammar=decoding.grammar,
                max_new_tokens=self._limit,
                still_wanted=waiting,
            )


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
