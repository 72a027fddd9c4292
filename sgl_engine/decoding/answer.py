"""One answer while it is generated: chosen, held to its grammar, compared with its draft, read as text.

Every token is chosen from the logits behind the tokens that were chosen before it, whether those were fed one
by one or, because a draft foresaw them, all at once. So a draft changes what an answer costs, not what it
says: neither where a grammar, a stop string or a limit ends it, nor where it is sampled. A draft proposes
each token with certainty, and for such a proposal the rule of speculative sampling (Leviathan et al., 2023)
is just this: draw from the target distribution, accept where the draw is the proposal. Nothing is drawn
behind the first difference, so a seed gives the same answer with a draft as without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from sgl_engine.chat.text_stream import RunningText, TextStream
from sgl_engine.decoding.choice import Chooser, Penalties
from sgl_engine.decoding.constraint import TokenConstraint
from sgl_engine.decoding.draft import Draft
from sgl_engine.decoding.spelt_thoughts import SpeltThoughts
from sgl_engine.decoding.thoughts import MOST_AROUND, Thoughts
from sgl_engine.errors import InvalidRequestError, RequestError
from sgl_engine.model.thoughts import SpeltTags, keeps_special_tokens, left_out
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import Decoding, check_wanted

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

FinishReason: TypeAlias = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True, eq=False)
class Generation:
    """A finished answer.

    Attributes:
        text: Without special tokens, cut before a stop string; without thoughts.
        token_ids: int64 (T,), the end-of-sequence token included where it was generated; thoughts come first.
        logprobs: float32 (T,), natural log of each token's probability under the model's own distribution:
            temperature 1, nothing masked, without penalties, whatever the sampling did.
        entropies: float32 (T,), in nats, of the same distribution at each step.
        finish_reason: "stop" (end-of-sequence token, stop string, or the end of the grammar) or "length".
        likeliest: Per token, the likeliest tokens of that distribution with their log-probabilities, the best
            first; empty where nobody asked.
        reasoning: What the model thought before it answered; empty where it did not.
        reasoning_tokens: How many of the tokens are not the answer's: thoughts, their tags, space behind.
        skips_special: Whether special tokens are no part of the text.
        left_out: Those of the answer that therefore are none.
    """

    text: str
    token_ids: Tensor
    logprobs: Tensor
    entropies: Tensor
    finish_reason: FinishReason
    likeliest: tuple[tuple[tuple[int, float], ...], ...] = ()
    reasoning: str = ""
    reasoning_tokens: int = 0
    skips_special: bool = True
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        """T."""
        return int(self.token_ids.shape[0])

    @property
    def answer(self) -> Generation:
        """The same without thoughts: what scores, drafts and log-probabilities are about."""
        if not self.reasoning_tokens:
            return self
        begin = self.reasoning_tokens
        return replace(
            self,
            token_ids=self.token_ids[begin:],
            logprobs=self.logprobs[begin:],
            entropies=self.entropies[begin:],
            likeliest=self.likeliest[begin:],
            reasoning_tokens=0,
        )


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
        max_new_tokens: Upper limit, thoughts apart; the context's end is one too.
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
        wish = task.decoding.skip_special_tokens
        self._skips = not keeps_special_tokens(vlm) if wish is None else wish
        self._decode = partial(vlm.text, skip_special=self._skips)
        self._limit, self._thoughts = self._plan_thoughts()
        self.draft = Draft(task.draft[: max(0, self._limit - 1)])
        self._choose = Chooser(task.decoding, vlm.device)
        most = min(vlm.context_tokens - len(task.prompt), self._limit + self._thoughts.most)
        self._penalties = self.attempt(partial(Penalties, vlm, task.prompt.input_ids, task.decoding, most))
        self._logprobs: list[float] = []
        self._entropies: list[float] = []
        self._likeliest: list[tuple[tuple[int, float], ...]] = []
        self._ended = self._done = False
        self._held = self.attempt(self._constrain)
        self._text = TextStream(
            RunningText(self._decode), task.decoding.stop, with_calls=self._held is not None
        )

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
        where = where or f"after {len(self.ids)} of {self._limit + self._thoughts.count} answer tokens"
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
        if not self._thoughts.over:
            expected = []  # nobody knows what it thinks
        return self.ids[fed:] + expected[: self._limit - 1 - len(self.ids) + self._thoughts.count]

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
        pieces: list[str] = []
        known = len(self.ids) - fed - len(chunk) + len(logits) - 1  # rows that say what is chosen already
        for row in logits[known:]:
            pieces += filter(None, [self.take(row)])
            place = len(self.ids) - 1 - fed
            if not (self.goes_on() and place < len(chunk) and chunk[place] == self.ids[-1]):
                break
        # Thoughts come one by one: they are never expected, so no forward has some and the answer's text.
        return pieces[0] if len(pieces) == 1 else "".join(pieces)

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
            reasoning=self._thoughts.text,
            reasoning_tokens=(begin := min(self._thoughts.count, max(0, len(self.ids) - 1))),
            skips_special=self._skips,
            left_out=left_out(self._vlm, self.ids[begin:]) if self._skips else (),
        )

    def _plan_thoughts(self) -> tuple[int, Thoughts]:
        """How many tokens the answer may have, and what may come before them: both fit the context."""
        vlm, task = self._vlm, self._task
        room, tags = vlm.context_tokens - len(task.prompt), vlm.thought_tags
        around = MOST_AROUND + (0 if tags is None else tags.tokens)
        most = max(0, min(task.decoding.max_reasoning_tokens, room - task.max_new_tokens - around))
        ids = task.prompt.input_ids[0].tolist()
        is_open = tags is not None and room > around and tags.are_open(ids, self._decode)
        limit = min(task.max_new_tokens, room - (most + around if is_open else 0))
        formed = task.decoding.grammar is not None
        told: Any = {"is_open": is_open, "decode": self._decode, "most": most, "formed": formed}
        if isinstance(tags, SpeltTags):
            return limit, SpeltThoughts(tags, **told, limit=limit)
        return limit, Thoughts(tags, **told)

    def _take(self, logits: Tensor) -> str:
        self.steps += 1
        assert self._penalties is not None, "an answer in error takes no tokens"
        token = self._next(self._penalties(self.ids, logits))
        if token is None:  # whole, and nothing that the grammar allows fits any more
            self._done = True
            return self._text.flush()
        self.ids.append(token)
        self._note(token, logits)
        thought = self._thoughts.take(token, self._vlm.eos_token_ids)
        if thought is not None:
            return thought
        self.draft.take(token)
        at_end = self._task.stop_at_eos and token in self._vlm.eos_token_ids
        self._ended = at_end or (self._held is not None and self._held.finished)
        said = self.ids[self._thoughts.count :]
        text = self._text.push(said)
        self._done = self._ended or self._text.stopped or len(said) == self._limit
        cut_off = not (self._ended or self._text.stopped)
        return text + self._text.flush(cut_off=cut_off) if self._done else text

    def _next(self, wanted: Tensor) -> int | None:
        """The token that is chosen from these logits; None where the answer has to end before it."""
        if not self._thoughts.over:
            ends = self._vlm.eos_token_ids if self._task.stop_at_eos else frozenset[int]()
            return self._thoughts.given(partial(self._choose, wanted), ends)
        return self._choose(wanted) if self._held is None else self._held.choose(wanted, self._choose)

    def _note(self, token: int, logits: Tensor) -> None:
        """Notes how likely a token was."""
        logprobs = logits.log_softmax(dim=-1)  # unmasked, without penalties: how likely by itself
        entropy = torch.special.entr(logprobs.exp()).sum()
        logprob, spread = torch.stack((logprobs[token], entropy)).tolist()
        self._logprobs.append(logprob)
        self._entropies.append(spread)
        if count := min(self._task.decoding.top_logprobs, len(logprobs)):
            values, tokens = logprobs.topk(count)
            self._likeliest.append(tuple(zip(tokens.tolist(), values.tolist(), strict=True)))

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
