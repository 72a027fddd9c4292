"""Content -> digest, as a key for what a model makes of it. Pure.

Digests are cryptographic: whoever sends pictures must not be able to make one that is taken for another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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
