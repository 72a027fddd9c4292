"""Score + policy -> whether the small answer is kept (SGL, section 3.3, SEE). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sgl_engine.config import ExitConfig
from sgl_engine.request import Request

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Confidence:
    """How sure the small model is.

    Attributes:
        score: In [0, 1], higher = surer; what the exit decision compares with its threshold.
        parts: What it is made of (``sgl_engine.passes.measurements``).
    """

    score: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class ExitDecision:
    """Whether the small answer is kept.

    Attributes:
        exit: True: keep the small answer, the large model is not called.
        score: The small model's score; the calibrated probability where a calibration covers the request.
        threshold: What the score was compared with.
        policy: "threshold"; "forced" when the configuration says never or always, or the request's
            ``may_escalate`` said no; "uncovered" when the calibration says nothing about such a request.
        calibration: Identifier of the calibration that gave the threshold; None for a plain number.
        uncovered: Why the calibration does not cover the request; None where it does, or there is none.
    """

    exit: bool
    score: float
    threshold: float
    policy: Literal["threshold", "forced", "uncovered"]
    calibration: str | None = None
    uncovered: str | None = None

    @property
    def calibrated_probability(self) -> float | None:
        """That keeping the small answer is harmless; None where no calibration says so."""
        return self.score if self.calibration is not None and self.uncovered is None else None


@dataclass(frozen=True)
class CalibratedScore:
    """What a calibration says of a small answer.

    Attributes:
        calibration: Its id.
        threshold: The certified one.
        probability: That keeping the answer is harmless; None where the request is not covered.
        uncovered: Why it is not: it is unlike those that were calibrated on.
    """

    calibration: str
    threshold: float
    probability: float | None
    uncovered: str | None = None


def decide_exit(
    confidence: Confidence, config: ExitConfig, calibrated: CalibratedScore | None = None
) -> ExitDecision:
    """Keeps the small answer when its score reaches the threshold, or as the configuration forces.

    A score that is not a number never exits. Nor does a request that the calibration does not cover: nobody
    promised anything about it.

    Args:
        confidence: The small model's.
        config: What counts without a calibration, and what forces a route.
        calibrated: Takes the place of score and threshold; None is no calibration.
    """
    score, threshold = confidence.score, config.threshold
    if calibrated is not None:
        threshold = calibrated.threshold
        score = score if calibrated.probability is None else calibrated.probability
    decision = ExitDecision(
        exit=score >= threshold,
        score=score,
        threshold=threshold,
        policy="threshold",
        calibration=None if calibrated is None else calibrated.calibration,
        uncovered=None if calibrated is None else calibrated.uncovered,
    )
    if config.escalate != "auto":
        return replace(decision, exit=config.escalate == "never", policy="forced")
    return decision if decision.uncovered is None else replace(decision, exit=False, policy="uncovered")


def permitted(request: Request, decision: ExitDecision) -> ExitDecision:
    """The decision, or a forced exit where the request may not escalate."""
    if decision.exit or request.may_escalate is None or request.may_escalate():
        return decision
    return replace(decision, exit=True, policy="forced")
