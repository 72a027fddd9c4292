"""LLaVA 1.5: every image is one square of patches. Also Pixtral checkpoints that say they are a LLaVA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import WHOLE, BaseFamily, Scaled, Tile
from sgl_engine.families.cropping import centre_crop
from sgl_engine.families.mistral3 import Mistral3
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import axes_of_pictures, side
from sgl_engine.prompt.encoded import PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class Llava(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "llava"

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """A square per image, of what its processor leaves of the image."""
        if _is_pixtral(config):
            return Mistral3().tiles(config, processor, inputs, sizes)
        patches = side(config.vision_config.image_size) // side(config.vision_config.patch_size)
        count = int((inputs["input_ids"] == self.image_token_id(config)).sum()) // patches**2
        if sizes is None:
            return [[Tile((patches, patches), None if _crops(processor) else WHOLE)]] * count
        return [
            [Tile((patches, patches), _box(processor.image_processor, width, height))]
            for width, height in sizes
        ]

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """Its shortest edge to so many pixels, or to one size."""
        if _is_pixtral(config):
            return Mistral3().scaled(config, processor, width, height)
        size = processor.image_processor.size
        shortest = size.get("shortest_edge")
        if not shortest:
            return Scaled(size["width"], size["height"])
        ratio = shortest / min(width, height)
        # The centre is cut out of it, so that an eighth of a pixel too much would move what is seen.
        return Scaled(round(width * ratio), round(height * ratio), round(8 * max(width, height) * ratio))

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """One entry each."""
        del spans
        return axes_of_pictures(inputs, ("pixel_values", "image_sizes"))

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pixels, and in a Pixtral tower the sizes of what is an image in them."""
        return {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """One pass per image."""
        if _is_pixtral(config):
            return Mistral3().tower_patches(config, inputs)
        return super().tower_patches(config, inputs)

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """The last layer is not run through where an earlier one is asked for."""
        if _is_pixtral(config):
            return Mistral3().vision_shape(config)
        return clip_shape(config)


def clip_shape(config: PreTrainedConfig) -> VisionShape:
    """A CLIP tower has a class token; a SigLIP tower has none."""
    vision, output = config.vision_config, config.text_config.hidden_size
    return VisionShape(
        layers=vision.num_hidden_layers,
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        patch_values=vision.num_channels * side(vision.patch_size) ** 2,
        class_tokens=int("clip" in vision.model_type),
        patches_per_token=1,
        projector=(vision.hidden_size + output) * output,
    )


def _is_pixtral(config: PreTrainedConfig) -> bool:
    return bool(config.vision_config.model_type == "pixtral")


def _crops(processor: Any) -> bool:
    return bool(getattr(processor.image_processor, "do_center_crop", False))


def _box(images: Any, width: int, height: int) -> tuple[float, float, float, float] | None:
    """What is left of the image; None where it is padded to a square, which moves the grid."""
    if getattr(images, "do_pad", False) and width != height:
        return None
    return centre_crop(images, width, height) if getattr(images, "do_center_crop", False) else WHOLE
