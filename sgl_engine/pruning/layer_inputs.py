"""What layers below K hand to layer K, kept for the next prompt that begins in the same way. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What enters layer K of the first columns of prompts: the layers below K need not be run on them again.

    Attributes:
        hidden: Hidden states (B, P, hidden).
        cos: Of their rotary positions, (..., B or 1, P, width).
        sin: Likewise.
        position_ids: As layers are given them, (B or 1, P), or None.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    position_ids: Tensor | None

    @classmethod
    def entering(cls, hidden: Tensor, kwargs: Mapping[str, Any]) -> LayerInputs:
        """What a layer is given."""
        cos, sin = kwargs["position_embeddings"]
        return cls(hidden, cos, sin, kwargs.get("position_ids"))

    def cut(self, tokens: int) -> LayerInputs:
        """The first of them."""
        ids = self.position_ids
        return LayerInputs(
            self.hidden[:, :tokens],
            self.cos[..., :tokens, :],
            self.sin[..., :tokens, :],
            None if ids is None else ids[..., :tokens],
        )

    def padded(self, tokens: int) -> LayerInputs:
        """As many columns, those in front without meaning."""
        before = tokens - self.hidden.shape[1]
        ids = self.position_ids
        pad = torch.nn.functional.pad
        return LayerInputs(
            pad(self.hidden, (0, 0, before, 0)),
            pad(self.cos, (0, 0, before, 0)),
            pad(self.sin, (0, 0, before, 0)),
            None if ids is None else pad(ids, (before, 0)),
        )

    def followed_by(self, after: LayerInputs, *, with_hidden: bool = True) -> LayerInputs:
        """One after the other; the hidden states are those of ``after`` alone where others are not wanted."""
        rows, more = self.position_ids, after.position_ids
        return LayerInputs(
            torch.cat((self.hidden, after.hidden), dim=1) if with_hidden else after.hidden,
            torch.cat((self.cos, after.cos), dim=-2),
            torch.cat((self.sin, after.sin), dim=-2),
            None if rows is None or more is None else torch.cat((rows, more), dim=-1),
        )

    @classmethod
    def join(cls, parts: Sequence[LayerInputs]) -> LayerInputs:
        """Prompts side by side."""
        ids = [part.position_ids for part in parts if part.position_ids is not None]
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.cos for part in parts], dim=-3),
            torch.cat([part.sin for part in parts], dim=-3),
            torch.cat(ids, dim=-2) if ids else None,
        )

    def select(self, rows: Sequence[int]) -> LayerInputs:
        """Some of the prompts."""
        chosen = torch.tensor(rows, device=self.hidden.device)
        ids = self.position_ids
        return LayerInputs(
            self.hidden[chosen],
            self.cos.index_select(-3, chosen.to(self.cos.device)),
            self.sin.index_select(-3, chosen.to(self.sin.device)),
            None if ids is None else ids[chosen],
        )

    def complete(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, with_hidden: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a layer would have been given if the forward had begun at the first column; no mask yet."""
        hidden, *rest = args
        own = LayerInputs.entering(hidden, kwargs)
        whole = self.followed_by(own, with_hidden=with_hidden)
        return (whole.hidden, *rest), {
            **kwargs,
            "position_embeddings": (whole.cos, whole.sin),
            "position_ids": whole.position_ids,
            "attention_mask": None,
        }
