"""How a page is divided: rectangles of tiles, each for one part, or for two documents one under the other."""

from __future__ import annotations

import numpy as np

from sgl_engine.demo.pages.sheet import TILE, Frame

SHAPES = {1: (1, 1), 2: (2, 1), 3: (3, 1), 4: (2, 2), 6: (2, 3)}
"""Rows and columns of tiles of a page, by their number.

A processor hands tiles on as one run of tokens, so nothing but their number tells a model how they lie: each
number has one shape.
"""
SHARES = {1: 0.12, 2: 0.2, 3: 0.13, 4: 0.3, 6: 0.25}
"""How often a page has that many tiles."""
_LARGEST = 4  # tiles of a rectangle that is not divided further


def divide(rows: int, columns: int, rng: np.random.Generator) -> list[Frame]:
    """Cut a page into rectangles of tiles, at random."""
    return _cut((0, 0, rows, columns), rng)


def _cut(area: tuple[int, int, int, int], rng: np.random.Generator) -> list[Frame]:
    row, column, rows, columns = area
    tiles = rows * columns
    if tiles == 1 or (tiles <= _LARGEST and rng.random() < 0.45):
        return [Frame(row * TILE, column * TILE, rows * TILE, columns * TILE)]
    upright = columns > 1 and (rows == 1 or rng.random() < columns / (rows + columns))
    if upright:
        at = int(rng.integers(1, columns))
        parts = [(row, column, rows, at), (row, column + at, rows, columns - at)]
    else:
        at = int(rng.integers(1, rows))
        parts = [(row, column, at, columns), (row + at, column, rows - at, columns)]
    return [frame for part in parts for frame in _cut(part, rng)]


def halve(frame: Frame, rng: np.random.Generator) -> tuple[Frame, Frame]:
    """Two frames one under the other, at least eight squares high each; the cut may be within a tile."""
    at = int(rng.integers(8, frame.rows - 7))
    return (
        Frame(frame.row, frame.column, at, frame.columns),
        Frame(frame.row + at, frame.column, frame.rows - at, frame.columns),
    )
