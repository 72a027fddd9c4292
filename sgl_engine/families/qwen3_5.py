"""Qwen3.5: most decoder layers are recurrent (gated delta rule), every fourth is attention.

Importance comes from the attention layers. Recurrent layers from K on run over the kept tokens as if the
others had never been there: no mask can hide a token from a recurrence, so this is what pruning means there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_engine.cost import VisionShape
from sgl_engine.families.qwen2_vl import Qwen2VL
from sgl_engine.families.qwen3_vl import Qwen3VL

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Qwen3_5(Qwen2VL):  # noqa: N801  # the version's own spelling
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "qwen3_5"

    def vision_shape(self, config: PreTrainedConfig) -> VisionShape:
        """As in Qwen3-VL, without further planes."""
        return Qwen3VL().vision_shape(config)
