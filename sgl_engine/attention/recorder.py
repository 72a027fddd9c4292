"""Attention rows -> what each visual token received, for prompts that run side by side (SGL, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_engine.attention.importance import AttentionSums
from sgl_engine.attention.rows import RowKeeper
from sgl_engine.prompt.batch import PromptBatch

_ROWS_AT_ONCE = 64  # bounds the probabilities in memory to heads x 64 x keys, whatever the batch


class AttentionRecorder:
    """Adds attention rows up, in float32, per layer and prompt.

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
        self._seen = [cached_tokens] * layers
        # Sums stay on the device that computed them: copying each one would wait for each layer.
        self._prefill: list[Tensor | float] = [0.0] * layers
        self._decode: list[Tensor | float] = [0.0] * layers
        self._waiting: list[_Waiting | None] = [None] * layers
        self._running = list(range(len(batch)))
        self._targets = _Targets.of(batch, self._first_rows, self._running)

    def select(self, rows: Sequence[int]) -> None:
        """From now on only these prompts run; numbers as at the beginning, ascending."""
        if list(rows) != self._running:
            self.catch_up()
            self._running = list(rows)
            self._targets = _Targets.of(self._batch, self._first_rows, rows)

    def sums(self, row: int = 0) -> AttentionSums:
        """What was recorded so far, of one prompt."""
        self.catch_up()
        return AttentionSums(
            prefill=self._stack(self._prefill, row),
            decode=self._stack(self._decode, row),
            prefill_queries=len(self._batch.prompts[row]) - self._first_rows[row],
            decode_queries=max(self._decode_rows[row]),
        )

    def record(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """Adds one call of one layer.

        Args:
            layer: Decoder layer.
            query: (B, H, Q, D), after rotation.
            key: (B, H_kv, N, D), after rotation, what the cache holds included.
            value: (B, H_kv, N, D); looked at only where rows are kept apart.
            mask: Boolean (True = visible) or additive, (1 or B, 1, Q, N); None is causal.
            scaling: Factor on the products.
        """
        if not any(self._visual_tokens):
            return
        rows, keys = query.shape[2], key.shape[2]
        # A sliding window's cache holds the last keys only, so the keys' own number says nothing.
        before = max(self._seen[layer], keys - rows)
        self._seen[layer] = before + rows
        waiting = self._waiting[layer]
        if waiting is not None and not waiting.goes_on(keys):
            self._add_waiting(layer)
            waiting = None
        alone = len(query) == rows == 1 and mask is None
        if not alone or before < self._batch.tokens or before + rows != keys:
            self._add_waiting(layer)
            self._add(layer, query, key, value, mask, scaling, before)
        elif waiting is None:
            self._waiting[layer] = _Waiting([query], key, value, scaling)
        else:
            waiting.queries.append(query)
            waiting.key, waiting.value = key, value

    def catch_up(self) -> None:
        """Adds the rows that wait; ``sums`` does it too."""
        for layer in range(len(self._waiting)):
            self._add_waiting(layer)

    def _add_waiting(self, layer: int) -> None:
        """Adds the rows of tokens that were fed one by one, together: most of their cost is calls."""
        waiting, self._waiting[layer] = self._waiting[layer], None
        if waiting is not None:
            query, before = torch.cat(waiting.queries, dim=2), waiting.key.shape[2] - len(waiting.queries)
            self._add(layer, query, waiting.key, waiting.value, None, waiting.scaling, before)

    def _add(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        before: int,
    ) -> None:
        """As ``record``, of rows from column ``before`` on."""
        rows, keys = query.shape[2], key.shape[2]
        prefill = before < self._batch.tokens
        targets = self._targets
        start = max(0, targets.first_row - before) if prefill else 0
        if self._keeper is not None:
            self._keeper.see_keys(layer, key, self._batch.tokens)
        received: Tensor | float = 0.0
        at_once = max(1, _ROWS_AT_ONCE // len(query))
        for first in range(start, rows, at_once):
            last = min(first + at_once, rows)
            paid = _attention_rows(query, key, mask, scaling, first, last)
            if prefill and targets.is_uneven:
                paid = targets.counted(paid, before + first, before + last)
            received = received + paid.sum(dim=1)
            if self._keeper is not None:
                columns = torch.tensor([self._batch.prompts[0].visual_positions], device=paid.device)
                columns -= before + rows - keys
                picked = paid.take_along_dim(columns.clamp(min=0)[:, None], dim=2)
                self._keeper.add(layer, picked, last - first, value, columns, is_prompt=prefill)
        if isinstance(received, Tensor):
            totals = self._prefill if prefill else self._decode
            totals[layer] = totals[layer] + self._placed(received, before + rows - keys)
        if not prefill:
            for row in self._running:
                self._decode_rows[row][layer] += rows

    def _placed(self, received: Tensor, first: int) -> Tensor:
        """What keys from column ``first`` on received in prompts that run, as (B, S): of all prompts."""
        tokens = self._batch.tokens
        if first or received.shape[1] < tokens:  # what a window has left behind, and what is to come: nothing
            received = F.pad(
                received[:, : tokens - first], (first, max(0, tokens - first - received.shape[1]))
            )
        received = received[:, :tokens]
        if len(received) < len(self._batch):
            everyone = received.new_zeros(len(self._batch), tokens)
            received = everyone.index_copy(0, torch.tensor(self._running, device=received.device), received)
        return received

    def _stack(self, per_layer: list[Tensor | float], row: int) -> Tensor:
        """Of one prompt's visual tokens, (L, V), on the CPU."""
        prompt, padding = self._batch.prompts[row], self._batch.padding[row]
        columns = torch.tensor(prompt.visual_positions, dtype=torch.int64) + padding
        nothing = torch.zeros(len(columns))
        return torch.stack(
            [
                nothing + (total[row].cpu()[columns] if isinstance(total, Tensor) else total)
                for total in per_layer
            ]
        )


@dataclass(eq=False)
class _Waiting:
    """Rows of one layer that are added up later: of one prompt, whose tokens are fed one by one.

    Attributes:
        queries: (1, H, 1, D), of consecutive tokens.
        key: (1, H_kv, N, D), as the last of them saw it; the others saw all but its last ones.
        value: Likewise.
        scaling: Factor on the products.
    """

    queries: list[Tensor]
    key: Tensor
    value: Tensor
    scaling: float

    def goes_on(self, keys: int) -> bool:
        """Whether a row that sees so many keys is the next one, and there is room for it."""
        return keys == self.key.shape[2] + 1 and len(self.queries) < _ROWS_AT_ONCE


@dataclass(frozen=True, eq=False)
class _Targets:
    """From which rows on prompts that run are counted.

    Attributes:
        first_rows: int64 (B,), columns.
        first_row: The first of them.
        is_uneven: Whether they differ.
    """

    first_rows: Tensor
    first_row: int
    is_uneven: bool

    @classmethod
    def of(cls, batch: PromptBatch, first_rows: Sequence[int], rows: Sequence[int]) -> _Targets:
        first = [
            first_rows[row] + batch.padding[row] if batch.prompts[row].num_visual_tokens else batch.tokens
            for row in rows
        ]
        return cls(torch.tensor(first), min(first, default=0), len(set(first)) > 1)

    def counted(self, paid: Tensor, first: int, last: int) -> Tensor:
        """Of probabilities (B, H * rows, N), heads outermost, those of rows that count; 0 elsewhere."""
        counts = torch.arange(first, last) >= self.first_rows[:, None]
        counts = counts.repeat(1, paid.shape[1] // (last - first)).to(paid.device)
        return paid.masked_fill(~counts[:, :, None], 0.0)


def _attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, first: int, last: int
) -> Tensor:
    """Probabilities of query rows [first, last), float32 (B, H * rows, N), heads outermost."""
    batch, heads, keys = len(query), query.shape[1], key.shape[2]
    groups = heads // key.shape[1]
    # Query heads of one group share a key head, so the keys need not be repeated.
    rows = query[:, :, first:last].float().reshape(batch, key.shape[1], groups * (last - first), -1)
    scores = (rows * scaling @ key.float().transpose(2, 3)).reshape(batch, heads, last - first, keys)
    if mask is None and last - first == 1 and first + 1 == query.shape[2]:
        pass  # the last row sees everything
    elif mask is None:
        seen = keys - query.shape[2] + first + 1  # by every one of the rows
        late = torch.ones(last - first, keys - seen, dtype=torch.bool, device=query.device).triu()
        scores[..., seen:].masked_fill_(late, float("-inf"))
    elif mask.dtype == torch.bool:
        scores.masked_fill_(~mask[:, :, first:last], float("-inf"))
    else:
        scores = scores + mask[:, :, first:last].float()
    return scores.softmax(dim=-1).reshape(batch, -1, keys)
