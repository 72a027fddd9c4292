"""Calibrates decisions: fits a temperature for each model, and certifies when the small one may decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sgl_engine import ImagePart
from sgl_engine.calibration.certify import certify, thresholds_of
from sgl_engine.decisions import (
    DecisionCalibration,
    DecisionConfig,
    QuestionType,
    TypeCalibration,
    decide,
    how_put,
    tempered,
)
from sgl_engine.exit import bind

if TYPE_CHECKING:
    from PIL import Image

    from sgl_engine import SGLEngine
    from sgl_engine.decisions import DecisionAnswer, DecisionQuestion

_LEAST = 1e-9
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


@dataclass(frozen=True)
class DecisionRecord:
    """What both models made of one question, without any temperature.

    Attributes:
        small: The small model's probabilities of all options.
        large: The large model's.
        right: Index of the right option.
    """

    small: tuple[float, ...]
    large: tuple[float, ...]
    right: int

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
        if case.truth in options:
            small, large = (tuple(options_of(answer).values()) for answer in found)
            records.append(DecisionRecord(small, large, list(options).index(case.truth)))
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

    def loss(temperature: float) -> float:
        return math.fsum(
            -math.log(max(tempered(shares, temperature)[index], _LEAST))
            for shares, index in zip(distributions, right, strict=True)
        )

    return min(_TEMPERATURES, key=loss)


def calibrate_type(
    records: Sequence[DecisionRecord], targets: Sequence[float], confidence_level: float
) -> TypeCalibration:
    """Fits temperatures on every other record, and certifies thresholds on the rest.

    Args:
        records: Of one type of question.
        targets: Shares of all decisions that may be kept although the large model would decide otherwise.
        confidence_level: With which the risk stays within each target.

    Raises:
        ConfigError: scipy is not installed.
    """
    fitting, certifying = records[::2], records[1::2]
    right = [record.right for record in fitting]
    small = fit_temperature([record.small for record in fitting], right)
    large = fit_temperature([record.large for record in fitting], right)
    thresholds = thresholds_of([max(tempered(record.small, small)) for record in fitting])
    points = [
        certify(
            [max(tempered(record.small, small)) for record in certifying],
            [record.harmful for record in certifying],
            thresholds,
            target_risk=target,
            confidence_level=confidence_level,
        )
        for target in sorted(targets)
    ]
    return TypeCalibration(small=small, large=large, points=tuple(points), records=len(fitting))


def calibrate_decisions(
    engine: SGLEngine,
    records: Mapping[QuestionType, Sequence[DecisionRecord]],
    config: DecisionConfig,
    *,
    targets: Sequence[float],
    confidence_level: float,
) -> DecisionCalibration:
    """Makes the file of all types that have records."""
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
    ).identified()


def _best(shares: Sequence[float]) -> int:
    return max(range(len(shares)), key=shares.__getitem__)
