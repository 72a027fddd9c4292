"""A calibration of decisions: what makes their probabilities mean what they say, as a file of plain numbers.

Probabilities are those of the models, made right by a temperature or a rising curve (isotonic regression) for
each type of question and each model, whichever has the smaller log loss on questions that it was not fitted
on. The exit has a certified threshold for each type: among all decisions, at most ``target_risk`` are kept by
the small model although the large one would have decided otherwise. The confidence of a box becomes the
overlap to expect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from sgl_engine import ConfigError
from sgl_engine.decisions import shares
from sgl_engine.decisions.questions import QuestionType
from sgl_engine.exit import SCORE, Isotonic, ModelIdentity, OperatingPoint, SealedFile, bind, load_sealed

if TYPE_CHECKING:
    from sgl_engine import SGLEngine
    from sgl_engine.decisions.settings import DecisionConfig


class TypeCalibration(BaseModel):
    """One type of question.

    Attributes:
        small: Temperature of the small model's log-probabilities.
        large: The same of the large model's.
        small_curve: Probability of an option, as the small model has it -> how often such options are right;
            the options' values are divided by their sum. None where the temperature does better.
        large_curve: The same of the large model's.
        points: What can be promised of the exit, by target risk.
        records: Decisions that temperatures were fitted on, and as many that the points were tested on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    small: Annotated[float, Field(gt=0.0)]
    large: Annotated[float, Field(gt=0.0)]
    small_curve: Isotonic | None = None
    large_curve: Isotonic | None = None
    points: tuple[OperatingPoint, ...]
    records: int

    def calibrated(self, probabilities: Sequence[float], route: Literal["small", "large"]) -> list[float]:
        """A model's probabilities of all options of one question, made right; they sum to 1."""
        curve = self.small_curve if route == "small" else self.large_curve
        if curve is not None:
            return curved(probabilities, curve)
        temperature = self.small if route == "small" else self.large
        return list(probabilities) if temperature == 1.0 else shares.tempered(probabilities, temperature)

    def describe(self) -> str:
        """Says how each model's probabilities are made right."""
        by = [
            f"{route} by isotonic regression" if curve else f"{route} by temperature {temperature:.2f}"
            for route, curve, temperature in (
                ("small", self.small_curve, self.small),
                ("large", self.large_curve, self.large),
            )
        ]
        return ", ".join(by)


class BoxCalibration(BaseModel):
    """Boxes of the small model's map.

    Attributes:
        curve: Confidence -> expected intersection over union with the right box.
        put: How boxes were asked for (``how_boxed``).
        records: Boxes that the curve was fitted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    curve: Isotonic
    put: str
    records: int

    def expected(self, confidence: float) -> float:
        """The overlap to expect, in [0, 1]."""
        return float(self.curve.probability({SCORE: confidence}) or 0.0)


def curved(probabilities: Sequence[float], curve: Isotonic) -> list[float]:
    """Each probability by the curve, divided by their sum."""
    values = [max(curve.probability({SCORE: each}) or 0.0, shares.LEAST) for each in probabilities]
    return [each / math.fsum(values) for each in values]


class DecisionCalibration(SealedFile):
    """The whole file.

    Attributes:
        schema_version: Version of this schema.
        kind: Tells it from a calibration of generated answers.
        small: Which small model.
        large: Which large model.
        put: How questions were put: form, labels and orders.
        confidence_level: P(the risk is within its target) is at least this, for each target by itself.
        types: By the type of question.
        boxes: Of boxes; None where they were not calibrated.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    kind_of_file: ClassVar[str] = "a calibration of decisions"
    made_by: ClassVar[str] = "sgl calibrate --task decision --out FILE"

    schema_version: Literal["1"] = "1"
    kind: Literal["decisions"] = "decisions"
    small: ModelIdentity
    large: ModelIdentity
    put: str
    confidence_level: float
    types: dict[QuestionType, TypeCalibration]
    boxes: BoxCalibration | None = None

    def calibrated(
        self, kind: QuestionType, route: Literal["small", "large"], probabilities: Sequence[float]
    ) -> list[float]:
        """Probabilities made right; as they are for a type that was not calibrated."""
        of_type = self.types.get(kind)
        return list(probabilities) if of_type is None else of_type.calibrated(probabilities, route)

    def point(self, kind: QuestionType, risk: float | None) -> OperatingPoint | None:
        """The certified operating point of a type; None where nothing is certified for it.

        Args:
            kind: The type of question.
            risk: One of the target risks; None is the smallest that is certified.
        """
        of_type = self.types.get(kind)
        certified = [each for each in (of_type.points if of_type else ()) if each.threshold is not None]
        suited = [each for each in certified if risk in (None, each.target_risk)]
        return min(suited, key=lambda each: each.target_risk, default=None)

    def describe(self) -> str:
        """Says in lines what temperatures were fitted, and what each operating point promises."""
        lines = []
        for kind, each in self.types.items():
            lines.append(f"{kind}: {each.describe()}.")
            lines += [f"  {point.summary(self.confidence_level)}" for point in each.points]
        if self.boxes is not None:
            low, high = self.boxes.curve.y[0], self.boxes.curve.y[-1]
            lines.append(f"box: expected overlap {low:.2f} to {high:.2f}, of {self.boxes.records} boxes.")
        return "\n".join(lines)


def how_put(config: DecisionConfig) -> str:
    """Names how questions are put, as far as probabilities depend on it."""
    form = config.form if isinstance(config.form, str) else type(config.form).__qualname__
    return f"{form}, {config.labels}, {config.permutations}"


def how_boxed(config: DecisionConfig) -> str:
    """Names how boxes are asked for, as far as their confidence depends on it."""
    form = config.form if isinstance(config.form, str) else type(config.form).__qualname__
    return f"{form}, {config.boxes}, {config.box_share:g}, {config.box_margin:g}"


def calibration_of(engine: SGLEngine, config: DecisionConfig) -> DecisionCalibration | None:
    """Reads a configuration's calibration, and checks that it is of this pair; None without one.

    Raises:
        ConfigError: It cannot be read, or is of another pair, or of questions that were put otherwise.
    """
    if config.calibration is None:
        return None
    calibration = load_sealed(DecisionCalibration, config.calibration)
    bound = bind(engine.small, engine.large, engine.config)
    pairs = ((calibration.small, bound.small), (calibration.large, bound.large))
    others = [there.name for there, here in pairs if there.fingerprint != here.fingerprint]
    if others or calibration.put != how_put(config):
        what = f"the model {others[0]}" if others else f"questions put as {calibration.put!r}"
        raise ConfigError(
            f"The calibration {config.calibration} was made for {what}; this is not so here.",
            remedy="Use the pair and the settings that it was made with, or calibrate again.",
        )
    return calibration
