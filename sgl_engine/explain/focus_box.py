"""Where in a picture the small model looked, as one box. Pure.

A token is weighed by the attention that it got above the median token of its picture: attention is spread
thinly over everything, and what stands out is what was looked at. No token is given more than a quarter of
all weight: language models park attention on a few tokens that say nothing ("attention sinks"), and such a
token, far from the rest, must not become the box all by itself. The box is the smallest one along token edges
that holds the wanted share of the weight; where two are equally small, the one that holds more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sgl_engine import InvalidRequestError

if TYPE_CHECKING:
    from sgl_engine.attention import ImportanceMap
    from sgl_engine.prompt import Box

Floats: TypeAlias = npt.NDArray[np.float64]
_Layer: TypeAlias = "tuple[Box, Floats]"  # what a span covers, and a number per token (rows, cols)

WHOLE: Final = (0.0, 0.0, 1.0, 1.0)
_MAX_TOKEN_SHARE: Final = 0.25
_NOISE: Final = 1e-3  # nothing stands out by less than that; rounded maps differ by half of it
_DIGITS: Final = 5  # token edges of tiles and thumbnails that differ by rounding only are one edge


def focus_box(importance: ImportanceMap, *, image: int = 0, share: float = 0.5, margin: float = 0.05) -> Box:
    """The smallest box that holds ``share`` of what stands out in a picture.

    Args:
        importance: The small model's map; tiles and thumbnails of the picture are added up.
        image: Index of the picture in the request, from 0.
        share: Of the weight above the median, in (0, 1]; more gives a larger box.
        margin: Added on each side, in fractions of the picture's width and height; the box is clipped to it.

    Returns:
        (x0, y0, x1, y1), fractions of the picture; the whole picture where no token stands out.

    Raises:
        InvalidRequestError: The map does not cover such a picture, or does not say which part of it its
            tokens see; or ``share`` or ``margin`` is out of range.
    """
    if not 0.0 < share <= 1.0 or not 0.0 <= margin <= 1.0:
        raise InvalidRequestError(
            f"A box for a share of {share} with a margin of {margin} does not exist.",
            remedy="Give a share above 0 and at most 1, and a margin from 0 to 1.",
        )
    layers = _weighed(_layers(importance, image))
    if not any(weights.any() for _, weights in layers):
        return WHOLE
    xs = _edges([(box[0], box[2], weights.shape[1]) for box, weights in layers])
    ys = _edges([(box[1], box[3], weights.shape[0]) for box, weights in layers])
    canvas = np.zeros((len(ys) - 1, len(xs) - 1))
    for box, weights in layers:
        _spread(canvas, weights, box, xs=xs, ys=ys)
    x0, y0, x1, y1 = _smallest_box(canvas, xs, ys, share)
    return (max(0.0, x0 - margin), max(0.0, y0 - margin), min(1.0, x1 + margin), min(1.0, y1 + margin))


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
    _, first = np.unique(edges.round(_DIGITS), return_index=True)
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


def _smallest_box(canvas: Floats, xs: Floats, ys: Floats, share: float) -> Box:
    """Exact search: all pairs of horizontal edges, and for each left edge the nearest right one that does."""
    above = np.zeros((len(ys), len(xs)))  # weight above and left of each crossing of edges
    above[1:, 1:] = canvas.cumsum(axis=0).cumsum(axis=1)
    # Sums of the same numbers in another order differ in the last digits.
    wanted = above[-1, -1] * share * (1 - 1e-9)
    best, found = (np.inf, 0.0), (0, 0, len(xs) - 1, len(ys) - 1)
    for top in range(len(ys) - 1):
        for bottom in range(top + 1, len(ys)):
            height = ys[bottom] - ys[top]
            strip = above[bottom] - above[top]
            if strip[-1] < wanted:
                continue
            right = np.searchsorted(strip, strip + wanted)
            left = np.flatnonzero(right < len(xs))
            right = right[left]
            areas = ((xs[right] - xs[left]) * height).round(2 * _DIGITS)  # equal areas must compare equal
            held = strip[right] - strip[left]
            index = np.lexsort((-held, areas))[0]
            if (areas[index], -held[index]) < best:
                best = (areas[index], -held[index])
                found = (int(left[index]), top, int(right[index]), bottom)
    x0, y0, x1, y1 = found
    return (float(xs[x0]), float(ys[y0]), float(xs[x1]), float(ys[y1]))
