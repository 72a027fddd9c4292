"""Planes of visual features that a decoder adds between its layers: what is left of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sgl_engine.pruning.plan import KeptColumns

Adder = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(hidden (B, N, hidden), is_image (B, S), plane (V, hidden)) -> hidden states."""


def pruned_adder(kept: KeptColumns, original: Adder) -> Adder:
    """Makes a function that adds a plane of visual features to the image tokens that are left."""

    def add(hidden: Tensor, is_image: Tensor, plane: Tensor) -> Tensor:
        """Adds ``plane`` (V, hidden) to hidden states (B, N, hidden); ``is_image`` (B, S) is unpruned."""
        if hidden.shape[1] == is_image.shape[1]:
            # Every plan drops something, so as many rows as columns means: a layer below K, not pruned.
            return original(hidden, is_image, plane)
        left, numbers = _left(kept, is_image)
        return original(hidden, left, plane[numbers.to(plane.device)])

    return add


def pruned_planes(kept: KeptColumns, names: tuple[str, str]) -> Callable[..., Any]:
    """Makes a hook that gives a decoder, which adds planes itself, those of the image tokens that are left.

    Args:
        kept: What is kept from layer K on.
        names: The decoder's arguments: which tokens are of a picture, bool (B, S, 1), and layer -> plane.
    """
    mask_name, planes_name = names

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get(planes_name) is None:
            return args, kwargs
        planes = _Planes(kwargs[planes_name], kwargs[mask_name][..., 0], kept)
        return args, {**kwargs, planes_name: planes, mask_name: _MaskOf(planes)}

    return hook


class _Planes(dict[int, Tensor]):
    """Layer -> plane; remembers which layer was asked for last.

    What enters layer K is not pruned yet, so K itself has the whole plane.
    """

    def __init__(self, planes: Mapping[int, Tensor], is_image: Tensor, kept: KeptColumns) -> None:
        super().__init__(planes)
        self._whole, self._layer = is_image, kept.layer
        self._left, self._numbers = _left(kept, is_image)
        self.is_image = is_image

    def __getitem__(self, layer: int) -> Tensor:
        plane = super().__getitem__(layer)
        above = layer > self._layer
        self.is_image = self._left if above else self._whole
        return plane[self._numbers.to(plane.device)] if above else plane


class _MaskOf:
    """Which tokens are of a picture, in the layer whose plane was asked for last."""

    def __init__(self, planes: _Planes) -> None:
        self._planes = planes

    def to(self, device: torch.device) -> Tensor:
        """Bool (B, N, 1), on a device."""
        return self._planes.is_image[..., None].to(device)


def _left(kept: KeptColumns, is_image: Tensor) -> tuple[Tensor, Tensor]:
    """Which columns that are left are of a picture, bool (B, M), and which rows of a plane are theirs."""
    rows = kept.seen(is_image.shape[1], is_image.device)
    left = is_image.take_along_dim(rows, dim=1) & kept.exist(rows.shape[1], is_image.device)
    # A plane has a row for each image token of all prompts, one after the other: number these, and take
    # the numbers of those that are left.
    numbers = (is_image.flatten().cumsum(dim=0) - 1).reshape(is_image.shape)
    return left, numbers.take_along_dim(rows, dim=1)[left]
