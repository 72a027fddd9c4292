"""Qwen3.5: most decoder layers are recurrent (gated delta rule), every fourth is attention.

Importance comes from the attention layers. Recurrent layers from K on run over the kept tokens as if the
others had never been there: no mask can hide a token from a recurrence, so this is what pruning means there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sgl_engine.families.qwen2_vl import Qwen2VL
from sgl_engine.families.qwen3_vl import Qwen3VL
from sgl_engine.families.shape import DecoderShape, VisionShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen3_5(Qwen2VL):  # noqa: N801  # the version's own spelling
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "qwen3_5"

    def decoder_shape(self, config: PreTrainedConfig) -> DecoderShape:
        """The recurrence reads, corrects and reads again a state of keys times values per head."""
        text = config.text_config
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        values = text.linear_num_value_heads * text.linear_value_head_dim
        matrices = text.hidden_size * (2 * keys + 3 * values + 2 * text.linear_num_value_heads)
        convolution = (2 * keys + values) * text.linear_conv_kernel_dim
        own = 0 if self.needs_check else matrices + convolution  # else they are measured
        layers = enumerate(text.layer_types)
        return replace(
            super().decoder_shape(config),
            gated=True,
            recurrent_layers=tuple(layer for layer, kind in layers if kind == "linear_attention"),
            recurrent_values=own + 3 * values * text.linear_key_head_dim,
        )

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """As in Qwen3-VL, without further planes."""
        return Qwen3VL().vision_shape(config)
