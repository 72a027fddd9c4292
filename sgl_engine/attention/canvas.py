"""An importance map painted onto its picture: how much each part was looked at above the ordinary. Pure.

A token is weighed by the attention that it got above the median token of its picture: attention is spread
thinly over everything, and what stands out is what was looked at. No token is given more than a quarter of
all weight: language models park attention on a few tokens that say nothing ("attention sinks"), and such a
token, far from the rest, must not outweigh all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sgl_engine.errors import InvalidRequestError

if TYPE_CHECKING:
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.prompt.encoded import Box

Floats: TypeAlias = npt.NDArray[np.float64]
_Layer: TypeAlias = "tuple[Box, Floats]"  # what a span covers, and a number per token (rows, cols)

_MAX_TOKEN_SHARE: Final = 0.25
_NOISE: Final = 1e-3  # nothing stands out by less than that; rounded maps differ by half of it
EDGE_DIGITS: Final = 5
"""Token edges of tiles and thumbnails that differ by rounding only are one edge."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The weight of each part of a picture.

    Attributes:
        weights: float64 (len(ys) - 1, len(xs) - 1), what each cell between edges got; higher = more.
        xs: Edges of the columns, fractions of the picture's width, ascending.
        ys: Edges of the rows, fractions of its height.
        tokens: Visual tokens of the picture.
        mass: All attention that the picture got, the ordinary too.
    """

    weights: Floats
    xs: Floats
    ys: Floats
    tokens: int
    mass: float


def paint(importance: ImportanceMap, image: int) -> Canvas:
    """Paints one picture's part of a map; tiles and thumbnails of it are added up.

    Args:
        importance: The small model's map.
        image: Index of the picture in the request, from 0.

    Raises:
        InvalidRequestError: The map does not cover such a picture, or does not say which part of it its
            tokens see.
    """
    given = _layers(importance, image)
    layers = _weighed(given)
    xs = _edges([(box[0], box[2], weights.shape[1]) for box, weights in layers])
    ys = _edges([(box[1], box[3], weights.shape[0]) for box, weights in layers])
    weights = np.zeros((len(ys) - 1, len(xs) - 1))
    for box, part in layers:
        _spread(weights, part, box, xs=xs, ys=ys)
    tokens = sum(part.size for _, part in layers)
    return Canvas(weights, xs, ys, tokens, float(sum(mass.sum() for _, mass in given)))


def _layers(importance: ImportanceMap, image: int) -> list[_Layer]:
    """Where each span of the picture lies, and its mass."""
    layers = []
    for span, grid in zip(importance.spans, importance.grids(), strict=True):
        if span.image != image:
            continue
        if span.box is None:
            raise InvalidRequestError(
                f"The importance map does not say which part of picture {image + 1} its tokens see.",
                remedy="Encode the prompt from a Request, which knows the size of its pictures.",
            )
        layers.append((span.box, np.nan_to_num(grid.double().numpy())))
    if not layers:
        known = sorted({span.image for span in importance.spans})
        raise InvalidRequestError(
            f"The importance map does not cover a picture with index {image}; it covers {known}.",
            remedy="Count the pictures of the request from 0.",
        )
    return layers


def _weighed(layers: list[_Layer]) -> list[_Layer]:
    """Mass -> weight: what exceeds the median token of the picture, no token more than its share."""
    median = np.median(np.concatenate([mass.ravel() for _, mass in layers]))
    excess = [np.where(mass > (1 + _NOISE) * median, mass - median, 0.0) for _, mass in layers]
    level = _level(np.concatenate([part.ravel() for part in excess]), _MAX_TOKEN_SHARE)
    return [(box, np.minimum(part, level)) for (box, _), part in zip(layers, excess, strict=True)]


def _level(weights: Floats, share: float) -> float:
    """Highest limit for one weight under which none is more than ``share`` of the limited sum.

    Where that is impossible, as there are too few weights above 0, the limit makes those equal.
    """
    highest = np.sort(weights[weights > 0])[::-1]
    for cut in range(1, min(len(highest), math.ceil(1 / share))):
        # The `cut` highest are lowered to `level`, such that level = share * (cut * level + rest).
        level = share * float(highest[cut:].sum()) / (1 - share * cut)
        if highest[cut] <= level:
            return level
    return float(highest[-1]) if len(highest) else 0.0


def _edges(axes: list[tuple[float, float, int]]) -> Floats:
    """All token edges along one axis, ascending, from (low, high, count) of each span."""
    edges = np.concatenate([np.linspace(low, high, count + 1) for low, high, count in axes])
    _, first = np.unique(edges.round(EDGE_DIGITS), return_index=True)
    return edges[first]


def _spread(canvas: Floats, weights: Floats, box: Box, *, xs: Floats, ys: Floats) -> None:
    """Add weights (rows, cols), each spread evenly over its token, to the canvas between edges, in place."""
    x0, y0, x1, y1 = box
    rows, cols = weights.shape
    row = np.floor(((ys[:-1] + ys[1:]) / 2 - y0) / (y1 - y0) * rows).astype(np.int64)
    col = np.floor(((xs[:-1] + xs[1:]) / 2 - x0) / (x1 - x0) * cols).astype(np.int64)
    down = np.flatnonzero((row >= 0) & (row < rows))
    across = np.flatnonzero((col >= 0) & (col < cols))
    token_area = (x1 - x0) * (y1 - y0) / weights.size
    areas = np.outer(np.diff(ys)[down], np.diff(xs)[across])
    canvas[np.ix_(down, across)] += weights[np.ix_(row[down], col[across])] * areas / token_area
