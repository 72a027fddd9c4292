"""GLM-4.1V and its kin, ERNIE 4.5 VL, PaddleOCR-VL, EXAONE 4.5: a picture of any size is one grid.

As in Qwen2-VL, an image is resized to whole merged patches, and its tokens lie row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgl_engine.families.base import Tile
from sgl_engine.families.generic import Generic
from sgl_engine.families.qwen2_vl import Qwen2VL
from sgl_engine.prompt.encoded import PictureAxes, VisualSpan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

_LIKE = Qwen2VL()


class Grids(Generic):
    """See the module docstring, and ``sgl_engine.families.Family`` for the methods."""

    name = "grids"

    def tiles(
        self,
        config: PreTrainedConfig,
        processor: Any,
        inputs: Mapping[str, Tensor],
        sizes: Sequence[tuple[int, int]] | None,
    ) -> list[list[Tile]]:
        """From the grids that the processor returned."""
        return _LIKE.tiles(config, processor, inputs, sizes)

    def picture_axes(self, inputs: Mapping[str, Tensor], spans: Sequence[VisualSpan]) -> PictureAxes | None:
        """As many patches as the picture's grid has; one grid each."""
        return _LIKE.picture_axes(inputs, spans)
