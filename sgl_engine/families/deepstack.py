"""DeepStack: planes of visual features that the decoder adds to hidden states after its first layers.

The tower gives several planes. The first stands in the prompt for the image tokens. Here the planes of a
token lie one behind the other in one row of the embeddings, so they are gathered, padded and joined as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import BaseFamily
from sgl_engine.families.generic import Generic
from sgl_engine.families.own import as_the_tower
from sgl_engine.families.sizes import flat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedConfig


class DeepStack(BaseFamily):
    """To be mixed into a family; see the module docstring."""

    plane_adder: str | None = "_deepstack_process"

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """(V, planes * hidden)."""
        import torch

        if inputs.get("pixel_values") is None:
            return None
        given = as_the_tower(model, self.vision_inputs(inputs))
        seen = model.model.get_image_features(**given, return_dict=True)
        planes = [seen.pooler_output, *(seen.deepstack_features or ())]
        return torch.cat([flat(plane) for plane in planes], dim=-1)

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Text has zeros in the planes that are added later."""
        import torch

        embeddings: Tensor = model.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        wide = torch.nn.functional.pad(embeddings, (0, features.shape[-1] - embeddings.shape[-1]))
        is_image = (input_ids == self.image_token_id(model.config)).unsqueeze(-1)
        return wide.masked_scatter(is_image, features.to(wide.device, wide.dtype))

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
        """Takes the planes apart again."""
        import torch

        del positions, cache
        hidden = self.text_model(model).config.hidden_size
        if embeddings.shape[-1] == hidden:
            return {"inputs_embeds": embeddings}
        tokens, *planes = embeddings.split(hidden, dim=-1)
        last = first + embeddings.shape[1]
        is_image = inputs["input_ids"][:, first:last] == self.image_token_id(model.config)
        is_image = torch.nn.functional.pad(is_image, (0, embeddings.shape[1] - is_image.shape[1]))
        return {
            "inputs_embeds": tokens,
            "visual_pos_masks": is_image,
            "deepstack_visual_embeds": [plane[is_image] for plane in planes],
        }

    def first_plain_layer(self, config: PreTrainedConfig) -> int:
        """The layer after the last one that a plane is added behind."""
        return len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())


class GenericDeepStack(DeepStack, Generic):
    """An architecture whose pictures are stretches of unknown shape, with planes."""

    name = "deepstack"
