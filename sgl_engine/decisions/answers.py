"""What is answered: one answer and one report for every question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from sgl_engine import RunReport

if TYPE_CHECKING:
    from sgl_engine.prompt import Box


@dataclass(frozen=True)
class YesNoAnswer:
    """An answer to ``YesNoQuestion``.

    Attributes:
        probability: That it is yes, in [0, 1].
        confidence: 1 where that is certain either way, 0 at 0.5 (``concentration``).
    """

    type: ClassVar[Literal["yes_no"]] = "yes_no"
    probability: float
    confidence: float


@dataclass(frozen=True)
class ChoiceAnswer:
    """An answer to ``ChoiceQuestion``.

    Attributes:
        choice: The likeliest label; the first of equals.
        probabilities: Of every label, in the question's order; they sum to 1.
        confidence: How concentrated they are: 1 - entropy / log(labels). Not the choice's probability.
    """

    type: ClassVar[Literal["choice"]] = "choice"
    choice: str
    probabilities: Mapping[str, float]
    confidence: float


@dataclass(frozen=True)
class ScoreAnswer:
    """An answer to ``ScoreQuestion``.

    Attributes:
        score: The expected level, counted from 0.
        probabilities: Of every level; they sum to 1.
        confidence: How concentrated they are: 1 - entropy / log(levels).
    """

    type: ClassVar[Literal["score"]] = "score"
    score: float
    probabilities: Sequence[float]
    confidence: float


@dataclass(frozen=True)
class BoxAnswer:
    """An answer to ``BoxQuestion``.

    Attributes:
        box: (left, top, right, bottom), fractions of the picture's width and height.
        image: Which picture of the prompt, from 0.
        confidence: In [0, 1]. From a map: 1 - area / share of the attention inside, 0 where the box was
            looked at no more than the rest, or, with a calibration that has boxes, the expected intersection
            over union with the right box; generated: the score of the generated coordinates.
    """

    type: ClassVar[Literal["box"]] = "box"
    box: Box
    image: int
    confidence: float


@dataclass(frozen=True)
class RefusedAnswer:
    """No answer, as the question could not be put.

    Attributes:
        reason: Why, for people, with the remedy.
        error: What was raised.
    """

    type: ClassVar[Literal["refusal"]] = "refusal"
    reason: str
    error: Exception


DecisionAnswer: TypeAlias = YesNoAnswer | ChoiceAnswer | ScoreAnswer | BoxAnswer | RefusedAnswer


class DecisionReport(BaseModel):
    """How one answer came about and what it cost, all its runs together; plain JSON by ``model_dump``.

    Attributes:
        route: Whose answer it is.
        escalated: Whether the large model was asked.
        score: The small model's: the probability of its likeliest answer; of a box, its confidence.
        threshold: What that was compared with.
        policy: "threshold", or what else chose the route: "forced" by the configuration or a budget;
            "uncovered", as a calibration of generated answers says nothing about decisions; "map" for a box
            that only the small model's map can tell.
        calibration: Id of the calibration of decisions; None without one.
        certified_risk: Its target risk, where it certifies the exit.
        orders: In how many orders it was asked.
        small_input_tokens: Prompt tokens of the small model, over all orders and runs.
        small_known_tokens: Of those, tokens whose keys and values were known from another question.
        small_output_tokens: Tokens of the answers that it scored or wrote.
        large_input_tokens: The same of the large model.
        large_known_tokens: The same of the large model.
        large_output_tokens: The same of the large model.
        small_tflops: 1e12 operations of the small model.
        large_tflops: 1e12 operations of the large model.
        large_alone_tflops: What the large model alone would have taken for this.
        cost: In the currency of the prices; None without ``EngineConfig.prices``.
        small_best: What the small model would have answered, where the large one was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    route: Literal["small", "large"]
    escalated: bool
    score: float
    threshold: float
    policy: Literal["threshold", "forced", "uncovered", "map"]
    calibration: str | None = None
    certified_risk: float | None = None
    orders: int = 1
    small_input_tokens: int = 0
    small_known_tokens: int = 0
    small_output_tokens: int = 0
    large_input_tokens: int = 0
    large_known_tokens: int = 0
    large_output_tokens: int = 0
    small_tflops: float = 0.0
    large_tflops: float = 0.0
    large_alone_tflops: float = 0.0
    cost: float | None = None
    small_best: str | None = None


_SUMMED = ("input_tokens", "known_tokens", "output_tokens", "tflops")


def totals(runs: Sequence[RunReport]) -> dict[str, float | int | None]:
    """Adds up what the runs of one question cost, as fields of ``DecisionReport``."""
    names = [f"{model}_{name}" for model in ("small", "large") for name in _SUMMED]
    summed = {name: sum(getattr(run, name) or 0 for run in runs) for name in (*names, "large_alone_tflops")}
    costs = [run.cost.total for run in runs if run.cost is not None]
    return {**summed, "cost": sum(costs) if costs else None}


@dataclass(frozen=True)
class Decisions:
    """Answers and reports by the names of the questions, in their order.

    Attributes:
        answers: One for each question; a ``RefusedAnswer`` where it could not be put.
        reports: One for each answered question.
        runs: The report of every run of the pair that these took, in no order.
    """

    answers: Mapping[str, DecisionAnswer]
    reports: Mapping[str, DecisionReport]
    runs: tuple[RunReport, ...] = ()

    @property
    def input_tokens(self) -> int:
        """Prompt tokens of both models over all questions."""
        return sum(each.small_input_tokens + each.large_input_tokens for each in self.reports.values())

    @property
    def known_tokens(self) -> int:
        """Of these, tokens that were known from another question and were not computed again."""
        return sum(each.small_known_tokens + each.large_known_tokens for each in self.reports.values())

    @property
    def output_tokens(self) -> int:
        """Tokens of the answers that were scored or written, by both models."""
        return sum(each.small_output_tokens + each.large_output_tokens for each in self.reports.values())
