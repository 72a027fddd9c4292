"""Measurements -> how sure the small model is, as one score (SGL, section 3.3). Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from sgl_engine.errors import ConfigError
from sgl_engine.exit.decision import Confidence
from sgl_engine.passes.measurements import geometric_mean, product

if TYPE_CHECKING:
    from sgl_engine.passes.scoring import ScoringPassResult

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


ANSWER_SHARE = "answer_share"
"""What reports call the score of ``decision_confidence``."""


def answer_shares(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities normalised to sum to 1, from their natural logs; answers of 1e-400 keep their order."""
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    return tuple(weight / math.fsum(weights) for weight in weights)


def decision_confidence(result: ScoringPassResult) -> Confidence:
    """How sure a model is of what its scores decide, to be compared with the exit threshold.

    The score is the best answer's share among the given ones: max(p, 1 - p) for two. A single answer of
    probability p is weighed against everything else that could be said, so it is max(p, 1 - p) there, too.
    """
    logprobs = result.logprobs
    best = result.token_logprobs[result.best]
    alone = math.exp(logprobs[0])
    score = max(alone, 1 - alone) if len(logprobs) == 1 else max(answer_shares(logprobs))
    return Confidence(
        score=score, parts={"confidence": geometric_mean(best), "answer_probability": product(best)}
    )
