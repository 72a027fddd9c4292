"""The token loop: prefill, choose, feed back; stops within one token, and can be read as a stream."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sgl_engine.cancellation import check_wanted
from sgl_engine.constraint import TokenConstraint
from sgl_engine.errors import InvalidRequestError, RequestError
from sgl_engine.prompt_batch import PromptBatch
from sgl_engine.text_stream import HALF, TextStream
from sgl_engine.types import Decoding, EncodedPrompt, Generation, TokenLogprob

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.vlm import VLM

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Turn:
    """What one prompt's answer is to be like.

    Attributes:
        prompt: The prompt.
        max_new_tokens: Upper limit; the context's end is one too.
        stop_at_eos: False goes on to the limit, whatever the model says.
        decoding: How tokens are chosen, stop strings, deadline, cancellation.
    """

    prompt: EncodedPrompt
    max_new_tokens: int
    decoding: Decoding = field(default_factory=Decoding)
    stop_at_eos: bool = True


class Answer:
    """One answer while it is generated. What is wrong with it stops nobody else's: it is kept in ``error``.

    Args:
        vlm: Whose answer it is.
        turn: What it is to be like.
    """

    def __init__(self, vlm: VLM, turn: Turn) -> None:
        self.error: RequestError | None = None
        self.ids: list[int] = []
        self.steps = 0
        self._vlm = vlm
        self._turn = turn
        self._limit = min(turn.max_new_tokens, vlm.context_tokens - len(turn.prompt))
        self._choose = _Chooser(turn.decoding, vlm.device)
        self._logprobs: list[float] = []
        self._ended = self._done = False
        self._held = self.attempt(self._constrain)
        self._text = TextStream(vlm.text, turn.decoding.stop, with_calls=self._held is not None)

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns; None where it finds something wrong with the request, or where it was."""
        if self.error is None:
            try:
                return work()
            except RequestError as error:
                self.error = error
        return None

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
        self.attempt(partial(check_wanted, self._turn.decoding, where))

    def take(self, logits: Tensor) -> str:
        """Chooses the next token from logits (vocab,); returns the text that is newly final."""
        return self.attempt(lambda: self._take(logits)) or ""

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
            finish_reason="stop" if self._ended or self._text.stopped else "length",
        )

    def _take(self, logits: Tensor) -> str:
        self.steps += 1
        token = self._choose(logits) if self._held is None else self._held.choose(logits, self._choose)
        if token is None:  # whole, and nothing that the grammar allows fits any more
            self._done = True
            return self._text.flush()
        self.ids.append(token)
        self._logprobs.append(float(logits.log_softmax(dim=-1)[token]))  # unmasked: how likely by itself
        at_end = self._turn.stop_at_eos and token in self._vlm.eos_token_ids
        self._ended = at_end or (self._held is not None and self._held.finished)
        text = self._text.push(self.ids)
        self._done = self._ended or self._text.stopped or len(self.ids) == self._limit
        return text + self._text.flush() if self._done else text

    def _constrain(self) -> TokenConstraint | None:
        """What holds the answer to the decoding's grammar, where it has one."""
        vlm, decoding = self._vlm, self._turn.decoding
        if self._turn.max_new_tokens < 1:
            raise InvalidRequestError(
                f"max_new_tokens is {self._turn.max_new_tokens}; it must be at least 1.", remedy="Raise it."
            )
        if decoding.grammar is None:
            return None
        with vlm.processing(partial(check_wanted, decoding, "before the answer began")):
            return TokenConstraint(
                vlm.processor.tokenizer,
                vocab_size=int(vlm.model.get_output_embeddings().weight.shape[0]),
                eos_token_ids=vlm.eos_token_ids,
                grammar=decoding.grammar,
                max_new_tokens=self._limit,
            )


class NobodyWaitsError(Exception):
    """None of the answers of a batch goes on; each of them knows why."""


@contextmanager
def exclusive_for(vlm: VLM, answers: Sequence[Answer], where: str | None = None) -> Iterator[None]:
    """``vlm.exclusive``, waited for as long as one of the answers goes on.

    Raises:
        NobodyWaitsError: None does any longer.
    """

    def check() -> None:
        if not [answer for answer in answers if answer.goes_on(where)]:
            raise NobodyWaitsError

    with vlm.exclusive(check):
        yield


