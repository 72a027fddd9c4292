"""Several prompts side by side, left-padded, so that their last tokens stand in one column. Pure.

Column c of a row is prompt position c - padding; the tokens after the prompts stand in columns S, S + 1, ...
So columns of a row are as far apart as its positions are, and causal masks and windows are right for columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_engine.prompt.encoded import EncodedPrompt

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts that run together.

    Attributes:
        prompts: One per row, B of them.
        tokens: S, columns that the prompts take; that of the longest prompt when the batch was made.
        pad_token: What stands in columns without a token; no image token.
    """

    prompts: tuple[EncodedPrompt, ...]
    tokens: int
    pad_token: int = 0

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt], pad_token: int = 0) -> PromptBatch:
        """Pads to the longest; one prompt alone is not padded."""
        return cls(tuple(prompts), max(map(len, prompts)), pad_token)

    def __len__(self) -> int:
        """B."""
        return len(self.prompts)

    def select(self, rows: Sequence[int]) -> PromptBatch:
        """Some of the rows, in the same columns."""
        return replace(self, prompts=tuple(self.prompts[row] for row in rows))

    @property
    def padding(self) -> tuple[int, ...]:
        """Columns before the first token of each row."""
        return tuple(self.tokens - len(prompt) for prompt in self.prompts)

    @property
    def is_padded(self) -> bool:
        """Whether any row has such columns."""
        return any(self.padding)

    @cached_property
    def inputs(self) -> Mapping[str, Tensor]:
        """What masks are made of: all of one prompt's own, else "input_ids", "attention_mask" (B, S)."""
        if len(self) == 1 and not self.is_padded:
            return self.prompts[0].inputs
        ids = [
            F.pad(prompt.input_ids, (padding, 0), value=self.pad_token)
            for prompt, padding in zip(self.prompts, self.padding, strict=True)
        ]
        return {"input_ids": torch.cat(ids), "attention_mask": self.attention_mask(self.tokens)}

    def attention_mask(self, columns: int) -> Tensor:
        """Which of the first columns hold a token, int64 (B, columns); those after the prompts all do."""
        padding = torch.tensor(self.padding, device=self._device)[:, None]
        return (torch.arange(columns, device=self._device) >= padding).long()

    def join(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Embeddings of each prompt, (1, S_b, width), as one: (B, S, widest)."""
        width = max(part.shape[-1] for part in embeddings)
        padded = [
            F.pad(part, (0, width - part.shape[-1], padding, 0))
            for part, padding in zip(embeddings, self.padding, strict=True)
        ]
        return torch.cat(padded)

    def positions(self, first: int, count: int) -> Tensor:
        """Rotary positions of ``count`` columns from ``first`` on: (B, N), or (axes, B, N).

        Tokens after a prompt go on by one from the largest position in it, on every axis. Padding has 0.
        """
        known = self._prompt_positions[..., first : first + count]
        after = torch.arange(first, first + count, device=self._device)[known.shape[-1] :] - self.tokens
        following = self._next_positions[:, None] + after
        return torch.cat((known, following.expand(*known.shape[:-1], -1)), dim=-1)

    @cached_property
    def _prompt_positions(self) -> Tensor:
        """(B, S), or (axes, B, S) where any prompt has axes."""
        axes = max((0 if prompt.positions is None else len(prompt.positions)) for prompt in self.prompts)
        rows = []
        for prompt, padding in zip(self.prompts, self.padding, strict=True):
            own = prompt.positions
            if own is None:
                own = torch.arange(len(prompt), device=self._device)[None]
                own = own.expand(axes, 1, -1) if axes else own
            rows.append(F.pad(own, (padding, 0)))
        return torch.cat(rows, dim=-2)

    @cached_property
    def _next_positions(self) -> Tensor:
        """(B,)."""
        largest = self._prompt_positions.amax(dim=-1)
        return (largest.amax(dim=0) if largest.ndim == 2 else largest) + 1

    @property
    def _device(self) -> torch.device:
        return self.prompts[0].input_ids.device


MAX_ROWS = 32
"""Prompts side by side; more hold more memory and gain little."""

_MAX_MASK_VALUES = 2**27  # a mask of padded prompts has one value for each row, query and key


def most_rows(longest: int, max_rows: int = MAX_ROWS) -> int:
    """Rows that may run together, the longest of ``longest`` tokens; at least one."""
    return max(1, min(max_rows, _MAX_MASK_VALUES // longest**2))
