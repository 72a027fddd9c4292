"""Architectures without a file of their own, where one image token and one plain decoder are all there is.

The configuration is checked here, the behaviour of the loaded model, before it is used, by
``sgl_engine.passes.exactness``. Image tokens that touch are one picture or tile of unknown shape: such a
model guides, and is guided by, models that cut pictures just as it does. Operations are those of a plain
decoder; the vision tower is not counted.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import BaseFamily, Tile, runs
from sgl_engine.families.shape import VisionShape
from sgl_engine.prompt.encoded import PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

_DECODERS = ("language_model", "text_model")


def why_not_generic(config: PreTrainedConfig) -> str | None:
    """What of a configuration speaks against the generic path; None where nothing does."""
    text = getattr(config, "text_config", None)
    if text is None or getattr(config, "vision_config", None) is None:
        return "it is not a decoder and a vision tower"
    if not isinstance(getattr(config, "image_token_id", None), int):
        return "it has no single image token"
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(text, "num_kv_shared_layers", None):
        return f"its decoder is not plain attention throughout ({', '.join(sorted(kinds))})"
    return None


class Generic(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "generic"
    needs_check = True

    def text_model(self, model: Any) -> PreTrainedModel:
        """The only decoder beside the vision tower."""
        decoder: PreTrainedModel = next(
            getattr(model.model, name) for name in _DECODERS if hasattr(model.model, name)
        )
        return decoder

    def decoder_layers(self, model: Any) -> Sequence[Module]:
        """Its one stack of layers."""
        decoder: Any = self.text_model(model)
        layers = list(decoder.layers)
        assert len(layers) == decoder.config.num_hidden_layers
        return layers

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """One per stretch of image tokens; all of one image where there is one, else each an image."""
        del processor
        stretches = runs(inputs["input_ids"][0], self.image_token_id(config))
        tiles = [Tile((1, length), None) for length in stretches]
        return [tiles] if sizes is not None and len(sizes) == 1 else [[tile] for tile in tiles]

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """Unknown."""
        del inputs, spans
        return None

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """From whatever the model's own method names and the processor returned."""
        if inputs.get("pixel_values") is None:
            return None
        taken = inspect.signature(model.model.get_image_features).parameters
        return self.features(model, {name: value for name, value in inputs.items() if name in taken})

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Not counted."""
        del config, inputs
        return ()

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """Not counted."""
        del config
        return VisionShape(
            layers=0,
            hidden=0,
            intermediate=0,
            patch_values=0,
            class_tokens=0,
            patches_per_token=1,
            projector=0,
        )
