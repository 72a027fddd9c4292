"""Holds what the layers below K hand to layer K, for the next prompt that begins in the same way. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What enters layer K for the first P columns of prompts, so that the layers below need not run on them.

    Attributes:
        hidden: Hidden states (B, P, hidden).
        cos: Cosines of their rotary positions, (..., B or 1, P, width).
        sin: Sines, of the same shape.
        position_ids: As layers are given them, (B or 1, P), or None.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    position_ids: Tensor | None

    @classmethod
    def entering(cls, hidden: Tensor, kwargs: Mapping[str, Any]) -> LayerInputs:
        """Takes them from the arguments of a decoder layer's call."""
        cos, sin = kwargs["position_embeddings"]
        return cls(hidden, cos, sin, kwargs.get("position_ids"))

    def cut(self, tokens: int) -> LayerInputs:
        """Returns those of the first ``tokens`` columns."""
        ids = self.position_ids
        return LayerInputs(
            self.hidden[:, :tokens],
            self.cos[..., :tokens, :],
            self.sin[..., :tokens, :],
            None if ids is None else ids[..., :tokens],
        )

    def padded(self, tokens: int) -> LayerInputs:
        """Puts meaningless columns in front, so that there are ``tokens``: a batch is padded on the left."""
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
        """Appends the columns of ``after``; without ``with_hidden``, its hidden states replace these.

        Above layer K, the hidden states of all columns come from the layer below; only positions are missing.
        """
        rows, more = self.position_ids, after.position_ids
        return LayerInputs(
            torch.cat((self.hidden, after.hidden), dim=1) if with_hidden else after.hidden,
            torch.cat((self.cos, after.cos), dim=-2),
            torch.cat((self.sin, after.sin), dim=-2),
            None if rows is None or more is None else torch.cat((rows, more), dim=-1),
        )

    @classmethod
    def join(cls, parts: Sequence[LayerInputs]) -> LayerInputs:
        """Puts prompts of equally many columns side by side."""
        ids = [part.position_ids for part in parts if part.position_ids is not None]
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.cos for part in parts], dim=-3),
            torch.cat([part.sin for part in parts], dim=-3),
            torch.cat(ids, dim=-2) if ids else None,
        )

    def select(self, rows: Sequence[int]) -> LayerInputs:
        """Returns those of some of the prompts."""
        chosen = torch.tensor(rows, device=self.hidden.device)
        ids = self.position_ids
        return LayerInputs(
            self.hidden[chosen],
            self.cos.index_select(-3, chosen.to(self.cos.device)),
            self.sin.index_select(-3, chosen.to(self.sin.device)),
            None if ids is None else ids.index_select(-2, chosen),
        )

    def complete(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, with_hidden: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Completes a layer's arguments, as if the forward had begun at the first column.

        Args:
            args: Positional arguments of the layer's call, which began after these columns.
            kwargs: Its other arguments.
            with_hidden: Whether the hidden states of these columns are missing, as they are in layer K alone.

        Returns:
            The same arguments for all columns, without a mask, which depends on what is pruned.
        """
        hidden, *rest = args
        own = LayerInputs.entering(hidden, kwargs)
        whole = self.followed_by(own, with_hidden=with_hidden)
        return (whole.hidden, *rest), {
            **kwargs,
            "position_embeddings": (whole.cos, whole.sin),
            "position_ids": whole.position_ids,
            "attention_mask": None,
        }
