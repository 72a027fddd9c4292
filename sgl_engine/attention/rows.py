"""Keeps attention row by row, where sums are not enough: for rankers and studies, never for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Attention that each visual token of one prompt received from each query row, heads summed.

    R = P + D rows: P of the prompt, from the last visual token (included) to its end, then one per generated
    token that was fed back. All on the CPU; layers without attention are zero.

    Attributes:
        plain: float32 (L, R, V), probabilities. Their sum over rows is what ``AttentionSums`` holds.
        by_value: float32 (L, R, V); each head's probability times the norm of the value vector that it weighs
            (CAPA, arXiv 2602.00247, "attention contribution").
        key_norms: float32 (L, S), L1 norm of each prompt token's key, all heads together.
        prompt_rows: P.
    """

    plain: Tensor
    by_value: Tensor
    key_norms: Tensor
    prompt_rows: int

    @property
    def attending(self) -> tuple[int, ...]:
        """Layers with attention, ascending; recurrent ones have none."""
        return tuple(layer for layer, rows in enumerate(self.plain) if bool(rows.any()))

    @property
    def maps(self) -> Tensor:
        """One map per layer with attention, rows added up: float32 (layers, V)."""
        return self.plain[list(self.attending)].sum(dim=1)


class RowKeeper:
    """Collects the rows of one prompt while it runs.

    Args:
        layers: L.
    """

    def __init__(self, layers: int) -> None:
        self._plain: list[list[Tensor]] = [[] for _ in range(layers)]
        self._by_value: list[list[Tensor]] = [[] for _ in range(layers)]
        self._keys: list[Tensor | None] = [None] * layers
        self._prompt_rows = [0] * layers

    def add(
        self, layer: int, paid: Tensor, rows: int, value: Tensor, columns: Tensor, *, is_prompt: bool
    ) -> None:
        """Adds rows of one layer.

        Args:
            layer: Decoder layer.
            paid: (1, H * rows, V), heads outermost: probability of each visual token.
            rows: How many rows.
            value: (1, H_kv, N, D).
            columns: int64 (1, V), where in N the visual tokens stand; negative where a sliding window has
                dropped them.
            is_prompt: Whether the rows belong to the prompt.
        """
        assert len(paid) == 1, "rows are kept of one prompt at a time"
        # Dropped tokens received nothing; any column will do to read from, before the result is set to 0.
        at = columns[0].clamp(min=0)
        heads = paid[0].masked_fill(columns[0] < 0, 0.0).reshape(-1, rows, len(at))
        norms = value[0, :, at].float().norm(dim=-1)  # (H_kv, V)
        norms = norms.repeat_interleave(
            len(heads) // len(norms), dim=0
        )  # query heads share value heads: (H, V)
        self._plain[layer].append(heads.sum(dim=0).cpu())
        self._by_value[layer].append((heads * norms[:, None]).sum(dim=0).cpu())
        self._prompt_rows[layer] += rows if is_prompt else 0

    def see_keys(self, layer: int, key: Tensor, prompt_tokens: int) -> None:
        """Notes the norms of the prompt's keys, from keys (1, H_kv, N, D)."""
        # Only once all of them are there, and only the first time: later calls hold the same keys.
        if self._keys[layer] is None and key.shape[2] >= prompt_tokens:
            norms = key[0, :, :prompt_tokens].float().abs().sum(dim=(0, 2))
            self._keys[layer] = norms.cpu()

    def rows(self) -> AttentionRows:
        """Returns what was kept so far."""
        return AttentionRows(
            plain=_stack([torch.cat(parts) if parts else None for parts in self._plain]),
            by_value=_stack([torch.cat(parts) if parts else None for parts in self._by_value]),
            key_norms=_stack(self._keys),
            prompt_rows=max(self._prompt_rows),
        )


def _stack(layers: Sequence[Tensor | None]) -> Tensor:
    """Stacks the layers' tensors, with zeros for layers that have none."""
    # Recurrent layers have none; all others have tensors of one shape.
    known = next((layer for layer in layers if layer is not None), None)
    assert known is not None, "nothing has run"
    return torch.stack([torch.zeros_like(known) if layer is None else layer for layer in layers])
