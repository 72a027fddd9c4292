"""Qwen3-VL: like Qwen2-VL, with DeepStack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_engine.families.base import side
from sgl_engine.families.deepstack import DeepStack
from sgl_engine.families.qwen2_vl import Qwen2VL
from sgl_engine.families.shape import VisionShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen3VL(DeepStack, Qwen2VL):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "qwen3_vl"

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
