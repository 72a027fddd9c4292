"""Calibrates decisions: makes probabilities right, and certifies when the small model may decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sgl_engine import ImagePart
from sgl_engine.calibration.certify import certify, thresholds_of
from sgl_engine.calibration.fitting import fit
from sgl_engine.calibration.records import picture_pieces
from sgl_engine.decisions import (
    BoxAnswer,
    BoxCalibration,
    DecisionCalibration,
    DecisionConfig,
    QuestionType,
    TypeCalibration,
    curved,
    decide,
    how_boxed,
    how_put,
    overlap,
    tempered,
)
from sgl_engine.exit import SCORE, Isotonic, bind, digest

if TYPE_CHECKING:
    from PIL import Image

    from sgl_engine import SGLEngine
    from sgl_engine.decisions import DecisionAnswer, DecisionQuestion
    from sgl_engine.prompt import Box

_LEAST = 1e-9
_LEAST_SHARE = 1e-12  # as ``tempered`` has it
_TEMPERATURES: tuple[float, ...] = tuple(2.0 ** (step / 8) for step in range(-24, 41))
"""From 1/8 to 32, an eighth of an octave apart."""


class Case(Protocol):
    """One question about a picture, and what is right."""

    @property
    def image(self) -> Image.Image:
        """The picture."""

    @property
    def question(self) -> DecisionQuestion:
        """The question."""

    @property
    def truth(self) -> str:
        """The right answer, as ``said`` writes it."""


class BoxCase(Protocol):
    """Something that is to be found in a picture."""

    @property
    def image(self) -> Image.Image:
        """The picture."""

    @property
    def question(self) -> DecisionQuestion:
        """The question."""

    @property
    def evidence(self) -> Box | None:
        """Where it is: (left, top, right, bottom), fractions of width and height."""


@dataclass(frozen=True)
class DecisionRecord:
    """What both models made of one question, without any temperature.

    Attributes:
        small: The small model's probabilities of all options.
        large: The large model's.
        right: Index of the right option.
        picture: Names what it is about; records of one picture are not independent. Empty: no other's.
    """

    small: tuple[float, ...]
    large: tuple[float, ...]
    right: int
    picture: str = ""

    @property
    def harmful(self) -> bool:
        """Whether the large model would have decided otherwise than the small one."""
        return _best(self.small) != _best(self.large)


def collect_decisions(
    engine: SGLEngine, cases: Iterable[Case], config: DecisionConfig
) -> list[DecisionRecord]:
    """Asks both models every question; questions that cannot be put are left out."""
    plain = config.model_copy(update={"calibration": None, "risk": None})
    routes = [engine.with_config(engine.config.escalating(route)) for route in ("never", "always")]
    records = []
    for case in cases:
        found = [
            decide(each, [ImagePart(case.image)], {"q": case.question}, plain).answers["q"] for each in routes
        ]
        options = options_of(found[0])
        if all(case.truth in options_of(answer) for answer in found):  # either model may have refused it
            small, large = (tuple(options_of(answer).values()) for answer in found)
            about = digest(*picture_pieces(case.image))
            records.append(DecisionRecord(small, large, list(options).index(case.truth), about))
    return records


def options_of(answer: DecisionAnswer) -> Mapping[str, float]:
    """All that could be answered, as ``said`` writes it, and how likely it is; nothing for a box."""
    from sgl_engine.decisions import ChoiceAnswer, ScoreAnswer, YesNoAnswer

    if isinstance(answer, YesNoAnswer):
        return {"yes": answer.probability, "no": 1 - answer.probability}
    if isinstance(answer, ChoiceAnswer):
        return answer.probabilities
    if isinstance(answer, ScoreAnswer):
        return {str(level): share for level, share in enumerate(answer.probabilities)}
    return {}


def fit_temperature(distributions: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature under which what is right is likeliest: the least mean negative log-likelihood."""
    widest = max(map(len, distributions))
    shares = np.array([[*each, *[np.nan] * (widest - len(each))] for each in distributions])
    logs = np.where(np.isnan(shares), -np.inf, np.log(np.maximum(shares, _LEAST_SHARE)))
    rows = np.arange(len(logs))

    def loss(temperature: float) -> float:
        scaled = logs / temperature
        of_right = scaled[rows, list(right)] - np.logaddexp.reduce(scaled, axis=1)
        return -float(np.maximum(of_right, math.log(_LEAST)).sum())

    return min(_TEMPERATURES, key=loss)


def fit_curve(distributions: Sequence[Sequence[float]], right: Sequence[int]) -> Isotonic:
    """How often an option of such a probability is right: isotonic regression over all options of all.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    options = [
        (share, float(number == index))
        for each, index in zip(distributions, right, strict=True)
        for number, share in enumerate(each)
    ]
    fitted = fit("isotonic", [{SCORE: share} for share, _ in options], [of for _, of in options])
    assert isinstance(fitted, Isotonic), "as asked"
    return fitted


def log_loss(distributions: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The mean negative natural log of what is right."""
    of = [-math.log(max(shares[index], _LEAST)) for shares, index in zip(distributions, right, strict=True)]
    return math.fsum(of) / len(of)


