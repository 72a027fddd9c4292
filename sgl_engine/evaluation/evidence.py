"""How much of what a question is answered from is kept by each ranker, where the data say what that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sgl_engine import ImageSource
from sgl_engine.demo.drawing import Box
from sgl_engine.evaluation.records import Json
from sgl_engine.prompt import EncodedPrompt, VisualSpan

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgl_engine.pruning import PruningPlan

STUDY = "prompt"
"""Where ``BenchOutcome.study`` holds what ``about_prompt`` returns."""
LEAST = 0.05
"""A token shows evidence where a box covers at least this share of its part of the picture."""

Plans = Mapping[str, Mapping[str, "PruningPlan"]]
"""Ranker -> operating point -> plan."""


def about_prompt(
    prompt: EncodedPrompt, plans: Plans, images: Sequence[ImageSource], boxes: Sequence[Box] | None
) -> Json:
    """Tells into how many grids the large model's pictures were cut, and the share of the evidence kept.

    Args:
        prompt: The question, as the large model reads it.
        plans: What is kept.
        images: Its pictures.
        boxes: The evidence, in pixels of the only picture; None where nobody knows.

    Returns:
        "grids", and "evidence": ranker -> point -> share; None where there is none, or nobody knows.
    """
    found: Json = {"grids": len(prompt.spans), "evidence": None}
    if boxes:
        picture: Image = images[0]  # type: ignore[assignment]  # evidence comes with drawn pages only
        shown = evidence_mask(boxes, picture.size, prompt.spans)
        found["evidence"] = {
            ranker: {point: _kept(plan, prompt, shown) for point, plan in points.items()}
            for ranker, points in plans.items()
        }
    return found


def _kept(plan: PruningPlan, prompt: EncodedPrompt, shown: npt.NDArray[np.bool_]) -> float:
    kept = np.isin(np.asarray(prompt.visual_positions), plan.keep.numpy())
    return float((kept & shown).sum() / shown.sum())


def evidence_mask(
    boxes: Sequence[Box], size: tuple[int, int], spans: Sequence[VisualSpan]
) -> npt.NDArray[np.bool_]:
    """Marks the visual tokens of one picture that show evidence, (V,), in prompt order.

    Args:
        boxes: x0, y0, x1, y1 in pixels, half-open.
        size: Width and height of the picture.
        spans: Of its grids.
    """
    found = []
    for span in spans:
        rows, columns = span.grid
        x0, y0, x1, y1 = span.box or (0.0, 0.0, 1.0, 1.0)
        down = np.linspace(y0, y1, rows + 1) * size[1]
        across = np.linspace(x0, x1, columns + 1) * size[0]
        covered = np.zeros((rows, columns), dtype=bool)
        area = np.diff(down)[:, None] * np.diff(across)
        for left, top, right, bottom in boxes:
            shared = _overlap(down, top, bottom)[:, None] * _overlap(across, left, right)
            covered |= shared >= LEAST * area
        found.append(covered.ravel())
    return np.concatenate(found)


def _overlap(edges: npt.NDArray[np.float64], start: int, stop: int) -> npt.NDArray[np.float64]:
    shared: npt.NDArray[np.float64] = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return shared.clip(min=0)
