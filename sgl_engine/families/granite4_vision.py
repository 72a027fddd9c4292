"""Granite 4 Vision: planes of visual features that are added before some of the decoder's layers.

Image tokens have zeros for embeddings: all that they are comes with the planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sgl_engine.families.deepstack import GenericDeepStack
from sgl_engine.families.own import as_the_tower
from sgl_engine.families.sizes import flat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedConfig


class Granite4Vision(GenericDeepStack):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "granite4_vision"
    plane_adder = None
    plane_inputs = ("vision_mask", "deepstack_features")

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """(V, (1 + planes) * hidden), the first of zeros."""
        import torch

        if inputs.get("pixel_values") is None:
            return None
        seen = model.model.get_image_features(
            **as_the_tower(model, {name: inputs[name] for name in ("pixel_values", "image_sizes")}),
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            return_dict=True,
        )
        planes = [flat(plane) for _, plane in seen.deepstack_features]
        return torch.cat([torch.zeros_like(planes[0]), *planes], dim=-1)

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
        """Takes the planes apart again, by the layers that they are added before."""
        given = super().decoder_inputs(model, embeddings, inputs, positions, cache, first=first)
        planes = given.pop("deepstack_visual_embeds", None)
        if planes is None:
            return given
        is_image = given.pop("visual_pos_masks")
        by_layer = dict(zip(_layers(model.config), planes, strict=True))
        return {**given, "vision_mask": is_image[..., None], "deepstack_features": by_layer}

    def first_plain_layer(self, config: PreTrainedConfig) -> int:
        """The last layer that a plane is added before: what enters it has them all."""
        return max(_layers(config))


def _layers(config: PreTrainedConfig) -> list[int]:
    """Before which layer each plane is added, in the order of ``get_image_features``."""
    return [*(layer for _, layer in config.deepstack_layer_map), *config.spatial_target_layers]
