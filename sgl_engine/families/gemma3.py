"""Gemma 3: one square per image, sliding windows, images that see themselves in both directions.

Five of six layers look through a window; an image's tokens see each other while the prompt is read. Crops
beside the whole image ("pan and scan", off by default) are not supported: the processor does not say which
part of the image they show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import BaseFamily, Scaled, Tile
from sgl_engine.families.shape import VisionShape
from sgl_engine.families.sizes import side

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedConfig


class Gemma3(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "gemma3"
    looks_back_only = False

    def image_text(self, processor: Any, config: PreTrainedConfig) -> str:
        """The begin-of-image token, which the processor turns into a whole image."""
        del config
        text: str = processor.boi_token
        return text

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """A square per image."""
        del processor
        edge = math.isqrt(config.mm_tokens_per_image)
        count = int((inputs["input_ids"] == self.image_token_id(config)).sum()) // edge**2
        return [[Tile((edge, edge))] for _ in (range(count) if sizes is None else sizes)]

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """To one size, whatever it was."""
        del config, width, height
        size = processor.image_processor.size
        return Scaled(size["width"], size["height"])

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
        """Masks in which an image sees all of itself; afterwards the decoder's own causal ones do."""
        import torch

        if first:
            return {"inputs_embeds": embeddings}
        is_image = (inputs["input_ids"] == self.image_token_id(model.config)).long()
        following = (0, embeddings.shape[1] - is_image.shape[1])  # tokens after the prompt are text, and seen
        padding = inputs.get("attention_mask")
        masks = model.create_masks_for_generate(
            config=model.config,
            inputs_embeds=embeddings,
            attention_mask=None if padding is None else torch.nn.functional.pad(padding, following, value=1),
            cache=cache,
            position_ids=positions,
            token_type_ids=torch.nn.functional.pad(is_image, following),
        )
        return {"inputs_embeds": embeddings, "attention_mask": masks}

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """Patches are averaged, then multiplied with one matrix."""
        vision = config.vision_config
        patches = (side(vision.image_size) // side(vision.patch_size)) ** 2
        return VisionShape(
            layers=vision.num_hidden_layers,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.num_channels * side(vision.patch_size) ** 2,
            class_tokens=0,
            patches_per_token=patches // config.mm_tokens_per_image,
            projector=vision.hidden_size * config.text_config.hidden_size,
        )
