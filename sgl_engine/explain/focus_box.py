"""Where in a picture the small model looked, as one box. Pure.

Weights are those of ``sgl_engine.attention.canvas``: attention above the ordinary. The box is the smallest
one along token edges that holds the wanted share of the weight; where two are equally small, the one that
holds more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sgl_engine import InvalidRequestError
from sgl_engine.attention import EDGE_DIGITS, Canvas, paint

if TYPE_CHECKING:
    from sgl_engine.attention import ImportanceMap
    from sgl_engine.prompt import Box

WHOLE: Final = (0.0, 0.0, 1.0, 1.0)


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
    canvas = paint(importance, image)
    if not canvas.weights.any():
        return WHOLE
    x0, y0, x1, y1 = _smallest_box(canvas, share)
    return (max(0.0, x0 - margin), max(0.0, y0 - margin), min(1.0, x1 + margin), min(1.0, y1 + margin))


def _smallest_box(canvas: Canvas, share: float) -> Box:
    """Exact search: all pairs of horizontal edges, and for each left edge the nearest right one that does."""
    xs, ys = canvas.xs, canvas.ys
    above = np.zeros((len(ys), len(xs)))  # weight above and left of each crossing of edges
    above[1:, 1:] = canvas.weights.cumsum(axis=0).cumsum(axis=1)
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
            areas = ((xs[right] - xs[left]) * height).round(2 * EDGE_DIGITS)  # equal areas must compare equal
            held = strip[right] - strip[left]
            index = np.lexsort((-held, areas))[0]
            if (areas[index], -held[index]) < best:
                best = (areas[index], -held[index])
                found = (int(left[index]), top, int(right[index]), bottom)
    x0, y0, x1, y1 = found
    return (float(xs[x0]), float(ys[y0]), float(xs[x1]), float(ys[y1]))
