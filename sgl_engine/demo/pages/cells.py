"""From boxes on a page to the visual tokens that show them: tile by tile, row by row within a tile."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sgl_engine.demo.drawing import PATCH, Box
from sgl_engine.demo.pages.sheet import TILE

TOKENS = TILE * TILE
"""Visual tokens of a tile."""


def evidence_tokens(
    boxes: Iterable[Box], rows: int, columns: int, *, least: float = 0.05
) -> NDArray[np.int64]:
    """Tokens of a page of rows x columns tiles of which a box covers at least that fraction, ascending."""
    covered = np.zeros((rows * TILE, columns * TILE), bool)
    for x0, y0, x1, y1 in boxes:
        down, across = _overlap(y0, y1, rows * TILE), _overlap(x0, x1, columns * TILE)
        covered |= down[:, None] * across[None, :] >= least * PATCH**2
    tiled = covered.reshape(rows, TILE, columns, TILE).transpose(0, 2, 1, 3)
    return np.flatnonzero(tiled)


def _overlap(start: int, stop: int, count: int) -> NDArray[np.int64]:
    """Pixels of each of ``count`` squares in a row that lie in start..stop."""
    edges = np.arange(count) * PATCH
    shared: NDArray[np.int64] = np.minimum(edges + PATCH, stop) - np.maximum(edges, start)
    return shared.clip(min=0)
