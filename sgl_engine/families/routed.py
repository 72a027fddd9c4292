"""Families that differ from the plain path in a single place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sgl_engine.families.generic import Generic
from sgl_engine.families.grids import Grids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache


class Ernie4_5(Grids):  # noqa: N801  # the version's own spelling
    """ERNIE 4.5 VL: tokens of pictures go to experts of their own."""

    name = "ernie4_5_vl_moe"

    def decoder_inputs(
        self,
        model: Any,
        embeddings: Tensor,
        inputs: Mapping[str, Tensor],
        positions: Tensor,
        cache: Cache | None,
        *,
        first: int,
    ) -> dict[str, Any]:
        """Which tokens are theirs; those after the prompt are text."""
        import torch

        del model, positions, cache
        kinds = inputs.get("moe_mm_token_type_ids")
        if kinds is None:
            return {"inputs_embeds": embeddings}
        own = kinds[:, first : first + embeddings.shape[1]]
        own = torch.nn.functional.pad(own, (0, embeddings.shape[1] - own.shape[1]))
        return {"inputs_embeds": embeddings, "moe_mm_token_type_ids": own}


class Ovis2(Generic):
    """Ovis 2: the tokens around a picture have embeddings from the vision side too."""

    name = "ovis2"

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """With the rows of the table of visual words that stand for them."""
        import torch

        embeddings = super().embed(model, input_ids, features)
        if features is None:
            return embeddings
        inner = model.model
        last = inner.visual_vocab_size
        words = torch.arange(last - inner.vision_tower.num_visual_indicator_tokens, last)
        table = inner.visual_embeddings_table(words.to(input_ids.device)).to(embeddings)
        for row, token in zip(table, inner.visual_indicator_token_ids, strict=False):
            embeddings = torch.where((input_ids == token)[..., None], row, embeddings)
        return embeddings
