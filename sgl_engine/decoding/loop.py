"""The token loop: prefill, choose, feed back; stops within one token, and can be read as a stream.

Where an answer has a draft, the draft is fed with the prompt; what it foresaw rightly is taken at once, and
the cache goes back behind the rest (``Rewinding``). Logits of one forward of many tokens and of
many forwards of one differ by rounding: in half precision two tokens that are as good
as equally likely may change places, as they may in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from sgl_engine.chat.text_stream import HALF, RunningText
from sgl_engine.decoding.answer import Answer, Generation, TokenLogprob
from sgl_engine.prompt.encoded import PromptBatch

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM

MAX_LOGIT_ROWS = 512
"""Tokens whose logits are held at once, over all rows of a batch."""
_CONTEXT_TOKENS = 4  # enough for a character that several tokens write


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
    cached_tokens: int = 0,
    patch: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[list[str]]:
    """Generates the answers of a batch; each leaves it at its end, or when something is wrong with it.

    Args:
        vlm: The model.
        batch: The prompts.
        embeddings: Theirs, (B, S, width), or those of their columns after the first ``cached_tokens``.
        answers: One per row; filled.
        cache: Of the columns before; filled.
        cached_tokens: How many columns these are.
        patch: Entered with the numbers of the rows that run around every forward, and left before anything
            is yielded, so that nothing is changed in the model while the consumer of a stream does something
            else; the model is held for as long.

    Yields:
        After every forward, the newly final text of each answer.
    """
    # `rows`: numbers of the answers that run; `position`: columns in the cache.
    rows, position, begun = list(range(len(answers))), cached_tokens, False
    rewinding = Rewinding(cache, enabled=any(answer.draft.tokens for answer in answers))
    while left := [row for row in rows if answers[row].goes_on()]:
        if left != rows:
            # Some answers have ended: their rows leave the batch, and the cache, if anything is in it yet.
            stay = [rows.index(row) for row in left]
            rows, batch, embeddings = left, batch.select(stay), embeddings[stay]
            if position:
                cache.reorder_cache(torch.tensor(stay, device=embeddings.device))  # type: ignore[arg-type]  # it is one
        running, first = [answers[row] for row in rows], not begun
        fed = max(0, position - batch.tokens)  # answer tokens of each row in the cache
        # What each row may be fed next: tokens that are chosen already, then what its draft expects.
        ahead = [answer.ahead(fed, again=rewinding.crops) for answer in running]
        count = _count(ahead, first=first, cropped=rewinding.crops)
        # All rows are fed equally many: fillers come after the tokens of shorter ones, which do not see them.
        chunks = [(tokens + [0] * count)[:count] for tokens in ahead]
        if count:
            # (B, count): behind the prompts' embeddings in the first forward, alone in all others.
            ids = torch.tensor(chunks)
            embeddings = vlm.append_tokens(embeddings, ids) if first else vlm.embed_tokens(ids)
        try:
            with exclusive_for(vlm, running), patch(rows):
                # Guesses are tokens that are not chosen yet; only behind those the cache may have to go back.
                rewinding.mark(position, guesses=fed + count > min(len(answer.ids) for answer in running))
                logits = vlm.forward_batch(
                    embeddings, batch=batch, first_position=position, cache=cache, logit_rows=count + first
                )
        except NobodyWaitsError:
            return  # every answer has its error
        position, begun = position + embeddings.shape[1], True
        texts = [""] * len(answers)
        for row, tokens, chunk, of_row in zip(rows, ahead, chunks, logits, strict=True):
            # What is fed again only because others are behind is not this answer's.
            own = max(fed, answers[row].steps - 1) if rewinding.crops else fed
            answers[row].note_forward(own, fed + min(count, len(tokens)))
            # Chooses tokens from these logits, as far as the chunk foresaw them, and the one behind.
            texts[row] = answers[row].follow(of_row, chunk, fed)
        # Back to the last column that is right in every row: what was fed after it was foreseen wrongly.
        position = rewinding.back_to(batch.tokens + _valid(running), position)
        yield texts


def _count(ahead: Sequence[Sequence[int]], *, first: bool, cropped: bool) -> int:
    """How many tokens each row is fed next.

    With the prompts, all drafts are, the shorter ones filled up: nobody sees what comes after them. Later,
    rows stay side by side: one that is ahead is fed what it knows until the others have caught up.

    Args:
        ahead: What is known or foreseen of each row.
        first: Whether they come with the prompts.
        cropped: Whether the cache can be cropped to a place within what is fed.
    """
    most = MAX_LOGIT_ROWS // len(ahead)
    if first:
        return min(max(map(len, ahead)), most - 1) if cropped else 0
    return max(1, min(*map(len, ahead), most))


def _valid(answers: Sequence[Answer]) -> int:
    """How many tokens behind the prompts are, in the cache, those of every answer that goes on."""
    going_on = [answer for answer in answers if answer.goes_on()] or answers
    return max(0, min(answer.steps for answer in going_on) - 1)


def token_logprobs(vlm: VLM, generation: Generation) -> tuple[TokenLogprob, ...]:
    """The answer token by token: what each adds to the text, and its log-probability."""
    decode = partial(vlm.text, skip_special=generation.skips_special)
    ids, text = generation.token_ids.tolist(), RunningText(decode)
    likeliest = generation.likeliest or [()] * len(ids)
    tokens, sent = [], 0
    for count, (logprob, others) in enumerate(zip(generation.logprobs.tolist(), likeliest, strict=True), 1):
        final = text(ids[:count])
        if count < len(ids) or generation.finish_reason == "length":
            final = final.rstrip(HALF)
        before = ids[max(0, count - 1 - _CONTEXT_TOKENS) : count - 1]
        top = tuple(TokenLogprob(_added(decode, before, other), value) for other, value in others)
        tokens.append(TokenLogprob(token=final[sent:], logprob=logprob, top=top))
        sent = max(sent, len(final))
    return tuple(tokens)


def _added(decode: Callable[[Sequence[int]], str], before: list[int], token: int) -> str:
    """What a token would add behind the ones before it; some tokenizers drop the space of a first one."""
    text = decode(before).rstrip(HALF)
    return decode([*before, token])[len(text) :]


class Rewinding:
    """How the cache of one generation goes back.

    Args:
        cache: An empty one.
        enabled: False leaves the cache alone; it then never goes back.

    Attributes:
        crops: Whether it can go back to any place; else only to where the last forward began.
    """

    def __init__(self, cache: DynamicCache, *, enabled: bool) -> None:
        self._layers: Any = cache.layers
        self._recurrent = [layer for layer, linear in enumerate(cache.is_linear) if linear]
        self._enabled = enabled
        self._marked = 0
        self._copies: dict[int, Any] = {}
        self.crops = not self._recurrent
        if enabled:
            for layer in self._layers:
                if isinstance(layer, DynamicSlidingWindowLayer):
                    layer.activate_past_recording()

    def mark(self, position: int, *, guesses: bool) -> None:
        """Comes before every forward.

        Args:
            position: Columns in the cache.
            guesses: Whether the forward may have to be undone.
        """
        self._marked = position
        if self._enabled and guesses:
            self._copies = {layer: copy.deepcopy(self._layers[layer]) for layer in self._recurrent}

    def back_to(self, wanted: int, position: int) -> int:
        """Comes after every forward.

        Args:
            wanted: How many columns are right.
            position: How many are in the cache.

        Returns:
            How many are in it now: at most ``wanted``.
        """
        if not self._enabled:
            return position
        target = min(wanted, position)
        if target < position and self._recurrent:
            target = self._marked
            for layer, before in self._copies.items():
                self._layers[layer] = before
        self._copies = {}
        for index, layer in enumerate(self._layers):
            if index not in self._recurrent:
                layer.crop(target - position)  # by 0, too: what has left a window goes
        return target
