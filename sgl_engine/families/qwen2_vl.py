"""Qwen2-VL and Qwen2.5-VL: images of any size as one grid each, rotary positions with three axes.

An image is resized to a multiple of the merged patch, keeping its aspect ratio but for rounding, so its grid
shows the whole image. Positions count time, row and column; text after an image goes on from the largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.config import PictureConfig
from sgl_engine.errors import ProcessorError
from sgl_engine.families.base import BaseFamily, Scaled, Tile
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import side
from sgl_engine.prompt.encoded import PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class Qwen2VL(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "qwen2_vl"

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """From the grids that the processor returned."""
        del processor, sizes
        if "image_grid_thw" not in inputs:
            raise ProcessorError(
                "The prompt holds image tokens, but its inputs no image_grid_thw.",
                remedy="Pass all that the processor returned.",
            )
        merge = config.vision_config.spatial_merge_size
        grids = [(rows // merge, cols // merge) for _, rows, cols in inputs["image_grid_thw"].tolist()]
        return [[Tile(grid)] for grid in grids]

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """To whole merged patches, within a range of areas."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        del config
        images = processor.image_processor
        if max(width, height) > 200 * min(width, height):
            return None  # refused when the picture is processed
        rows, cols = smart_resize(
            height,
            width,
            factor=images.patch_size * images.merge_size,
            min_pixels=images.size["shortest_edge"],
            max_pixels=images.size["longest_edge"],
        )
        return Scaled(cols, rows)

    def resize(self, config: PreTrainedConfig, images: Any, wanted: PictureConfig) -> None:
        """Its own range of areas; at least one token."""
        del config
        token = (images.patch_size * images.merge_size) ** 2
        high = wanted.max_pixels or images.size["longest_edge"]
        if wanted.max_visual_tokens:
            high = min(high, wanted.max_visual_tokens * token)
        high = max(high, token)
        low = min(wanted.min_pixels or images.size["shortest_edge"], high)
        images.size = {"shortest_edge": low, "longest_edge": high}

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Time, row and column of every prompt token, as the model counts them: (3, B, S)."""
        if "image_grid_thw" not in inputs:
            return None
        ids = inputs["input_ids"]
        kinds = inputs.get("mm_token_type_ids")
        if kinds is None:
            kinds = (ids == self.image_token_id(model.config)).int()
        found: Tensor = model.model.get_rope_index(
            ids,
            mm_token_type_ids=kinds,
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs.get("attention_mask"),
        )[0]
        return found

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """As many patches as the picture's grid has; one grid each."""
        if "image_grid_thw" not in inputs:
            return None
        patches = inputs["image_grid_thw"].prod(dim=-1).tolist()
        if len(spans) != len(patches):
            return None
        return {"pixel_values": (0, patches), "image_grid_thw": (0, [1] * len(patches))}

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Patches, and the grids that they form."""
        return {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """One pass per image, however large."""
        del config
        if "image_grid_thw" not in inputs:
            return ()
        return tuple(inputs["image_grid_thw"].prod(dim=-1).tolist())

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """A merger of two matrices over merged patches."""
        vision = config.vision_config
        merged = vision.spatial_merge_size**2
        width = vision.embed_dim * merged
        return VisionShape(
            layers=vision.depth,
            hidden=vision.embed_dim,
            intermediate=int(vision.embed_dim * vision.mlp_ratio),
            patch_values=vision.in_channels * vision.temporal_patch_size * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=merged,
            projector=width * width + width * vision.hidden_size,
        )


class Qwen2_5VL(Qwen2VL):  # noqa: N801  # the version's own spelling
    """Like Qwen2-VL, with another tower: gated, and most of its layers look at windows."""

    name = "qwen2_5_vl"

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """Counted as if every layer looked at the whole image."""
        vision = config.vision_config
        merged = vision.spatial_merge_size**2
        width = vision.hidden_size * merged
        return VisionShape(
            layers=vision.depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.in_channels * vision.temporal_patch_size * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=merged,
            projector=width * width + width * vision.out_hidden_size,
            mlp_matrices=3,
        )