def curve_is_better(distributions: Sequence[Sequence[float]], right: Sequence[int]) -> bool:
    """Whether a curve has the smaller log loss than a temperature: each half by what fits the other."""
    losses = [0.0, 0.0]
    for start in (0, 1):
        known, known_right = distributions[start::2], right[start::2]
        fresh, fresh_right = distributions[1 - start :: 2], right[1 - start :: 2]
        if not known or not fresh:
            return False
        temperature, curve = fit_temperature(known, known_right), fit_curve(known, known_right)
        ways = ([tempered(each, temperature) for each in fresh], [curved(each, curve) for each in fresh])
        losses = [loss + log_loss(way, fresh_right) for loss, way in zip(losses, ways, strict=True)]
    return losses[1] < losses[0]


def calibrate_type(
    records: Sequence[DecisionRecord], targets: Sequence[float], confidence_level: float
) -> TypeCalibration:
    """Makes probabilities right by every other picture; of each of the rest, certifies on one at most.

    Args:
        records: Of one type of question.
        targets: Shares of all decisions that may be kept although the large model would decide otherwise.
        confidence_level: With which the risk stays within each target.

    Raises:
        ConfigError: scipy or scikit-learn is not installed.
    """
    fitting, certifying = _split(records)
    right = [record.right for record in fitting]
    of_small, of_large = [record.small for record in fitting], [record.large for record in fitting]
    made = TypeCalibration(
        small=fit_temperature(of_small, right),
        large=fit_temperature(of_large, right),
        small_curve=fit_curve(of_small, right) if curve_is_better(of_small, right) else None,
        large_curve=fit_curve(of_large, right) if curve_is_better(of_large, right) else None,
        points=(),
        records=len(fitting),
    )
    thresholds = thresholds_of([max(made.calibrated(shares, "small")) for shares in of_small])
    points = [
        certify(
            [max(made.calibrated(record.small, "small")) for record in certifying],
            [record.harmful for record in certifying],
            thresholds,
            target_risk=target,
            confidence_level=confidence_level,
        )
        for target in sorted(targets)
    ]
    return made.model_copy(update={"points": tuple(points)})


def _split(records: Sequence[DecisionRecord]) -> tuple[list[DecisionRecord], list[DecisionRecord]]:
    """All records of every other picture; of the others as ``one_of_each_picture`` draws."""
    of_picture: dict[str, list[DecisionRecord]] = {}
    for number, record in enumerate(records):
        of_picture.setdefault(record.picture or f"record {number}", []).append(record)
    pictures, draw = list(of_picture.values()), np.random.default_rng(0)
    most, certifying = max(map(len, pictures), default=1), []
    for each in pictures[1::2]:
        drawn, kept = each[draw.integers(len(each))], draw.random() * most < len(each)
        certifying += [drawn] if kept else []
    return [record for each in pictures[::2] for record in each], certifying


def collect_boxes(
    engine: SGLEngine, cases: Iterable[BoxCase], config: DecisionConfig
) -> list[tuple[float, float]]:
    """Asks the small model's map where things are: confidence, and overlap with the right box, of each."""
    plain = config.model_copy(update={"calibration": None, "risk": None, "boxes": "map"})
    found = []
    for case in cases:
        answer = decide(engine, [ImagePart(case.image)], {"q": case.question}, plain).answers["q"]
        if isinstance(answer, BoxAnswer) and case.evidence is not None:
            found.append((answer.confidence, overlap(answer.box, case.evidence)))
    return found


def calibrate_boxes(boxes: Sequence[tuple[float, float]], config: DecisionConfig) -> BoxCalibration:
    """Fits the overlap to expect of a box to its confidence: isotonic regression.

    Args:
        boxes: Confidence and overlap of each.
        config: How they were asked for.

    Raises:
        ConfigError: There are none, or scikit-learn is not installed.
    """
    curve = fit("isotonic", [{SCORE: confidence} for confidence, _ in boxes], [each for _, each in boxes])
    assert isinstance(curve, Isotonic), "as asked"
    return BoxCalibration(curve=curve, put=how_boxed(config), records=len(boxes))


def calibrate_decisions(
    engine: SGLEngine,
    records: Mapping[QuestionType, Sequence[DecisionRecord]],
    config: DecisionConfig,
    *,
    targets: Sequence[float],
    confidence_level: float,
    boxes: Sequence[tuple[float, float]] = (),
) -> DecisionCalibration:
    """Makes the file of all types that have records, and of boxes (``collect_boxes``)."""
    bound = bind(engine.small, engine.large, engine.config)
    return DecisionCalibration(
        small=bound.small,
        large=bound.large,
        put=how_put(config),
        confidence_level=confidence_level,
        types={
            kind: calibrate_type(of_kind, targets, confidence_level)
            for kind, of_kind in records.items()
            if len(of_kind) > 1
        },
        boxes=calibrate_boxes(boxes, config) if boxes else None,
    ).identified()


def _best(shares: Sequence[float]) -> int:
    return max(range(len(shares)), key=shares.__getitem__)
