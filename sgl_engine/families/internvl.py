"""InternVL in transformers format (InternVL3-1B-hf, InternVL3-8B-hf, ...), with a Qwen2 or Qwen3 decoder.

An image is one tile, or a grid of tiles in row-major order followed by a thumbnail of the whole image (by
none where the image processor says ``use_thumbnail=False``); every tile becomes the same square of visual
tokens, row-major after the pixel shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.config import PictureConfig
from sgl_engine.families.base import WHOLE, BaseFamily, Scaled, Tile
from sgl_engine.families.cropping import centre_crop
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import most_area, runs
from sgl_engine.prompt.encoded import Box

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class InternVL(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "internvl"

    def tile_grid(self, config: PreTrainedConfig) -> tuple[int, int]:
        """(rows, cols) of a tile: patches per side, after the pixel shuffle."""
        vision = config.vision_config
        rows, cols = (
            int(size // patch * config.downsample_ratio)
            for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        return rows, cols

    def tile_boxes(self, processor: Any, width: int, height: int) -> tuple[Box, ...]:
        """Follows the image processor: tiles and thumbnail, a centre crop, or the whole image."""
        images = processor.image_processor
        settings = {**_attributes(images), **getattr(processor, "images_kwargs", {})}
        if settings["crop_to_patches"] and settings["max_patches"] > 1:
            return _tiled(settings, width, height)
        if settings["do_center_crop"]:
            return (centre_crop(images, width, height),)
        return (WHOLE,)

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """To a canvas of as many tiles as suit it; the tiles are cut where ``tile_boxes`` says."""
        del config
        size = processor.image_processor.size
        if "height" not in size or not size["height"]:
            return None
        boxes = self.tile_boxes(processor, width, height)
        cols, rows = (round(1 / min(box[axis + 2] - box[axis] for box in boxes)) for axis in (0, 1))
        return Scaled(cols * size["width"], rows * size["height"], boxes)

    def resize(self, config: PreTrainedConfig, images: Any, wanted: PictureConfig) -> None:
        """Fewer tiles; the whole picture beside them is one more."""
        if not hasattr(images, "max_patches"):  # of a checkpoint whose processor cuts no tiles
            return
        rows, cols = self.tile_grid(config)
        tile = images.size["height"] * images.size["width"]
        area = most_area(wanted, tile // (rows * cols))
        if area is not None:
            most = max(1, area // tile - 1)
            images.max_patches = min(images.max_patches, most)
            images.min_patches = min(images.min_patches, most)

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """From the images' sizes; without them, from where image tokens touch."""
        grid = self.tile_grid(config)
        if sizes is not None:
            boxes = [self.tile_boxes(processor, width, height) for width, height in sizes]
            return [[Tile(grid, box) for box in image] for image in boxes]
        stretches = runs(inputs["input_ids"][0], self.image_token_id(config))
        counts = [math.ceil(length / (grid[0] * grid[1])) for length in stretches]
        # How several tiles lie is unknown; a single one shows the whole image.
        return [[Tile(grid, WHOLE if count == 1 else None)] * count for count in counts]

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """One class token; the projector reads shuffled patches."""
        vision, output = config.vision_config, config.text_config.hidden_size
        merge = round(1 / config.downsample_ratio) ** 2
        return VisionShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.num_channels * vision.patch_size[0] * vision.patch_size[1],
            class_tokens=1,
            patches_per_token=merge,
            projector=(vision.hidden_size * merge + output) * output,
        )


def _attributes(image_processor: Any) -> dict[str, Any]:
    names = ("crop_to_patches", "min_patches", "max_patches", "do_center_crop", "size", "use_thumbnail")
    return {name: getattr(image_processor, name, None) for name in names}


def _tiled(settings: Mapping[str, Any], width: int, height: int) -> tuple[Box, ...]:
    """Boxes of the tiles that the processor cuts: row-major, then the thumbnail when there are several.

    A processor that does not mention ``use_thumbnail`` makes one, as transformers does.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    size = settings["size"]
    cols, rows = get_optimal_tiled_canvas(
        (height, width), (size["height"], size["width"]), settings["min_patches"], settings["max_patches"]
    )
    tiles = tuple(
        (col / cols, row / rows, (col + 1) / cols, (row + 1) / rows)
        for row in range(rows)
        for col in range(cols)
    )
    thumbnail = len(tiles) > 1 and settings.get("use_thumbnail") is not False
    return (*tiles, WHOLE) if thumbnail else tiles
