"""Llama 4: attention within chunks of the prompt, layers without positions, a decoder in a language model.

A prompt and its answer must fit into the first chunk (``BaseFamily.context_tokens``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import BaseFamily
from sgl_engine.families.generic import Generic
from sgl_engine.families.own import as_the_tower, forward_with
from sgl_engine.families.sizes import flat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Llama4(Generic):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "llama4"

    def text_model(self, model: Any) -> PreTrainedModel:
        """Without its LM head."""
        decoder: PreTrainedModel = model.language_model.model
        return decoder

    def positions(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """None: tokens are simply numbered."""
        return BaseFamily.positions(self, model, inputs)

    def image_features(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Tower, then projector."""
        if inputs.get("pixel_values") is None:
            return None
        given = as_the_tower(model, {"pixel_values": inputs["pixel_values"]})
        seen = flat(model.get_image_features(**given, return_dict=True).last_hidden_state)
        projected: Tensor = model.multi_modal_projector(seen)
        return projected

    def whole_logits(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """With what transformers 5.24.0 misses in the decoder's output, for which its own forward fails."""

        def decode(**given: Any) -> Any:
            output = model.language_model(**given)
            output.image_outputs = None
            return output

        return forward_with(model, {**inputs, "use_cache": False}, language_model=decode)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """The LM head alone."""
        return BaseFamily.logits(self, model, hidden)
