"""Measures how sure a model was of an answer, from log-probabilities (SGL, section 3.3). Pure.

Everything is computed in log space and float64: the product of 500 token probabilities is far below what
float32 can hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def geometric_mean(logprobs: Sequence[float]) -> float:
    """Computes the geometric mean of tokens' probabilities, from their natural logs; in [0, 1]."""
    return math.exp(math.fsum(logprobs) / len(logprobs))


def product(logprobs: Sequence[float]) -> float:
    """Computes the probability of all tokens together, from natural logs; in [0, 1], 0 below 1e-323."""
    return math.exp(math.fsum(logprobs))


def measure_answer(
    answer: Sequence[float], entropies: Sequence[float], consistency: Sequence[float] | None
) -> dict[str, float]:
    """Measures how sure a model was of its answer.

    Args:
        answer: Natural log-probability of each answer token (T,) as generated, the end-of-sequence one too.
        entropies: Entropy of the distribution that each token was chosen from, in nats (T,).
        consistency: The same tokens' log-probabilities when only the most important visual tokens are seen;
            None when the prompt holds no image.

    Returns:
        "confidence", "answer_probability" and "min_token_probability", in [0, 1], and "mean_entropy", in
        nats; with consistency also "consistency_product" and "consistency_geometric_mean", in [0, 1].
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
    return parts
