"""An importance map -> boxes of what was looked at: several a picture, over several pictures. Pure.

What stands out (``sgl_engine.attention.canvas``) is ranked over all pictures together, so that of ten pages
the one that holds the answer gets the boxes. The top of it becomes connected regions, and their boxes are
joined, those first that grow least by it, until no picture has too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sgl_engine.attention.canvas import Canvas, paint

if TYPE_CHECKING:
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.prompt.encoded import Box

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Regions:
    """What was looked at in one picture.

    Attributes:
        boxes: (x0, y0, x1, y1) in fractions of the picture, apart from each other, from top to bottom; none
            where nothing of what was looked at lies in it.
        concentration: The part of the picture's attention that is above the ordinary, in [0, 1]; 0 is flat.
        area: The part of the picture that the boxes cover.
    """

    boxes: tuple[Box, ...]
    concentration: float
    area: float


def find_regions(
    importance: ImportanceMap, images: int, *, share: float, margin: float, max_boxes: int
) -> tuple[Regions, ...]:
    """Finds the regions of each picture.

    Args:
        importance: The small model's map.
        images: How many pictures there are.
        share: How much of the weight above the ordinary the regions hold, all pictures together.
        margin: Added around each box, in fractions of the picture's sides; boxes are clipped to the picture.
        max_boxes: Of one picture, at most.

    Raises:
        InvalidRequestError: The map does not say which part of the pictures its tokens see.
    """
    canvases = [paint(importance, image) for image in range(images)]
    tops = _top_cells(canvases, share)
    found = []
    for canvas, top in zip(canvases, tops, strict=True):
        boxes = [_grown(_box(canvas, part), margin) for part in _connected(top)]
        joined = tuple(sorted(_joined(boxes, max_boxes), key=lambda box: (box[1], box[0])))
        weight = float(canvas.weights.sum())
        concentration = weight / canvas.mass if canvas.mass > 0 else 0.0
        found.append(Regions(joined, concentration, sum(_area(box) for box in joined)))
    return tuple(found)


def _top_cells(canvases: Sequence[Canvas], share: float) -> list[Bools]:
    """The cells with the most weight a token, until they hold their share of all weight."""
    densities, weights = [], []
    for canvas in canvases:
        areas = np.outer(np.diff(canvas.ys), np.diff(canvas.xs))
        densities.append((canvas.weights / (areas * canvas.tokens)).ravel())
        weights.append(canvas.weights.ravel())
    density, weight = np.concatenate(densities), np.concatenate(weights)
    order = np.argsort(-density, kind="stable")
    held = np.cumsum(weight[order])
    # Sums of the same numbers in another order differ in the last digits.
    count = int(np.searchsorted(held, weight.sum() * share * (1 - 1e-9))) + 1
    top = np.zeros(len(weight), dtype=np.bool_)
    top[order[:count]] = True
    top &= weight > 0
    ends = np.cumsum([canvas.weights.size for canvas in canvases])[:-1]
    parts = np.split(top, ends)
    return [part.reshape(canvas.weights.shape) for part, canvas in zip(parts, canvases, strict=True)]


def _connected(cells: Bools) -> list[list[tuple[int, int]]]:
    """Groups of cells that touch, at corners too."""
    left = {(int(row), int(col)) for row, col in zip(*np.nonzero(cells), strict=True)}
    groups = []
    while left:
        group, edge = [], [left.pop()]
        while edge:
            row, col = edge.pop()
            group.append((row, col))
            near = {(row + down, col + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            edge += near
        groups.append(group)
    return groups


def _box(canvas: Canvas, cells: Sequence[tuple[int, int]]) -> Box:
    rows, cols = [row for row, _ in cells], [col for _, col in cells]
    xs, ys = canvas.xs, canvas.ys
    return (float(xs[min(cols)]), float(ys[min(rows)]), float(xs[max(cols) + 1]), float(ys[max(rows) + 1]))


def _grown(box: Box, margin: float) -> Box:
    x0, y0, x1, y1 = box
    return (max(0.0, x0 - margin), max(0.0, y0 - margin), min(1.0, x1 + margin), min(1.0, y1 + margin))


def _joined(boxes: Sequence[Box], most: int) -> list[Box]:
    """Joins boxes that overlap, and then those that grow least, until at most ``most`` are left."""
    left = list(boxes)
    while len(left) > 1:
        pairs = [(i, j) for i in range(len(left)) for j in range(i)]
        costs = [(_area(_hull(left[i], left[j])) - _area(left[i]) - _area(left[j]), i, j) for i, j in pairs]
        cost, i, j = min(costs)
        overlapping = next(((a, b) for a, b in pairs if _overlap(left[a], left[b])), None)
        # Joined where two are no larger than what is around them, where they overlap, or are too many.
        if cost > 1e-9 and overlapping is None and len(left) <= most:
            break
        i, j = (i, j) if cost <= 1e-9 or overlapping is None else overlapping
        hull = _hull(left[i], left[j])
        left = [box for number, box in enumerate(left) if number not in (i, j)] + [hull]
    return left


def _hull(one: Box, other: Box) -> Box:
    low = min(one[0], other[0]), min(one[1], other[1])
    return (*low, max(one[2], other[2]), max(one[3], other[3]))


def _overlap(one: Box, other: Box) -> bool:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return across > 0 and down > 0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
