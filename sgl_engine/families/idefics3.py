"""Idefics3 and SmolVLM: tiles in rows and columns, each after a token that says which, then the whole image.

The image is first stretched to a multiple of the tile, so tiles part it evenly. Small images come whole only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sgl_engine.config import PictureConfig
from sgl_engine.families.base import WHOLE, BaseFamily, Scaled, Tile
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import most_area, side

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


class Idefics3(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "idefics3"
    tile_inputs = ("pixel_values", "pixel_attention_mask")
    tile_axis = 1  # in the one row of a batch

    def text_model(self, model: Any) -> PreTrainedModel:
        """``model.model.text_model``."""
        decoder: PreTrainedModel = model.model.text_model
        return decoder

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """Reads the prompt's markers: the token before each tile names its row and column."""
        del sizes
        vision = config.vision_config
        edge = side(vision.image_size) // side(vision.patch_size) // config.scale_factor
        ids = inputs["input_ids"][0].tolist()
        token = self.image_token_id(config)
        names = processor.tokenizer.convert_ids_to_tokens(
            [before for before, this in pairwise(ids) if this == token != before]
        )
        images: list[list[tuple[int, int]]] = [[]]
        for name in names:
            if name.startswith("<row_"):
                _, row, _, col = name.strip("<>").split("_")
                images[-1].append((int(row) - 1, int(col) - 1))
            else:  # the whole image ends it
                images.append([])
        return [[*_parts(image, edge), Tile((edge, edge), WHOLE)] for image in images[:-1]]

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """Its longest edge to so many pixels, then both to whole tiles."""
        del config
        images = processor.image_processor
        longest, tile = images.size["longest_edge"], images.max_image_size["longest_edge"]
        # The lengths that the processor computes, its rounding included.
        other = int(longest * min(width, height) / max(width, height))
        other += other % 2
        long = -(-longest // tile) * tile
        short = -(-int(long * max(other, 1) / longest) // tile) * tile
        return Scaled(long, short, (1, other)) if width >= height else Scaled(short, long, (other, 1))

    def resize(self, config: PreTrainedConfig, images: Any, wanted: PictureConfig) -> None:
        """Fewer tiles: a square of so many, and the whole picture beside them."""
        tile = images.max_image_size["longest_edge"]
        tokens = (tile // side(config.vision_config.patch_size) // config.scale_factor) ** 2
        area = most_area(wanted, tile**2 // tokens)
        if area is None or not images.do_image_splitting:
            return
        across = math.isqrt(max(1, area // tile**2 - 1))
        images.do_image_splitting = across > 1
        images.size = {"longest_edge": min(across * tile, images.size["longest_edge"])}

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tiles, and which of their pixels are padding."""
        return {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask") if name in inputs}

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """A projector of one matrix over shuffled patches."""
        vision, merged = config.vision_config, config.scale_factor**2
        return VisionShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.num_channels * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=merged,
            projector=vision.hidden_size * merged * config.text_config.hidden_size,
        )


class SmolVLM(Idefics3):
    """The same architecture under another name."""

    name = "smolvlm"


def _parts(cells: Sequence[tuple[int, int]], edge: int) -> list[Tile]:
    rows = 1 + max((row for row, _ in cells), default=0)
    cols = 1 + max((col for _, col in cells), default=0)
    return [
        Tile((edge, edge), (col / cols, row / rows, (col + 1) / cols, (row + 1) / rows)) for row, col in cells
    ]
