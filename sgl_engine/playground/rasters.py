"""Maps and plans as cells over a picture, for a page to draw. Pure.

Cells lie between the edges of the visual tokens. Where tiles and a small picture of the whole cover the same
spot, it has one cell for each piece that the edges of all of them cut out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sgl_engine.attention import Canvas, ImportanceMap, paint

if TYPE_CHECKING:
    from torch import Tensor

    from sgl_engine.pruning import PruningPlan

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

_PEAK_QUANTILE: Final = 0.995  # one runaway token must not leave everything else blank
_GAMMA: Final = 0.6  # attention is heavy-tailed: without it one spot would be hot and the rest blank


@dataclass(frozen=True, eq=False)
class Raster:
    """A number for each cell of the request's only picture.

    Attributes:
        xs: Edges of the columns, fractions of the picture's width, ascending.
        ys: Edges of the rows, fractions of its height.
        cells: (len(ys) - 1, len(xs) - 1).
    """

    xs: Floats
    ys: Floats
    cells: Floats | Ints

    def as_json(self) -> dict[str, Any]:
        """Plain lists; the cells row by row."""
        edges = {"xs": self.xs.round(5).tolist(), "ys": self.ys.round(5).tolist()}
        return {**edges, "cells": self.cells.ravel().round(3).tolist()}


def heat(importance: ImportanceMap) -> Raster:
    """How much each cell stands out, in [0, 1], higher = looked at more; 0 is the ordinary and below.

    Raises:
        InvalidRequestError: The map does not say which part of the picture its tokens see.
    """
    canvas = paint(importance, 0)
    density = canvas.weights / np.outer(np.diff(canvas.ys), np.diff(canvas.xs))
    peak = float(np.quantile(density[density > 0], _PEAK_QUANTILE)) if density.any() else 1.0
    return Raster(canvas.xs, canvas.ys, np.clip(density / peak, 0.0, 1.0) ** _GAMMA)


def turns(importance: ImportanceMap) -> Raster:
    """When each cell's turn comes: a budget of n visual tokens shows it where this is below n.

    Of the tokens that cover a cell, the one that matters most counts. With ``PruningConfig.tiles`` a plan may
    choose otherwise; ``kept`` is what it has chosen.

    Args:
        importance: On the large model's visual tokens; of equals, the first comes first.
    """
    order = importance.mass.sort(descending=True, stable=True).indices
    rank = np.empty(len(order), dtype=np.int64)
    rank[order.numpy()] = np.arange(len(order))
    canvas = paint(importance, 0)
    return Raster(canvas.xs, canvas.ys, _least(importance, canvas, rank))


def kept(importance: ImportanceMap, plan: PruningPlan) -> Raster:
    """1 where a token is kept that covers the cell, else 0.

    Args:
        importance: On the large model's visual tokens, which are those of the plan.
        plan: What is kept.
    """
    canvas = paint(importance, 0)
    dropped = 1 - is_kept(importance, plan.keep).astype(np.int64)
    return Raster(canvas.xs, canvas.ys, 1 - _least(importance, canvas, dropped))


def is_kept(importance: ImportanceMap, keep: Tensor) -> npt.NDArray[np.bool_]:
    """Which of a map's tokens (V,) are at the prompt positions (M,)."""
    positions = [position for span in importance.spans for position in span.positions]
    return np.isin(np.array(positions), keep.numpy())


def _least(importance: ImportanceMap, canvas: Canvas, values: Ints) -> Ints:
    """The lowest of the values (V,) of the tokens that cover each cell."""
    xs, ys = ((edges[:-1] + edges[1:]) / 2 for edges in (canvas.xs, canvas.ys))
    least = np.full((len(ys), len(xs)), max(values.max() + 1, 1), dtype=np.int64)
    first = 0
    for span in importance.spans:
        rows, cols = span.grid
        own = values[first : first + len(span)].reshape(rows, cols)
        first += len(span)
        assert span.box is not None, "painted, so known"
        x0, y0, x1, y1 = span.box
        row = np.floor((ys - y0) / (y1 - y0) * rows).astype(np.int64)
        col = np.floor((xs - x0) / (x1 - x0) * cols).astype(np.int64)
        down, across = np.flatnonzero((row >= 0) & (row < rows)), np.flatnonzero((col >= 0) & (col < cols))
        at = np.ix_(down, across)
        least[at] = np.minimum(least[at], own[np.ix_(row[down], col[across])])
    return least
