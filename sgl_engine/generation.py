"""The token loop: prefill, choose, feed back; stops within one token, and can be read as a stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sgl_engine.cancellation import check_wanted
from sgl_engine.constraint import TokenConstraint
from sgl_engine.errors import InvalidRequestError
from sgl_engine.tool_calls import CLOSE, OPEN
from sgl_engine.types import Decoding, EncodedPrompt, Generation, TokenLogprob

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.vlm import VLM

Result = TypeVar("Result")
_CALL = re.compile(f"{OPEN}.*?(?:{CLOSE}|$)", re.DOTALL)
_HALF = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode the first bytes of a character to, while its last ones are still to come."""


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
    """Generates an answer; yields its text piece by piece, and returns the whole.

    Args:
        vlm: The model.
        prompt: The prompt.
        embeddings: ``vlm.embed(prompt)``, (1, S, hidden).
        cache: An empty cache; filled.
        max_new_tokens: Upper limit; the context's end is one too.
        stop_at_eos: False goes on to the limit, whatever the model says.
        decoding: How tokens are chosen, stop strings, deadline, cancellation.
        patch: Entered around every forward and left before anything is yielded, so that nothing is changed
            in the model while the consumer of a stream does something else; the model is held for as long.

    Raises:
        DeadlineError: The deadline passed; checked before every forward.
        RequestCancelledError: The answer is not wanted any more; checked before every forward.
        InvalidRequestError: ``max_new_tokens`` below 1, or too few for the shortest answer of the grammar.
    """
    if max_new_tokens < 1:
        raise InvalidRequestError(
            f"max_new_tokens is {max_new_tokens}; it must be at least 1.", remedy="Raise it."
        )
    limit = min(max_new_tokens, vlm.context_tokens - len(prompt))
    held = _constraint(vlm, decoding, limit)
    choose = _Chooser(decoding, embeddings.device)
    text = _TextStream(vlm.text, decoding.stop, with_calls=held is not None)
    ids: list[int] = []
    logprobs: list[float] = []
    position = 0
    while True:
        still_wanted = partial(check_wanted, decoding, f"after {len(ids)} of {limit} answer tokens")
        still_wanted()
        with vlm.exclusive(still_wanted), patch():
            logits = vlm.forward(embeddings, prompt=prompt, first_position=position, cache=cache)[0]
        position += embeddings.shape[1]
        token = choose(logits) if held is None else held.choose(logits, choose)
        if token is None:  # whole, and nothing that the grammar allows fits any more
            ended, delta = False, text.flush()
            break
        ids.append(token)
        logprobs.append(float(logits.log_softmax(dim=-1)[token]))  # unmasked: how likely it was by itself
        ended = (stop_at_eos and token in vlm.eos_token_ids) or (held is not None and held.finished)
        delta = text.push(ids)
        if ended or text.stopped or len(ids) == limit:
            delta += text.flush()
            break
        if delta:
            yield delta
        embeddings = vlm.embed_tokens(torch.tensor(ids[-1:]))
    if delta:
        yield delta
    return Generation(
        text=text.text,
        token_ids=torch.tensor(ids, dtype=torch.int64),
        logprobs=torch.tensor(logprobs, dtype=torch.float32),
        finish_reason="stop" if ended or text.stopped else "length",
    )


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
            final = final.rstrip(_HALF)
        tokens.append(TokenLogprob(token=final[sent:], logprob=logprob))
        sent = max(sent, len(final))
    return tuple(tokens)


def _constraint(vlm: VLM, decoding: Decoding, limit: int) -> TokenConstraint | None:
    """What holds the answer to the decoding's grammar, where it has one."""
    if decoding.grammar is None:
        return None
    with vlm.exclusive(partial(check_wanted, decoding, "before the answer began")):
        return TokenConstraint(
            vlm.processor.tokenizer,
            vocab_size=int(vlm.model.get_output_embeddings().weight.shape[0]),
            eos_token_ids=vlm.eos_token_ids,
            grammar=decoding.grammar,
            max_new_tokens=limit,
        )


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


class _TextStream:
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
        final = self.text.rstrip(_HALF)
        beginnings = (string[:size] for string in self._stop for size in range(1, len(string)))
        held = max((len(start) for start in beginnings if final.endswith(start)), default=0)
        return len(self.text) - len(final) + held
