"""Architecture families: the only place that knows how a particular VLM is built.

A family is one file and one line in ``FAMILIES``. The rest of the engine speaks to it through ``Family``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sgl_engine.cost import ModelShape
from sgl_engine.errors import UnsupportedModelError
from sgl_engine.types import Box, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedConfig, PreTrainedModel


class Family(Protocol):
    """What the engine needs to know about an architecture.

    Attributes:
        name: Name of the family.
        first_prunable_layer: The smallest K at which visual tokens may be dropped.
    """

    name: str
    first_prunable_layer: int

    def text_model(self, model: Any) -> PreTrainedModel:
        """The decoder, without vision tower and LM head."""

    def decoder_layers(self, model: Any) -> Sequence[Module]:
        """The L decoder layers, in order."""

    def image_token_id(self, config: PreTrainedConfig) -> int:
        """The token that stands for one visual token."""

    def tile_grid(self, config: PreTrainedConfig) -> tuple[int, int]:
        """(rows, cols) of visual tokens per tile, after merging."""

    def tile_boxes(self, processor: Any, width: int, height: int) -> tuple[Box, ...]:
        """Which part of an image of this size, in pixels, each of its tiles shows, in prompt order."""

    def spans(
        self, config: PreTrainedConfig, input_ids: Tensor, boxes: Sequence[Sequence[Box]] | None
    ) -> tuple[VisualSpan, ...]:
        """Groups the image tokens of ``input_ids``, int64 (1, S), into tiles.

        Args:
            config: The model's configuration.
            input_ids: int64 (1, S).
            boxes: Tile boxes per image; None where the images' sizes are unknown.

        Raises:
            ProcessorError: The number of image tokens does not fit.
        """

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Visual tokens (V, hidden) from the vision tower and projector; None when there is no image."""

    def embed(self, model: Any, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Token embeddings (B, S, hidden), with the features in place of the image tokens."""

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        """Sizes, for counting operations."""


FAMILIES: dict[str, str] = {
    "internvl": "sgl_engine.families.internvl:InternVL",
}
"""``config.model_type`` -> "module:class"."""


def find_family(config: PreTrainedConfig, name: str) -> Family:
    """The family of a loaded configuration.

    Args:
        config: The model's configuration.
        name: Path or hub id, for the message.

    Raises:
        UnsupportedModelError: No family, or a decoder with layers that cannot be pruned.
    """
    if config.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"{name} has the architecture {config.model_type!r}; supported: {', '.join(FAMILIES)}.",
            remedy="Use a supported family in transformers format (InternVL: a repository whose name ends in "
            "-hf), or add a file to sgl_engine/families.",
        )
    layer_types = set(
        getattr(config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"]
    )
    if layer_types != {"full_attention"}:
        raise UnsupportedModelError(
            f"{name} has {', '.join(sorted(layer_types))} decoder layers; supported: full_attention.",
            remedy="Use a model without sliding-window, linear or convolutional layers.",
        )
    module, _, cls = FAMILIES[config.model_type].partition(":")
    family: Family = getattr(importlib.import_module(module), cls)()
    return family
