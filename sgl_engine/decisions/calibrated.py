"""A calibration of decisions: what makes their probabilities mean what they say, as a file of plain numbers.

Probabilities are those of the models with a temperature for each type of question and each model. The exit
has a certified threshold for each type: among all decisions, at most ``target_risk`` are kept by the small
model although the large one would have decided otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from sgl_engine import ConfigError
from sgl_engine.decisions.questions import QuestionType
from sgl_engine.exit import ModelIdentity, OperatingPoint, SealedFile, bind, load_sealed

if TYPE_CHECKING:
    from sgl_engine import SGLEngine
    from sgl_engine.decisions.settings import DecisionConfig


class TypeCalibration(BaseModel):
    """One type of question.

    Attributes:
        small: Temperature of the small model's log-probabilities.
        large: The same of the large model's.
        points: What can be promised of the exit, by target risk.
        records: Decisions that temperatures were fitted on, and as many that the points were tested on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    small: Annotated[float, Field(gt=0.0)]
    large: Annotated[float, Field(gt=0.0)]
    points: tuple[OperatingPoint, ...]
    records: int


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

    def temperature(self, kind: QuestionType, route: Literal["small", "large"]) -> float:
        """Of a type's log-probabilities; 1 for a type that was not calibrated."""
        of_type = self.types.get(kind)
        return 1.0 if of_type is None else float(getattr(of_type, route))

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
            lines.append(f"{kind}: temperature {each.small:.2f} small, {each.large:.2f} large.")
            lines += [f"  {point.summary(self.confidence_level)}" for point in each.points]
        return "\n".join(lines)


def how_put(config: DecisionConfig) -> str:
    """Names how questions are put, as far as probabilities depend on it."""
    form = config.form if isinstance(config.form, str) else type(config.form).__qualname__
    return f"{form}, {config.labels}, {config.permutations}"


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
