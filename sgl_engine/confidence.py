"""Log-probabilities -> how sure the small model is (SGL, section 3.3). Pure.

Everything is computed in log space and float64: the product of 500 token probabilities is far below what
float32 can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


def geometric_mean(logprobs: Sequence[float]) -> float:
    """Geometric mean probability of tokens, from the natural logs of their probabilities; in [0, 1]."""
    return math.exp(math.fsum(logprobs) / len(logprobs))


def product(logprobs: Sequence[float]) -> float:
    """Probability of all tokens together, from natural logs; in [0, 1], and 0 only below 1e-323."""
    return math.exp(math.fsum(logprobs))


def measure_confidence(
    answer: Sequence[float],
    entropies: Sequence[float],
    consistency: Sequence[float] | None,
    scorer: str | None = None,
) -> Confidence:
    """Scores an answer.

    Args:
        answer: Natural log-probability of each answer token (T,) as generated, the end-of-sequence one too.
        entropies: Of the distribution that each was chosen from, in nats (T,).
        consistency: The same tokens' log-probabilities when only the most important visual tokens are seen.
            None when the prompt holds no image: then the score is the confidence, whatever the scorer.
        scorer: Name in ``SCORERS``; None is ``DEFAULT_SCORER``.

    Raises:
        ConfigError: There is no such scorer.
    """
    parts = {
        "confidence": geometric_mean(answer),
        "answer_probability": product(answer),
        "min_token_probability": math.exp(min(answer)),
        "mean_entropy": math.fsum(entropies) / len(entropies),
    }
    if consistency is not None:
        parts["consistency_product"] = product(consistency)
        parts["consistency_geometric_mean"] = geometric_mean(consistency)
    return score_parts(parts, scorer)


def score_parts(parts: Mapping[str, float], scorer: str | None = None) -> Confidence:
    """The same parts, scored; as ``measure_confidence`` scores them.

    Raises:
        ConfigError: There is no such scorer.
    """
    score = find_scorer(scorer)
    if "consistency_product" not in parts:
        return Confidence(score=parts["confidence"], parts=parts)
    return Confidence(score=score(parts), parts=parts)