def decode(
    vlm: VLM,
    batch: PromptBatch,
    embeddings: Tensor,
    answers: Sequence[Answer],
    *,
    cache: DynamicCache,
    patch: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[list[str]]:
    """Generates the answers of a batch; each leaves it at its end, or when something is wrong with it.

    Args:
        vlm: The model.
        batch: The prompts.
        embeddings: Theirs, (B, S, width).
        answers: One per row; filled.
        cache: An empty cache; filled.
        patch: Entered with the numbers of the rows that run around every forward, and left before anything
            is yielded, so that nothing is changed in the model while the consumer of a stream does something
            else; the model is held for as long.

    Yields:
        After every forward, the newly final text of each answer.
    """
    rows, position = list(range(len(answers))), 0
    while left := [row for row in rows if answers[row].goes_on()]:
        if left != rows:
            stay = [rows.index(row) for row in left]
            rows, batch, embeddings = left, batch.select(stay), embeddings[stay]
            if position:
                cache.reorder_cache(torch.tensor(stay, device=embeddings.device))  # type: ignore[arg-type]  # it is one
        if position:
            embeddings = vlm.embed_tokens(torch.tensor([answers[row].ids[-1:] for row in rows]))
        try:
            with exclusive_for(vlm, [answers[row] for row in rows]), patch(rows):
                logits = vlm.forward_batch(embeddings, batch=batch, first_position=position, cache=cache)
        except NobodyWaitsError:
            return
        position += embeddings.shape[1]
        texts = [""] * len(answers)
        for row, of_row in zip(rows, logits, strict=True):
            texts[row] = answers[row].take(of_row[-1])
        yield texts


def stream_tokens(
    vlm: VLM,
    prompt: EncodedPrompt,
    embeddings: Tensor,
    *,
    cache: DynamicCache,
    max_new_tokens: int,
    stop_at_eos: bool,
    decoding: Decoding,
    patch: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[str, None, Generation]:
    """Generates one answer (``decode``); yields its text piece by piece, and returns the whole.

    Raises:
        DeadlineError: The deadline passed; checked before every forward.
        RequestCancelledError: The answer is not wanted any more; checked before every forward.
        InvalidRequestError: ``max_new_tokens`` below 1, or too few for the shortest answer of the grammar.
    """
    answer = Answer(vlm, Turn(prompt, max_new_tokens, decoding, stop_at_eos))
    batch = PromptBatch.of([prompt])
    for (text,) in decode(vlm, batch, embeddings, [answer], cache=cache, patch=lambda _: patch()):
        if text:
            yield text
    return answer.generation()


def finish(stream: Generator[object, None, Result]) -> Result:
    """Runs a stream to its end, for its result alone."""
    while True:
        try:
            next(stream)
        except StopIteration as end:
            result: Result = end.value
            return result


def token_logprobs(vlm: VLM, generation: Generation) -> tuple[TokenLogprob, ...]:
    """The answer token by token: what each adds to the text, and its log-probability."""
    ids = generation.token_ids.tolist()
    tokens, sent = [], 0
    for count, logprob in enumerate(generation.logprobs.tolist(), start=1):
        final = vlm.text(ids[:count])
        if count < len(ids):
            final = final.rstrip(HALF)
        tokens.append(TokenLogprob(token=final[sent:], logprob=logprob))
        sent = max(sent, len(final))
    return tuple(tokens)


class _Chooser:
    """Logits (vocab,) -> token: the largest, or a draw from the nucleus."""

    def __init__(self, decoding: Decoding, device: torch.device) -> None:
        self._decoding = decoding
        self._random: torch.Generator | None = None
        if decoding.seed is not None:
            self._random = torch.Generator(device=device).manual_seed(decoding.seed)

    def __call__(self, logits: Tensor) -> int:
        if self._decoding.temperature == 0.0:
            return int(logits.argmax())
        probabilities = (logits / self._decoding.temperature).softmax(dim=-1)
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token is in the nucleus when the likelier ones together do not reach top_p; the first always is.
        outside = ordered.cumsum(dim=-1) - ordered >= self._decoding.top_p
        outside[0] = False
        drawn = torch.multinomial(ordered.masked_fill(outside, 0.0), 1, generator=self._random)
        return int(order[drawn])
