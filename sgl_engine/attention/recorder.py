"""Adds up the attention that visual tokens receive, for prompts that run side by side (SGL, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_engine.attention.importance import AttentionSums
from sgl_engine.attention.rows import RowKeeper
from sgl_engine.prompt.encoded import PromptBatch

_ROWS_AT_ONCE = 64  # bounds the probabilities in memory to heads x 64 x keys, whatever the batch


@dataclass(frozen=True, eq=False)
class Scoring:
    """What beside scaling shapes the attention probabilities of some decoders.

    Attributes:
        softcap: Products are bounded to (-softcap, softcap), by a tanh, before the mask; None is unbounded.
        sinks: One score per head, (H,), of a column that takes its share of attention and holds nothing.
    """

    softcap: float | None = None
    sinks: Tensor | None = None


PLAIN = Scoring()


class AttentionRecorder:
    """Adds attention rows up, in float32, per layer and prompt.

    Columns are those of the padded batch (``PromptBatch``): the prompts take the first S, generated tokens
    follow.

    Args:
        layers: L.
        batch: Where the visual tokens are, in B prompts.
        first_rows: Of each prompt, the first position whose row counts.
        cached_tokens: Columns that were run before the recording began.
        keeper: Keeps the rows apart as well, of one prompt; None where only their sums are wanted.
    """

    def __init__(
        self,
        layers: int,
        batch: PromptBatch,
        first_rows: Sequence[int],
        cached_tokens: int = 0,
        keeper: RowKeeper | None = None,
    ) -> None:
        self._batch = batch
        self._keeper = keeper
        self._first_rows = tuple(first_rows)
        self._visual_tokens = [prompt.num_visual_tokens for prompt in batch.prompts]
        self._decode_rows = [[0] * layers for _ in batch.prompts]
        self._seen = [cached_tokens] * layers  # columns that each layer has run on
        # Sums stay on the device that computed them: copying each one would wait for each layer.
        self._prefill: list[Tensor | float] = [0.0] * layers
        self._decode: list[Tensor | float] = [0.0] * layers
        self._waiting: list[_Waiting | None] = [None] * layers
        self._running = list(range(len(batch)))
        self._starts = _FirstRows.of(batch, self._first_rows, self._running)

    def select(self, rows: Sequence[int]) -> None:
        """Tells which prompts run from now on, by their first numbers, ascending."""
        if list(rows) != self._running:
            self.catch_up()  # what waits was recorded of the prompts that ran until now
            self._running = list(rows)
            self._starts = _FirstRows.of(self._batch, self._first_rows, rows)

    def sums(self, row: int = 0) -> AttentionSums:
        """Returns what was recorded of one prompt so far."""
        self.catch_up()
        return AttentionSums(
            prefill=self._stack(self._prefill, row),
            decode=self._stack(self._decode, row),
            prefill_queries=len(self._batch.prompts[row]) - self._first_rows[row],
            decode_queries=max(self._decode_rows[row]),
        )

    def record(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        scoring: Scoring = PLAIN,
    ) -> None:
        """Adds the attention of one call of one layer, now or together with later calls.

        Args:
            layer: Decoder layer.
            query: (B, H, Q, D), after rotation.
            key: (B, H_kv, N, D), after rotation; all that the cache holds, new ones last.
            value: (B, H_kv, N, D); used only where rows are kept apart.
            mask: Boolean (True = visible) or additive, (1 or B, 1, Q, N); None is causal.
            scaling: Factor on the products of queries and keys.
            scoring: What else shapes them.
        """
        if not any(self._visual_tokens):
            return  # no visual token receives anything
        rows, keys = query.shape[2], key.shape[2]
        # The column of the first row. A sliding window's cache holds the last keys only, so their number may
        # be too small, and columns are counted here.
        before = max(self._seen[layer], keys - rows)
        self._seen[layer] = before + rows
        waiting = self._waiting[layer]
        if waiting is not None and not waiting.is_followed_by(keys):
            # Waiting rows share the newest keys, so each has to see exactly one key more than the last one.
            self._add_waiting(layer)
            waiting = None
        is_one_row = len(query) == rows == 1 and mask is None
        if not is_one_row or before < self._batch.tokens or before + rows != keys:
            # Prompt rows, several prompts or tokens, a mask, or a window that has dropped keys: the newest
            # keys of a later call would not do for these rows, so they are added at once.
            self._add_waiting(layer)
            self._add(layer, query, key, value, mask, (scaling, scoring), before)
        elif waiting is None:
            # The usual step of one answer. It waits: most of the cost of one row is the calls.
            self._waiting[layer] = _Waiting([query], key, value, (scaling, scoring))
        else:
            waiting.queries.append(query)
            waiting.key, waiting.value = key, value  # these begin with all earlier ones

    def catch_up(self) -> None:
        """Adds the rows that wait. ``sums`` does it by itself."""
        for layer in range(len(self._waiting)):
            self._add_waiting(layer)

    def _add_waiting(self, layer: int) -> None:
        """Adds the rows of tokens that were fed one by one, in one computation."""
        waiting, self._waiting[layer] = self._waiting[layer], None
        if waiting is not None:
            # The rows are the last of the columns, and a causal mask hides from each what came after it.
            query, before = torch.cat(waiting.queries, dim=2), waiting.key.shape[2] - len(waiting.queries)
            self._add(layer, query, waiting.key, waiting.value, None, waiting.shaping, before)

    def _add(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        shaping: tuple[float, Scoring],
        before: int,
    ) -> None:
        """Adds the attention of rows whose first one stands in column ``before``; shapes as in ``record``."""
        rows, keys = query.shape[2], key.shape[2]
        is_prompt = before < self._batch.tokens
        first_key = before + rows - keys  # its column: 0, or how many keys a window has dropped
        # Prompt rows before the last visual token do not count, so they are not computed at all.
        start = max(0, self._starts.earliest - before) if is_prompt else 0
        if self._keeper is not None:
            self._keeper.see_keys(layer, key, self._batch.tokens)
        received: Tensor | float = 0.0
        # Few rows at a time: all those of a long prompt together would need too much memory.
        at_once = max(1, _ROWS_AT_ONCE // len(query))
        for first in range(start, rows, at_once):
            last = min(first + at_once, rows)
            paid = _attention_rows(query, key, mask, shaping, first, last)  # (B, H * (last - first), N)
            if is_prompt and self._starts.differ:
                # In prompts side by side, the last visual token stands in different columns.
                paid = self._starts.hide_earlier(paid, before + first, before + last)
            received = received + paid.sum(dim=1)  # (B, N)
            if self._keeper is not None:
                columns = torch.tensor([self._batch.prompts[0].visual_positions], device=paid.device)
                columns -= first_key
                picked = paid.take_along_dim(columns.clamp(min=0)[:, None], dim=2)
                self._keeper.add(layer, picked, last - first, value, columns, is_prompt=is_prompt)
        if isinstance(received, Tensor):  # else all rows come before the first that counts
            totals = self._prefill if is_prompt else self._decode
            totals[layer] = totals[layer] + self._in_columns(received, first_key)
        if not is_prompt:
            for row in self._running:
                self._decode_rows[row][layer] += rows

    def _in_columns(self, received: Tensor, first_key: int) -> Tensor:
        """Puts what keys received into the prompts' columns.

        Args:
            received: Of prompts that run, (running, N).
            first_key: Column of the first key.

        Returns:
            Of all prompts, (B, S); 0 for those that do not run, and for columns without a key.
        """
        tokens = self._batch.tokens
        if first_key or received.shape[1] < tokens:
            # Left: what a window has dropped. Right: prompt columns that are not run yet.
            received = F.pad(
                received[:, : tokens - first_key],
                (first_key, max(0, tokens - first_key - received.shape[1])),
            )
        received = received[:, :tokens]  # what generated tokens received is not counted
        if len(received) < len(self._batch):
            # Some answers have ended, and left the batch.
            everyone = received.new_zeros(len(self._batch), tokens)
            received = everyone.index_copy(0, torch.tensor(self._running, device=received.device), received)
        return received

    def _stack(self, per_layer: list[Tensor | float], row: int) -> Tensor:
        """Returns the totals of one prompt's visual tokens, (L, V), on the CPU."""
        prompt, padding = self._batch.prompts[row], self._batch.padding[row]
        columns = torch.tensor(prompt.visual_positions, dtype=torch.int64) + padding
        nothing = torch.zeros(len(columns))  # of layers that have recorded no row, as recurrent ones
        return torch.stack(
            [
                nothing + (total[row].cpu()[columns] if isinstance(total, Tensor) else total)
                for total in per_layer
            ]
        )


