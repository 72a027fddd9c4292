"""Content -> digest, as a key for what a model makes of it. Pure.

Digests are cryptographic: whoever sends pictures must not be able to make one that is taken for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


Box: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1), fractions in [0, 1] of the source image's width and height."""


@dataclass(frozen=True)
class VisualSpan:
    """The visual tokens of one image, or of one tile of an image.

    Attributes:
        image: Index of the image in the request, from 0.
        start: First prompt position.
        stop: One past the last prompt position.
        grid: (rows, cols) of tokens after merging, row-major.
        box: The part of the source image that the tokens see; None where it is unknown (a tiled prompt built
            from raw inputs, without the image sizes).
        row_gap: Prompt tokens between two rows that are no visual tokens (row separators); they are text.
    """

    image: int
    start: int
    stop: int
    grid: tuple[int, int]
    box: Box | None
    row_gap: int = 0

    def __len__(self) -> int:
        """Number of visual tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def positions(self) -> tuple[int, ...]:
        """Prompt positions of the visual tokens, ascending."""
        rows, cols = self.grid
        starts = range(self.start, self.start + rows * (cols + self.row_gap), cols + self.row_gap)
        return tuple(position for start in starts for position in range(start, start + cols))


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """What a model takes.

    Attributes:
        inputs: The model's keyword arguments (input_ids, attention_mask, pixel_values, ...).
        input_ids: int64 (B, S).
        spans: The visual tokens, in prompt order; image-token positions only, never the text between images.
        positions: int64 (axes, B, S), positions for rotary embeddings that see an image in two dimensions;
            None where tokens are simply numbered.
        picture_axes: Where each picture lies in the inputs (``PictureAxes``); None where pictures cannot
            be told apart there.
    """

    inputs: Mapping[str, Tensor]
    input_ids: Tensor
    spans: tuple[VisualSpan, ...]
    positions: Tensor | None = None
    picture_axes: PictureAxes | None = None

    def __len__(self) -> int:
        """S, the number of prompt tokens."""
        return int(self.input_ids.shape[1])

    @property
    def num_visual_tokens(self) -> int:
        """V."""
        return sum(len(span) for span in self.spans)

    @property
    def visual_positions(self) -> tuple[int, ...]:
        """The V prompt positions of visual tokens, ascending."""
        return tuple(position for span in self.spans for position in span.positions)

    @cached_property
    def picture_digests(self) -> tuple[bytes, ...]:
        """Of each picture as the model is given it, or of all together; computed when first asked for."""
        return picture_digests(self.inputs, self.picture_axes)


TOKEN_INPUTS = frozenset({"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"})
"""Inputs that belong to the text; all others are what the processor made of the pictures."""

PictureAxes = Mapping[str, tuple[int, Sequence[int]]]
"""Name of a vision input -> the axis along which the pictures lie, and how many entries each of them has."""


def picture_digests(inputs: Mapping[str, Tensor], axes: PictureAxes | None) -> tuple[bytes, ...]:
    """One digest per picture, of all that the vision side is given of it.

    Args:
        inputs: What the processor returned.
        axes: Where each picture lies in it; None gives one digest for all pictures together.
    """
    return tuple(_digest(part) for part in split_pictures(inputs, axes))


def split_pictures(inputs: Mapping[str, Tensor], axes: PictureAxes | None) -> list[dict[str, Tensor]]:
    """Each picture's own vision inputs (views); those of all pictures where they cannot be told apart."""
    if axes is None:
        vision = {name: value for name, value in inputs.items() if name not in TOKEN_INPUTS}
        return [vision] if vision else []
    pieces = {name: inputs[name].split(list(counts), dim=axis) for name, (axis, counts) in axes.items()}
    pictures = max(len(parts) for parts in pieces.values())
    return [{name: parts[picture] for name, parts in pieces.items()} for picture in range(pictures)]


def join_pictures(parts: Sequence[Mapping[str, Tensor]], axes: PictureAxes) -> dict[str, Tensor]:
    """The vision inputs of a prompt that holds just these pictures."""
    import torch

    return {name: torch.cat([part[name] for part in parts], dim=axis) for name, (axis, _) in axes.items()}


def _digest(inputs: Mapping[str, Tensor]) -> bytes:
    import torch

    found = hashlib.sha256()
    for name in sorted(inputs):
        value = inputs[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
