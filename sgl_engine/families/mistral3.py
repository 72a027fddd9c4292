"""Mistral 3 and Pixtral: images of any size as one grid each, every row followed by a break token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.config import PictureConfig
from sgl_engine.errors import ProcessorError
from sgl_engine.families.base import BaseFamily, Scaled, Tile
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import axes_of_pictures, flat, most_area, side
from sgl_engine.prompt.encoded import PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class Mistral3(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods.

    Break and end tokens are tokens of their own: text, which is never pruned.
    """

    name = "mistral3"

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """From the sizes after resizing, which the processor returned."""
        del processor, sizes
        if "image_sizes" not in inputs:
            raise ProcessorError(
                "The prompt holds image tokens, but its inputs no image_sizes.",
                remedy="Pass all that the processor returned.",
            )
        step = side(config.vision_config.patch_size) * _merge(config)
        grids = [(height // step, width // step) for height, width in inputs["image_sizes"].tolist()]
        return [[Tile(grid, row_gap=1)] for grid in grids]

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """Its longest edge to at most so many pixels, then to whole merged patches."""
        longest = processor.image_processor.size["longest_edge"]
        step = side(config.vision_config.patch_size) * _merge(config)
        ratio = max(1.0, width / longest, height / longest)
        cols, rows = (math.ceil(int(length / ratio) / step) for length in (width, height))
        return Scaled(cols * step, rows * step) if rows * cols else None

    def resize(self, config: PreTrainedConfig, images: Any, wanted: PictureConfig) -> None:
        """Its longest edge to that of a square of the area: any other shape is smaller."""
        step = side(config.vision_config.patch_size) * _merge(config)
        area = most_area(wanted, step**2)
        if area is not None:
            longest = max(step, math.isqrt(area) // step * step)
            images.size = {"longest_edge": min(longest, images.size["longest_edge"])}

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """One entry each, padded to the largest of them."""
        del spans
        return axes_of_pictures(inputs, ("pixel_values", "image_sizes"))

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels, padded to one size, and the sizes of what is an image in them."""
        return {name: inputs[name] for name in ("pixel_values", "image_sizes")}

    def features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """As the model's own method, which fails over a single visual token: (1, hidden) for (hidden).

        That is where a picture's only token is the only one of all pictures.
        """
        step = side(model.config.vision_config.patch_size) * _merge(model.config)
        sizes = inputs["image_sizes"]
        if int((sizes // step).prod(dim=-1).sum()) > 1:
            return super().features(model, inputs)
        import torch

        inner, layer = model.model, model.config.vision_feature_layer
        seen = inner.vision_tower(
            inputs["pixel_values"], image_sizes=sizes, output_hidden_states=True, return_dict=True
        ).hidden_states
        chosen = [seen[index] for index in ([layer] if isinstance(layer, int) else layer)]
        return flat(inner.multi_modal_projector(torch.cat(chosen, dim=-1).squeeze(0), sizes))

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """One sequence of all images, in which each looks at itself only."""
        if "image_sizes" not in inputs:
            return ()
        patch = side(config.vision_config.patch_size)
        sizes = inputs["image_sizes"].tolist()
        return (sum(height // patch * (width // patch) for height, width in sizes),)

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """A gated tower; a merging matrix where patches are merged; a projector of two matrices."""
        vision, output, merge = config.vision_config, config.text_config.hidden_size, _merge(config)
        merging = (vision.hidden_size * merge) ** 2 if hasattr(config, "spatial_merge_size") else 0
        return VisionShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.num_channels * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=merge**2,
            projector=merging + (vision.hidden_size + output) * output,
            mlp_matrices=3,
        )


def _merge(config: PreTrainedConfig) -> int:
    """Patches per side that become one token."""
    return int(getattr(config, "spatial_merge_size", 1))