@dataclass(eq=False)
class _Waiting:
    """Rows of one layer that wait to be added: of one prompt, whose tokens are fed one by one.

    Attributes:
        queries: (1, H, 1, D), of consecutive tokens.
        key: (1, H_kv, N, D), all keys that the last of these tokens saw; each token before saw one key less.
        value: (1, H_kv, N, D), of the same columns.
        shaping: Factor on the products of queries and keys, and what else shapes them.
    """

    queries: list[Tensor]
    key: Tensor
    value: Tensor
    shaping: tuple[float, Scoring]

    def is_followed_by(self, keys: int) -> bool:
        """Tells whether a row that sees ``keys`` keys may be added to these, and there is room for it."""
        return keys == self.key.shape[2] + 1 and len(self.queries) < _ROWS_AT_ONCE


@dataclass(frozen=True, eq=False)
class _FirstRows:
    """From which column on the rows of each running prompt count.

    Attributes:
        columns: int64 (running,).
        earliest: The smallest of them.
        differ: Whether they are not all the same.
    """

    columns: Tensor
    earliest: int
    differ: bool

    @classmethod
    def of(cls, batch: PromptBatch, first_rows: Sequence[int], rows: Sequence[int]) -> _FirstRows:
        """Finds the columns for the prompts that run; ``first_rows`` are positions in each prompt."""
        # No prompt row counts where there is no visual token: the first column after the prompts is too late.
        first = [
            first_rows[row] + batch.padding[row] if batch.prompts[row].num_visual_tokens else batch.tokens
            for row in rows
        ]
        return cls(torch.tensor(first), min(first, default=0), len(set(first)) > 1)

    def hide_earlier(self, paid: Tensor, first: int, last: int) -> Tensor:
        """Sets the probabilities of rows that do not count to 0.

        Args:
            paid: (running, H * rows, N), heads outermost.
            first: Column of the first row.
            last: Column behind the last one.
        """
        counts = torch.arange(first, last) >= self.columns[:, None]  # (running, rows)
        counts = counts.repeat(1, paid.shape[1] // (last - first)).to(paid.device)  # the same for each head
        return paid.masked_fill(~counts[:, :, None], 0.0)


def _attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, shaping: tuple[float, Scoring], first: int, last: int
) -> Tensor:
    """Computes the probabilities of query rows [first, last), float32 (B, H * rows, N), heads outermost."""
    scaling, scoring = shaping
    batch, heads, keys = len(query), query.shape[1], key.shape[2]
    groups = heads // key.shape[1]
    # Query heads of one group share a key head, so the keys need not be repeated.
    rows = query[:, :, first:last].float().reshape(batch, key.shape[1], groups * (last - first), -1)
    scores = (rows * scaling @ key.float().transpose(2, 3)).reshape(batch, heads, last - first, keys)
    scores = capped(scores, scoring.softcap)
    if mask is None and last - first == 1 and first + 1 == query.shape[2]:
        pass  # causal, but the last row sees everything
    elif mask is None:
        # Causal: all of the rows see the first `seen` keys, and each row one key more than the row before.
        seen = keys - query.shape[2] + first + 1
        late = torch.ones(last - first, keys - seen, dtype=torch.bool, device=query.device).triu()
        scores[..., seen:].masked_fill_(late, float("-inf"))
    elif mask.dtype == torch.bool:
        scores.masked_fill_(~mask[:, :, first:last], float("-inf"))  # as for SDPA: True is visible
    else:
        # As for eager attention: 0 or a large negative number.
        scores = scores + mask[:, :, first:last].float()
    return probabilities(scores, scoring.sinks).reshape(batch, -1, keys)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores, bounded where there is a cap."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def probabilities(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """What each key receives of scores (B, H, Q, N); what sinks (H,) receive is left out."""
    if sinks is None:
        return scores.softmax(dim=-1)
    taken = sinks.to(scores).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, taken), dim=-1).softmax(dim=-1)[..., :-1]
