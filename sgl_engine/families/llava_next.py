"""LLaVA-NeXT and LLaVA-OneVision: the whole image as a square, then the image again in higher resolution.

The second part is stitched from square tiles, its padding is cut off, and every row ends with a learned
newline vector. Newlines carry the image token's id, yet show nothing: they count as text, never pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.errors import ProcessorError
from sgl_engine.families.base import BaseFamily, Scaled, Tile
from sgl_engine.families.llava import clip_shape
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import axes_of_pictures, entries, flat, side
from sgl_engine.prompt.encoded import PictureAxes, PromptTiles, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class LlavaNext(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "llava_next"
    separators_are_image_tokens = True

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """From the images' sizes, which the processor returned."""
        del processor, sizes
        if "image_sizes" not in inputs:
            raise ProcessorError(
                "The prompt holds image tokens, but its inputs no image_sizes.",
                remedy="Pass all that the processor returned.",
            )
        edge = side(config.vision_config.image_size) // side(config.vision_config.patch_size)
        images = inputs["image_sizes"].tolist()
        tiles = []
        for (height, width), stitched in zip(images, self.stitched(inputs), strict=True):
            rows, cols = self.stitched_grid(config, height, width) if stitched else (1, 0)
            if rows * cols:
                tiles.append([Tile((edge, edge)), Tile((rows, cols), row_gap=1, tail=1)])
            else:
                # Without a second part, or where nothing of it is left once the padding around a very long
                # picture is cut off: newlines without rows.
                tiles.append([Tile((edge, edge), tail=rows)])
        return tiles

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """Whole to a square, and into the best of some rectangles, whose tokens depend on its shape."""
        from transformers.image_processing_utils import select_best_resolution

        del processor
        edge = side(config.vision_config.image_size)
        rows, cols = select_best_resolution((height, width), config.image_grid_pinpoints)
        ratio = min(cols / width, rows / height)
        placed = min(math.ceil(height * ratio), rows), min(math.ceil(width * ratio), cols)  # padded around
        return Scaled(max(edge, cols), max(edge, rows), (placed, self.stitched_grid(config, height, width)))

    def stitched(self, inputs: Mapping[str, Tensor]) -> list[bool]:
        """Whether each image comes in higher resolution too."""
        return [True] * len(inputs["image_sizes"])

    def stitched_grid(self, config: PreTrainedConfig, height: int, width: int) -> tuple[int, int]:
        """(rows, cols) of the second part, for an image of that size in pixels; padding cut off."""
        from transformers.image_processing_utils import select_best_resolution

        vision = config.vision_config
        size = side(vision.image_size)
        patches = size // side(vision.patch_size)
        best = select_best_resolution((height, width), config.image_grid_pinpoints)
        rows, cols = (edge // size * patches for edge in best)
        if width / height > cols / rows:
            rows -= (rows - int(round(height * (cols / width), 7))) // 2 * 2
        else:
            cols -= (cols - int(round(width * (rows / height), 7))) // 2 * 2
        return rows, cols

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """One entry each, with room for the tiles of the largest."""
        del spans
        return axes_of_pictures(inputs, ("pixel_values", "image_sizes"))

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tiles, and the sizes of the images that they were cut from."""
        return {name: inputs[name] for name in ("pixel_values", "image_sizes")}

    def cut(
        self, model: Any, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]
    ) -> PromptTiles | None:
        """Read off the model's own stitching, by features that say which tile they are of."""
        import torch

        if "image_sizes" not in inputs:
            return None
        counts = self._tile_counts(model.config, inputs)
        total, patches = sum(counts), self.tower_patches(model.config, inputs)[0]
        marks = torch.eye(total)[:, None].expand(total, patches, total)
        on_cpu = {name: value.cpu() for name, value in inputs.items() if name != "pixel_values"}
        made = self._stitch(model, on_cpu, marks, newline=torch.zeros(total)) > 0  # (image tokens, T)
        image = (on_cpu["input_ids"][0] == self.image_token_id(model.config)).nonzero()[:, 0]
        visual = torch.tensor([position for span in spans for position in span.positions])
        pictures = tuple(picture for picture, count in enumerate(counts) for _ in range(count))
        return PromptTiles(pictures, made[torch.searchsorted(image, visual)].T)

    def tile_slices(
        self, config: PreTrainedConfig, inputs: Mapping[str, Tensor], tiles: Sequence[int]
    ) -> dict[str, Tensor]:
        """Their pixels."""
        import torch

        pixels = inputs["pixel_values"]
        if pixels.ndim == 5:  # pictures of fewer tiles are padded
            counts = self._tile_counts(config, inputs)
            pixels = torch.cat([own[:count] for own, count in zip(pixels, counts, strict=True)])
        return {"pixel_values": entries(pixels, tiles)}

    def tile_features(self, model: Any, slices: Mapping[str, Tensor]) -> Tensor:
        """As the model's own ``get_image_features``, before it stitches."""
        import torch

        config, core = model.config, model.model
        states = core.vision_tower(slices["pixel_values"], output_hidden_states=True, return_dict=True)
        wanted = config.vision_feature_layer
        layers = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        hidden = torch.cat([states.hidden_states[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        features: Tensor = core.multi_modal_projector(hidden)
        return features

    def join_tiles(self, model: Any, inputs: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Stitched, padding cut off, a newline after every row."""
        return self._stitch(model, inputs, features, newline=model.model.image_newline)

    def _stitch(self, model: Any, inputs: Mapping[str, Tensor], features: Tensor, newline: Tensor) -> Tensor:
        """One row per image token, from features (T, tokens of a tile, width), by the model's own code."""
        pictures, _ = model.model.pack_image_features(
            features.split(self._tile_counts(model.config, inputs)),
            inputs["image_sizes"],
            image_newline=newline,
            **self.stitching(model.config),
        )
        return flat(pictures)

    def stitching(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What else the model's own stitching is told."""
        return {"vision_feature_select_strategy": config.vision_feature_select_strategy}

    def _tile_counts(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> list[int]:
        """Tiles of each picture, the whole one among them."""
        from transformers.image_processing_utils import select_best_resolution

        size, counts = side(config.vision_config.image_size), []
        for image, stitched in zip(inputs["image_sizes"].tolist(), self.stitched(inputs), strict=True):
            height, width = select_best_resolution(tuple(image), config.image_grid_pinpoints)
            counts.append(1 + (height // size * (width // size) if stitched else 0))
        return counts

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """One pass per tile."""
        if "image_sizes" not in inputs:
            return ()
        vision = config.vision_config
        patches = (side(vision.image_size) // side(vision.patch_size)) ** 2
        return (patches,) * sum(self._tile_counts(config, inputs))

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """As in LLaVA."""
        return clip_shape(config)


class LlavaOneVision(LlavaNext):
    """The second part is shrunk where it would be too long, and left out where there are several images."""

    name = "llava_onevision"

    def stitched(self, inputs: Mapping[str, Tensor]) -> list[bool]:
        """A prompt's only image does; where inputs do not say how many there are, all do, as in the model."""
        if "batch_num_images" not in inputs:
            return super().stitched(inputs)
        return [count == 1 for count in inputs["batch_num_images"].tolist() for _ in range(count)]

    def stitched_grid(self, config: PreTrainedConfig, height: int, width: int) -> tuple[int, int]:
        """As in LLaVA-NeXT, then shrunk to the patches of "anyres_max_<number>" tiles."""
        rows, cols = super().stitched_grid(config, height, width)
        patches = side(config.vision_config.image_size) // side(config.vision_config.patch_size)
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * patches**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """None where it counts how many there are: a picture looks different in company."""
        return None if "batch_num_images" in inputs else super().picture_axes(inputs, spans)

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also how many images there are."""
        names = ("pixel_values", "image_sizes", "batch_num_images")
        return {name: inputs[name] for name in names if name in inputs}

    def stitching(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Up to how many tiles."""
        return {"vision_aspect_ratio": config.vision_aspect_ratio}
