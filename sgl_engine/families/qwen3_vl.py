"""Qwen3-VL: like Qwen2-VL, with DeepStack.

The tower gives several planes of features. The first stands in the prompt for the image tokens; the decoder
adds one of the others to the image tokens' hidden states after each of its first layers. Here the planes of a
token lie one behind the other in one row of the embeddings, so they are gathered, padded and joined as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import flat, side
from sgl_engine.families.own import as_the_tower
from sgl_engine.families.qwen2_vl import Qwen2VL
from sgl_engine.families.shape import VisionShape

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedConfig


class Qwen3VL(Qwen2VL):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "qwen3_vl"
    plane_adder = "_deepstack_process"

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """(V, planes * hidden)."""
        import torch

        if inputs.get("pixel_values") is None:
            return None
        seen = model.model.get_image_features(
            **as_the_tower(model, self.vision_inputs(inputs)), return_dict=True
        )
        planes = [seen.pooler_output, *seen.deepstack_features]
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
        return len(config.vision_config.deepstack_visual_indexes)

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """One merger per plane."""
        vision = config.vision_config
        merged = vision.spatial_merge_size**2
        width = vision.hidden_size * merged
        planes = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
        return VisionShape(
            layers=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.in_channels * vision.temporal_patch_size * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=merged,
            projector=planes * (width * width + width * vision.out_hidden_size),
        )
