"""Score + policy -> whether the small answer is kept (SGL, section 3.3, SEE). Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sgl_engine.config import ExitConfig
from sgl_engine.types import Confidence, ExitDecision


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
