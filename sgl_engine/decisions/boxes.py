"""Where something is: a box of what the small model looked at, or coordinates that a model was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sgl_engine import ConfigError, InvalidRequestError, Request, Response, RunReport, SGLError
from sgl_engine.attention import paint
from sgl_engine.decisions.answers import BoxAnswer, DecisionAnswer, DecisionReport, totals
from sgl_engine.decisions.asking import ask_about, refused
from sgl_engine.decisions.calibrated import DecisionCalibration, how_boxed
from sgl_engine.decisions.forms import find_form
from sgl_engine.decisions.questions import BoxQuestion
from sgl_engine.explain import focus_box

if TYPE_CHECKING:
    from sgl_engine import SGLEngine
    from sgl_engine.attention import ImportanceMap
    from sgl_engine.decisions.settings import DecisionConfig
    from sgl_engine.prompt import Box

SCALE = 1000
"""Generated coordinates are from 0 to this."""
_MAP_TOKENS = 16
"""So many tokens are said while it is watched where the small model looks."""
_COORDINATES = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": SCALE},
    "minItems": 4,
    "maxItems": 4,
}


def locate(
    engine: SGLEngine,
    request: Request,
    questions: Mapping[str, BoxQuestion],
    config: DecisionConfig,
    calibration: DecisionCalibration | None,
    runs: list[RunReport],
) -> dict[str, tuple[DecisionAnswer, DecisionReport | None]]:
    """Answers questions of where something is, side by side.

    Args:
        engine: The pair.
        request: The state.
        questions: By name.
        config: Where boxes come from.
        calibration: Makes the confidence of those from the map the overlap to expect, where it has boxes.
        runs: The report of every run is added to it.

    Raises:
        ConfigError: The calibration's boxes were asked for in another way.
    """
    of_boxes = None if calibration is None or not questions else calibration.boxes
    if of_boxes is not None and of_boxes.put != how_boxed(config):
        raise ConfigError(
            f"The calibration {config.calibration} has boxes asked for as {of_boxes.put!r}; here they are "
            f"asked for as {how_boxed(config)!r}.",
            remedy="Use the settings that it was made with, or calibrate again.",
        )
    if not request.images:
        missing = InvalidRequestError(
            "The state holds no picture, so nothing can be located in it.",
            remedy="Give the state a picture, or leave the question out.",
        )
        return dict.fromkeys(questions, refused(missing))
    is_map, form = config.boxes == "map", find_form(config.form)
    if not is_map and len(request.images) > 1:
        ambiguous = InvalidRequestError(
            f"The state holds {len(request.images)} pictures, and coordinates do not say of which they are.",
            remedy='Use boxes="map", or ask about one picture at a time.',
        )
        return dict.fromkeys(questions, refused(ambiguous))
    if is_map:  # what is said does not matter, only where the small model looks while it says it
        engine = engine.with_config(engine.config.escalating("never"))
    asked = []
    for question in questions.values():
        put = form.put(question, (0,), config.labels)
        if is_map:
            asked.append(replace(ask_about(request, put), max_new_tokens=_MAP_TOKENS))
        else:
            put = replace(put, content=(*put.content, put.point))
            asked.append(replace(ask_about(request, put), response_schema=_COORDINATES))
    found: dict[str, tuple[DecisionAnswer, DecisionReport | None]] = {}
    for name, response in zip(questions, engine.run_batch(asked), strict=True):
        try:
            if isinstance(response, Exception):
                raise response
            runs.append(response.report)
            found[name] = _looked_at(response, config, calibration) if is_map else _pointed_at(response)
        except SGLError as error:
            found[name] = refused(error)
    return found


def _looked_at(
    response: Response, config: DecisionConfig, calibration: DecisionCalibration | None
) -> tuple[BoxAnswer, DecisionReport]:
    """The box of what stands out in the small model's map, in the picture where most does."""
    importance = response.importance
    assert importance is not None, "there are pictures"
    images = sorted({span.image for span in importance.spans})
    weights = [float(paint(importance, image).weights.sum()) for image in images]
    image = images[weights.index(max(weights))]
    box = focus_box(importance, image=image, share=config.box_share, margin=config.box_margin)
    confidence = surplus(box, mass_inside(importance, image, box))
    report = _report(response, confidence, 0.0, "map")
    if calibration is not None and calibration.boxes is not None:
        confidence = calibration.boxes.expected(confidence)
        report = report.model_copy(update={"score": confidence, "calibration": calibration.id})
    return BoxAnswer(box, image, confidence), report


def _pointed_at(response: Response) -> tuple[BoxAnswer, DecisionReport]:
    """The box that a model has written.

    Raises:
        InvalidRequestError: What it wrote is no box.
    """
    try:
        numbers = json.loads(response.text)
    except (ValueError, RecursionError):
        numbers = None
    is_box = (
        isinstance(numbers, list)
        and len(numbers) == 4
        and all(type(each) in (int, float) for each in numbers)
    )
    left, top, right, bottom = (
        (min(max(each / SCALE, 0.0), 1.0) for each in numbers) if is_box else (0.0, 0.0, 0.0, 0.0)
    )
    if not (left < right and top < bottom):
        raise InvalidRequestError(
            f"The model answered {response.text!r:.100}, which is no box.",
            remedy='Use boxes="map", or a model that has learnt to point.',
        )
    told = response.report
    policy = "forced" if told.forced else "threshold"
    report = _report(response, told.score, told.threshold, "uncovered" if told.uncovered else policy)
    return BoxAnswer((left, top, right, bottom), 0, told.score), report


def _report(response: Response, score: float, threshold: float, policy: str) -> DecisionReport:
    told = response.report
    return DecisionReport.model_validate(
        {
            "route": told.route,
            "escalated": told.escalated,
            "score": score,
            "threshold": threshold,
            "policy": policy,
            **totals([told]),
        }
    )


def mass_inside(importance: ImportanceMap, image: int, box: Box) -> float:
    """The share of a picture's attention that lies in a box, in [0, 1]; each token's evenly over its area."""
    inside = everything = 0.0
    for span, grid in zip(importance.spans, importance.grids(), strict=True):
        if span.image != image or span.box is None:
            continue
        x0, y0, x1, y1 = span.box
        rows, cols = grid.shape
        mass = grid.double()
        down = [_covered(y0, y1, rows, row, box[1], box[3]) for row in range(rows)]
        across = [_covered(x0, x1, cols, col, box[0], box[2]) for col in range(cols)]
        everything += float(mass.sum())
        inside += float(mass.new_tensor(down) @ mass @ mass.new_tensor(across))
    return inside / everything if everything > 0 else 0.0


def _covered(low: float, high: float, count: int, index: int, start: float, end: float) -> float:
    """Which part of a row or column of tokens lies between two edges."""
    size = (high - low) / count
    begin = low + index * size
    return max(0.0, min(begin + size, end) - max(begin, start)) / size


def surplus(box: Box, share: float) -> float:
    """1 - area / share: 0 where a box got its area's share of the attention, near 1 where far more."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(0.0, 1 - area / share) if share > 0 else 0.0
