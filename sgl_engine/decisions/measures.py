"""How good probabilities and boxes are. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_engine.prompt import Box


def expected_calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], bins: int = 10
) -> float:
    """Mean distance between what is promised and what holds, over equally wide bins; 0 is best.

    Args:
        probabilities: Of the likeliest answers, in [0, 1].
        right: Whether each was right.
        bins: How many.
    """
    off = 0.0
    for number in range(bins):
        inside = [i for i, p in enumerate(probabilities) if min(int(p * bins), bins - 1) == number]
        promised = math.fsum(probabilities[i] for i in inside)
        off += abs(promised - sum(right[i] for i in inside))
    return off / len(probabilities)


def brier(probabilities: Sequence[float], right: Sequence[bool]) -> float:
    """Mean squared distance between the likeliest answers' probabilities and whether they were right."""
    return math.fsum((p - r) ** 2 for p, r in zip(probabilities, right, strict=True)) / len(probabilities)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(0.0, across) * max(0.0, down)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return inside / (areas - inside) if areas > inside else 0.0
