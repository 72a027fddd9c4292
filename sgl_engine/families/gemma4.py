"""Gemma 4: windows, a larger head in full layers, pictures that may see themselves in both directions.

Some sizes have embeddings of their own in every layer, which go by the token. They lie behind the token's
embedding in one row, so they are gathered, padded and joined with it. The last layers of these sizes see keys
and values of earlier ones, so pruning must not begin behind those.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sgl_engine.families.both_ways import BothWays

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class Gemma4(BothWays):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "gemma4"

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Image tokens have, in the layers' own embeddings, those of padding."""
        import torch

        embeddings = super().embed(model, input_ids, features)
        text = model.config.get_text_config()
        if not text.hidden_size_per_layer_input:
            return embeddings
        ids = input_ids.masked_fill(input_ids == self.image_token_id(model.config), text.pad_token_id)
        decoder: Any = self.text_model(model)
        own = decoder.get_per_layer_inputs(ids, None)  # (B, S, L, width)
        return torch.cat((embeddings, own.flatten(2).to(embeddings)), dim=-1)

    def keys_of(self, text: PreTrainedConfig, layer: int) -> int:
        """The last layers of small sizes share those of the last layer of their kind before them."""
        return _keys_of(tuple(text.layer_types), text.num_kv_shared_layers)[layer]

    def can_be_shortened(self, text: PreTrainedConfig) -> bool:
        """Not where layers share keys, or have embeddings of their own in one table."""
        return not (text.num_kv_shared_layers or text.hidden_size_per_layer_input)

    def decoder_embeddings(self, model: Any, embeddings: Tensor) -> dict[str, Any]:
        """The layers' own embeddings apart."""
        text = model.config.get_text_config()
        tokens, own = embeddings.tensor_split([text.hidden_size], dim=-1)
        given: dict[str, Any] = {"inputs_embeds": tokens}
        if own.shape[-1]:
            given["per_layer_inputs"] = own.unflatten(-1, (text.num_hidden_layers, -1))
        return given


@lru_cache  # asked for every layer in every step
def _keys_of(kinds: tuple[str, ...], shared: int) -> tuple[int, ...]:
    """The layer whose keys each layer sees."""
    own = len(kinds) - shared
    last = {kind: layer for layer, kind in enumerate(kinds[:own])}
    return tuple(layer if layer < own else last[kind] for layer, kind in enumerate(kinds))
