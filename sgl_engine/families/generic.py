"""Architectures without a file of their own, where one image token and one plain decoder are all there is.

The configuration is checked here, the behaviour of the loaded model, before it is used, by
``sgl_engine.passes.exactness``. Image tokens that touch are one picture or tile of unknown shape: such a
model guides, and is guided by, models that cut pictures just as it does. Operations are those of a plain
decoder; the vision tower is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import BaseFamily, Tile
from sgl_engine.families.own import own_logits
from sgl_engine.families.shape import DecoderShape, VisionShape
from sgl_engine.families.sizes import runs
from sgl_engine.prompt.encoded import TOKEN_INPUTS, PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel

_DECODERS = ("language_model", "text_model")
_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention", "linear_attention", "conv"})
_SAID: Mapping[str, str] = {
    "chunked_attention": "attention within chunks",
    "indexed_attention": "an indexer chooses the keys of each token, so pruning would change what is chosen",
    "minimax_m3_sparse": "an indexer chooses blocks of keys, so pruning would change what is chosen",
    "hybrid": "convolutions inside attention",
    "hybrid_sliding": "convolutions inside attention",
    "reference_sliding_attention": "a window that always shows the whole picture",
    "moe": "layers without attention",
    "mlp": "layers without attention",
}
"""Kinds of layers, in words."""


def why_not_generic(config: PreTrainedConfig) -> str | None:
    """What of a configuration speaks against the generic path; None where nothing does."""
    text = getattr(config, "text_config", None)
    if text is None or getattr(config, "vision_config", None) is None:
        return "it is not a decoder and a vision tower"
    if not isinstance(getattr(config, "image_token_id", None), int):
        return "it has no single image token"
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    odd = sorted({_SAID.get(kind, kind) for kind in kinds - _KNOWN_LAYERS})
    if odd:
        return f"its decoder is not plain attention throughout ({'; '.join(odd)})"
    return None


class Generic(BaseFamily):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "generic"
    needs_check = True
    # Nobody has looked whether a token sees later ones.
    looks_back_only = False

    def text_model(self, model: Any) -> PreTrainedModel:
        """The only decoder beside the vision tower."""
        decoder: PreTrainedModel = next(
            getattr(model.model, name) for name in _DECODERS if hasattr(model.model, name)
        )
        return decoder

    def decoder_layers(self, model: Any) -> Sequence[Module]:
        """Its one stack of layers."""
        decoder: Any = self.text_model(model)
        return list(decoder.layers)

    def image_text(self, processor: Any, config: PreTrainedConfig) -> str:
        """What the processor says that it replaces."""
        written = getattr(processor, "image_token", None)
        return written if isinstance(written, str) else super().image_text(processor, config)

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

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Those that the model itself gives to pictures, where it has positions of several axes."""
        index = getattr(model.model, "get_rope_index", None)
        if index is None or inputs.get("pixel_values") is None:
            return None
        given = {name: inputs[name] for name in signature(index).parameters if name in inputs}
        if "mm_token_type_ids" in signature(index).parameters and "mm_token_type_ids" not in given:
            given["mm_token_type_ids"] = (inputs["input_ids"] == self.image_token_id(model.config)).int()
        found: Tensor = index(**given)[0]
        return found

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """From whatever the model's own method names and the processor returned."""
        if inputs.get("pixel_values") is None:
            return None
        taken = signature(model.model.get_image_features).parameters
        return self.features(model, {name: value for name, value in inputs.items() if name in taken})

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """With whatever factor or cap the model's own forward has."""
        return own_logits(model, hidden)

    def vision_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that is not about the text."""
        return {name: value for name, value in inputs.items() if name not in TOKEN_INPUTS}

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Not counted."""
        del config, inputs
        return ()

    def decoder_shape(self, config: PreTrainedConfig) -> DecoderShape:
        """What recurrences do beside their matrices is not counted."""
        kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
        recurrent = tuple(layer for layer, kind in enumerate(kinds) if kind in {"linear_attention", "conv"})
        return replace(super().decoder_shape(config), recurrent_layers=recurrent)

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
