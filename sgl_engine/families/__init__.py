"""Architecture families: the only place that knows how a particular VLM is built.

A family is one file and one line in ``FAMILIES``. The rest of the engine speaks to it through ``Family``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sgl_engine.config import PictureConfig
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.families.base import Scaled
from sgl_engine.families.generic import Generic, why_not_generic
from sgl_engine.families.refused import why_refused
from sgl_engine.families.shape import DecoderShape, ModelShape, VisionShape
from sgl_engine.prompt.encoded import PictureAxes, PromptTiles, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

__all__ = [
    "FAMILIES",
    "KNOWN_DECODERS",
    "PRUNABLE_LAYERS",
    "DecoderShape",
    "Family",
    "ModelShape",
    "Scaled",
    "VisionShape",
    "find_family",
]


class Family(Protocol):
    """What the engine needs to know about an architecture.

    Attributes:
        name: Name of the family.
        first_prunable_layer: The smallest K at which visual tokens may be dropped.
        plane_adder: The decoder's method that adds a plane of visual features to hidden states between
            layers, f(hidden, is_image, plane); None where there is none.
        needs_check: Whether ``sgl_engine.passes.exactness`` must have seen the loaded model work.
        kind_of_answers: What tokens after a prompt are in inputs that tell the kinds of tokens.
        tile_axis: The axis of vision inputs along which the tiles of a picture lie, where it has several.
        looks_back_only: Whether no prompt token sees a later one, so that what layers compute of a
            prompt's prefix is the same whatever follows.
    """

    name: str
    first_prunable_layer: int
    plane_adder: str | None
    plane_inputs: tuple[str, str] | None
    plain_template: str | None
    needs_check: bool
    kind_of_answers: int
    tile_axis: int
    looks_back_only: bool

    def text_model(self, model: Any) -> PreTrainedModel:
        """The decoder, without vision tower and LM head."""

    def decoder_layers(self, model: Any) -> Sequence[Module]:
        """The L decoder layers, in order."""

    def keys_of(self, text: PreTrainedConfig, layer: int) -> int:
        """The layer, of the decoder with this configuration, whose keys and values a layer attends to."""

    def can_be_shortened(self, text: PreTrainedConfig) -> bool:
        """Whether a decoder of this configuration runs with its first layers alone."""

    def recurrence(self, layer: Module) -> Module:
        """What mixes the tokens of a decoder layer that has no attention."""

    def context_tokens(self, text: PreTrainedConfig) -> int:
        """The longest sequence that a decoder of this configuration reads, and that can be pruned exactly."""

    def image_token_id(self, config: PreTrainedConfig) -> int:
        """The token that stands for one visual token."""

    def image_text(self, processor: Any, config: PreTrainedConfig) -> str:
        """What a request's texts must not contain, because the processor would take it for an image."""

    def spans(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> tuple[VisualSpan, ...]:
        """Groups the image tokens of a prompt into images and tiles.

        Args:
            config: The model's configuration.
            processor: The model's processor.
            inputs: What the processor returned for one request; "input_ids" is int64 (1, S).
            sizes: (width, height) in pixels per image; None where they are unknown.

        Raises:
            ProcessorError: The number of image tokens does not fit.
        """

    def scaled(self, config: PreTrainedConfig, processor: Any, width: int, height: int) -> Scaled | None:
        """How the image processor scales a picture of that size, in pixels; None where that is unknown."""

    def resize(self, config: PreTrainedConfig, images: Any, wanted: PictureConfig) -> None:
        """Sets an image processor, which is a copy, to show pictures as large as is wanted, where it can."""

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Rotary positions of the prompt, int64 (axes, B, S); None where tokens are simply numbered."""

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """Where each picture of a prompt lies in the vision inputs (``sgl_engine.prompt.encoded``).

        None where pictures cannot be told apart, or where a picture's features depend on the others.
        """

    def cut(
        self, model: Any, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]
    ) -> PromptTiles | None:
        """What the vision tower sees apart of a prompt's pictures; None where it sees each in one piece."""

    def tile_slices(
        self, config: PreTrainedConfig, inputs: Mapping[str, Tensor], tiles: Sequence[int]
    ) -> dict[str, Tensor]:
        """Vision inputs of some tiles alone, by their numbers in ``cut``; they lie along ``tile_axis``."""

    def tile_features(self, model: Any, slices: Mapping[str, Tensor]) -> Tensor:
        """Runs tower and projector on such slices: (number of tiles, tokens of a tile, width)."""

    def join_tiles(self, model: Any, inputs: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """One row per image token, as ``image_features`` returns them.

        Args:
            model: The model.
            inputs: Vision inputs of one picture, or of all together.
            features: Of all of their tiles, (T, tokens of a tile, width). Rows that are made of a tile mean
                as little as what is given for it.
        """

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """One row per image token, from tower and projector: (N, width); None when there is no image.

        The width is a multiple of the decoder's: further planes are features that the decoder adds to the
        hidden states of image tokens after its first layers.
        """

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Token embeddings (B, S, width), with the features in place of the image tokens."""

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
        """What the decoder takes, besides positions and cache.

        Args:
            model: The model.
            embeddings: (B, N, width), as ``embed`` returns them, or text tokens (B, N, hidden).
            inputs: The prompt's.
            positions: int64 (B, N), or (axes, B, N) where ``positions`` gives several axes.
            cache: The keys and values so far.
            first: Column at which the embeddings begin.
        """

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """The LM head on hidden states (B, N, hidden), as the model applies it: (B, N, vocab)."""

    def whole_logits(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the model's own forward says to whole sequences, (B, S, vocab); to compare with."""

    def first_plain_layer(self, config: PreTrainedConfig) -> int:
        """The first decoder layer from which on no visual features are added to hidden states any more."""

    def tower_patches(self, config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Patches in each pass of the vision tower, one pass per image or tile; for counting operations."""

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        """Sizes, for counting operations."""


FAMILIES: dict[str, str] = {
    "cohere_compass": "sgl_engine.families.deepstack:GenericDeepStack",
    "cosmos3_omni": "sgl_engine.families.qwen3_vl:Qwen3VL",
    "ernie4_5_vl_moe": "sgl_engine.families.routed:Ernie4_5",
    "exaone4_5": "sgl_engine.families.grids:Grids",
    "gemma3": "sgl_engine.families.gemma3:Gemma3",
    "gemma4": "sgl_engine.families.gemma4:Gemma4",
    "glm46v": "sgl_engine.families.grids:Grids",
    "glm4v": "sgl_engine.families.grids:Grids",
    "glm4v_moe": "sgl_engine.families.grids:Grids",
    "glm_ocr": "sgl_engine.families.grids:Grids",
    "granite4_vision": "sgl_engine.families.granite4_vision:Granite4Vision",
    "granite_docling": "sgl_engine.families.deepstack:GenericDeepStack",
    "idefics3": "sgl_engine.families.idefics3:Idefics3",
    "internvl": "sgl_engine.families.internvl:InternVL",
    "llama4": "sgl_engine.families.llama4:Llama4",
    "llava": "sgl_engine.families.llava:Llava",
    "llava_next": "sgl_engine.families.llava_next:LlavaNext",
    "llava_onevision": "sgl_engine.families.llava_next:LlavaOneVision",
    "mistral3": "sgl_engine.families.mistral3:Mistral3",
    "molmo2": "sgl_engine.families.both_ways:Molmo2",
    "ovis2": "sgl_engine.families.routed:Ovis2",
    "paddleocr_vl": "sgl_engine.families.grids:Grids",
    "paligemma": "sgl_engine.families.both_ways:PaliGemma",
    "qwen2_5_vl": "sgl_engine.families.qwen2_vl:Qwen2_5VL",
    "qwen2_vl": "sgl_engine.families.qwen2_vl:Qwen2VL",
    "qwen3_5": "sgl_engine.families.qwen3_5:Qwen3_5",
    "qwen3_5_moe": "sgl_engine.families.qwen3_5:Qwen3_5",
    "qwen3_omni_moe_thinker": "sgl_engine.families.deepstack:GenericDeepStack",
    "qwen3_vl": "sgl_engine.families.qwen3_vl:Qwen3VL",
    "qwen3_vl_moe": "sgl_engine.families.qwen3_vl:Qwen3VL",
    "shieldgemma2": "sgl_engine.families.gemma3:Gemma3",
    "smolvlm": "sgl_engine.families.idefics3:SmolVLM",
}
"""``config.model_type`` -> "module:class"."""

KNOWN_DECODERS: Mapping[str, frozenset[str]] = {
    "gemma3": frozenset({"gemma3_text"}),
    "idefics3": frozenset({"llama"}),
    "internvl": frozenset({"qwen2", "qwen3"}),
    "llava": frozenset({"llama", "mistral"}),
    "llava_next": frozenset({"llama", "mistral"}),
    "llava_onevision": frozenset({"qwen2"}),
    "mistral3": frozenset({"mistral"}),
    "qwen2_5_vl": frozenset({"qwen2_5_vl_text"}),
    "qwen2_vl": frozenset({"qwen2_vl_text"}),
    "qwen3_5": frozenset({"qwen3_5_text"}),
    "qwen3_vl": frozenset({"qwen3_vl_text"}),
    "smolvlm": frozenset({"llama"}),
}
"""``config.model_type`` -> the decoders (their ``model_type``) that the tests hold against oracles.

A family name is no proof: with any other decoder, the model goes through the check when it is first used.
"""

PRUNABLE_LAYERS = frozenset({"full_attention", "sliding_attention", "linear_attention", "chunked_attention"})
"""Kinds of decoder layers that attention capture and pruning know."""


def find_family(config: PreTrainedConfig, name: str) -> Family:
    """The family of a loaded configuration.

    Args:
        config: The model's configuration.
        name: Path or hub id, for the message.

    Raises:
        UnsupportedModelError: No family, and not plain enough to do without; or a decoder with layers that
            cannot be pruned.
    """
    reason = why_refused(config) or (None if config.model_type in FAMILIES else why_not_generic(config))
    if reason is not None:
        raise UnsupportedModelError(
            f"{name} has the architecture {config.model_type!r}, and {reason}; supported: "
            f"{', '.join(FAMILIES)}.",
            remedy="Use a supported family in transformers format (InternVL: a repository whose name "
            'ends in -hf), or write a family (CONTRIBUTING.md, "An architecture family").',
        )
    if config.model_type not in FAMILIES:
        return Generic()
    text = config.get_text_config(decoder=True)
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if not layer_types <= PRUNABLE_LAYERS:
        raise UnsupportedModelError(
            f"{name} has {', '.join(sorted(layer_types))} decoder layers; supported: "
            f"{', '.join(sorted(PRUNABLE_LAYERS))}.",
            remedy="Use a model without other kinds of layers.",
        )
    module, _, cls = FAMILIES[config.model_type].partition(":")
    family: Family = getattr(importlib.import_module(module), cls)()
    if text.model_type not in KNOWN_DECODERS.get(config.model_type, ()):
        family.needs_check = True
    return family
