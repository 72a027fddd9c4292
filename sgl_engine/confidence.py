"""Measurements -> how sure the small model is, as one score (SGL, section 3.3). Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from sgl_engine.errors import ConfigError
from sgl_engine.types import Confidence

Scorer: TypeAlias = Callable[[Mapping[str, float]], float]
"""Parts of a Confidence, consistency included -> score in [0, 1], higher = surer."""

SCORERS: dict[str, Scorer] = {
    "mean_product": lambda parts: (parts["confidence"] + parts["consistency_product"]) / 2,
    "mean_geometric": lambda parts: (parts["confidence"] + parts["consistency_geometric_mean"]) / 2,
    "confidence": lambda parts: parts["confidence"],
    "answer_probability": lambda parts: parts["answer_probability"],
    "consistency_geometric_mean": lambda parts: parts["consistency_geometric_mean"],
    "consistency_product": lambda parts: parts["consistency_product"],
    "min_token_probability": lambda parts: parts["min_token_probability"],
    "entropy": lambda parts: math.exp(-parts["mean_entropy"]),
}
"""Add a scorer with one line. ``mean_product`` is the paper's equation as its code computes it;
``answer_probability`` suits short answers, and falls with every token of a long one. ``entropy`` is 1 where
every token was certain, and 1 / n where each was a draw among n equal ones."""

DEFAULT_SCORER = "mean_product"


def find_scorer(name: str | None) -> Scorer:
    """Looks a scorer up; None is the default one.

    Raises:
        ConfigError: There is no such scorer.
    """
    try:
        return SCORERS[DEFAULT_SCORER if name is None else name]
    except KeyError:
        raise ConfigError(
            f"There is no scorer {name!r}.", remedy=f"Use one of {', '.join(SCORERS)}, or add it to SCORERS."
        ) from None


def score_parts(parts: Mapping[str, float], scorer: str | None = None) -> Confidence:
    """Turns measurements into one score.

    Args:
        parts: What ``measure_answer`` has measured. Without consistency, as for a prompt without images, the
            score is the confidence, whatever the scorer.
        scorer: Name in ``SCORERS``; None is ``DEFAULT_SCORER``.

    Raises:
        ConfigError: There is no such scorer.
    """
    score = find_scorer(scorer)
    if "consistency_product" not in parts:
        return Confidence(score=parts["confidence"], parts=parts)
    return Confidence(score=score(parts), parts=parts)
