"""Score + policy -> whether the small answer is kept (SGL, section 3.3, SEE). Pure."""

from __future__ import annotations

from sgl_engine.config import ExitConfig
from sgl_engine.types import Confidence, ExitDecision


def decide_exit(confidence: Confidence, config: ExitConfig) -> ExitDecision:
    """Keeps the small answer when its score reaches the threshold, or as the configuration forces.

    A score that is not a number never exits.
    """
    if config.escalate == "auto":
        return ExitDecision(
            exit=confidence.score >= config.threshold,
            score=confidence.score,
            threshold=config.threshold,
            policy="threshold",
        )
    return ExitDecision(
        exit=config.escalate == "never", score=confidence.score, threshold=config.threshold, policy="forced"
    )
