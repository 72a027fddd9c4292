"""InternVL in transformers format (InternVL3-1B-hf, InternVL3-8B-hf, ...), with a Qwen2 or Qwen3 decoder.

An image is one tile, or a grid of tiles in row-major order followed by a thumbnail of the whole image; every
tile becomes the same square of visual tokens, row-major after the pixel shuffle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.cost import DecoderShape, ModelShape, VisionShape
from sgl_engine.errors import ProcessorError
from sgl_engine.types import Box, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class InternVL:
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "internvl"
    first_prunable_layer = 0

    def text_model(self, model: Any) -> PreTrainedModel:
        """``model.model.language_model``."""
        decoder: PreTrainedModel = model.model.language_model
        return decoder

    def decoder_layers(self, model: Any) -> Sequence[Module]:
        """The decoder's layers."""
        layers: Any = self.text_model(model).layers
        return list(layers)

    def image_token_id(self, config: PreTrainedConfig) -> int:
        """``<IMG_CONTEXT>``."""
        return int(config.image_token_id)

    def tile_grid(self, config: PreTrainedConfig) -> tuple[int, int]:
        """Patches per side, after the pixel shuffle."""
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
            return (_centre_crop(settings, width, height),)
        return (_WHOLE,)

    def spans(
        self, config: PreTrainedConfig, input_ids: Tensor, boxes: Sequence[Sequence[Box]] | None
    ) -> tuple[VisualSpan, ...]:
        """Cuts the image tokens into tiles of equal length."""
        grid = self.tile_grid(config)
        length = grid[0] * grid[1]
        positions = (input_ids[0] == self.image_token_id(config)).nonzero()[:, 0].tolist()
        tiles = [positions[first : first + length] for first in range(0, len(positions), length)]
        if any(tile[-1] - tile[0] != length - 1 for tile in tiles):
            raise ProcessorError(
                f"The prompt's {len(positions)} image tokens do not fall into tiles of {length} in a row.",
                remedy="Use the processor that was saved with this model.",
            )
        owners = _images_of_runs(tiles) if boxes is None else _images_of_boxes(boxes)
        if len(owners) != len(tiles):
            raise ProcessorError(
                f"The prompt holds {len(tiles)} image tiles, but the images give {len(owners)}.",
                remedy="Use the processor that was saved with this model.",
            )
        return tuple(
            VisualSpan(image=image, start=tile[0], stop=tile[-1] + 1, grid=grid, box=box)
            for tile, (image, box) in zip(tiles, owners, strict=True)
        )

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Tower, pixel shuffle and projector, as the model's own forward calls them."""
        if inputs.get("pixel_values") is None:
            return None
        features: Tensor = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        return features.flatten(0, 1)

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """As the model's own forward merges them; ``VLM.embed`` has checked that their numbers agree.

        Without features every token is text, a generated image token too.
        """
        embeddings: Tensor = model.get_input_embeddings()(input_ids)
        if features is None:
            return embeddings
        is_image = (input_ids == self.image_token_id(model.config)).unsqueeze(-1)
        return embeddings.masked_scatter(is_image, features.to(embeddings.device, embeddings.dtype))

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        """From the text and vision configurations."""
        text, vision = config.text_config, config.vision_config
        merge = round(1 / config.downsample_ratio)
        rows, cols = self.tile_grid(config)
        decoder = DecoderShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            query_heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            intermediate=text.intermediate_size,
            vocab=text.vocab_size,
        )
        tower = VisionShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patches=rows * cols * merge**2,
            patch_values=vision.num_channels * vision.patch_size[0] * vision.patch_size[1],
            merged_tokens=rows * cols,
            merged_width=vision.hidden_size * merge**2,
            output=text.hidden_size,
        )
        return ModelShape(decoder=decoder, vision=tower)


def _attributes(image_processor: Any) -> dict[str, Any]:
    names = (
        "crop_to_patches",
        "min_patches",
        "max_patches",
        "do_center_crop",
        "do_resize",
        "size",
        "crop_size",
    )
    return {name: getattr(image_processor, name, None) for name in names}


def _tiled(settings: Mapping[str, Any], width: int, height: int) -> tuple[Box, ...]:
    """Boxes of the tiles that the processor cuts: row-major, then the thumbnail when there are several."""
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
    return tiles if len(tiles) == 1 else (*tiles, _WHOLE)


def _centre_crop(settings: Mapping[str, Any], width: int, height: int) -> Box:
    """The part of the image that is left after resizing its shorter edge and cropping the centre.

    Where the crop is larger than the resized image, it is padded, and the box ends at the image.
    """
    scaled_width, scaled_height = float(width), float(height)
    if settings["do_resize"] and settings["size"].get("shortest_edge"):
        scale = settings["size"]["shortest_edge"] / min(width, height)
        scaled_width, scaled_height = width * scale, height * scale
    elif settings["do_resize"]:
        scaled_width, scaled_height = settings["size"]["width"], settings["size"]["height"]
    crop = settings["crop_size"]
    x = max(0.0, (1 - crop["width"] / scaled_width) / 2)
    y = max(0.0, (1 - crop["height"] / scaled_height) / 2)
    return (x, y, 1 - x, 1 - y)


def _images_of_boxes(boxes: Sequence[Sequence[Box]]) -> list[tuple[int, Box | None]]:
    return [(image, box) for image, tiles in enumerate(boxes) for box in tiles]


def _images_of_runs(tiles: Sequence[Sequence[int]]) -> list[tuple[int, Box | None]]:
    """Without sizes: tiles that touch belong to one image, and only a lone tile's box is known."""
    owners: list[int] = []
    for index, tile in enumerate(tiles):
        touches = index > 0 and tiles[index - 1][-1] + 1 == tile[0]
        owners.append(owners[-1] if touches else (owners[-1] + 1 if owners else 0))
    return [(image, _WHOLE if owners.count(image) == 1 else None) for image in owners]
