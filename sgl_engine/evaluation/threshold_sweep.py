"""The cascade at any threshold, composed from what was measured: no model runs again. Pure.

A question whose score reaches the threshold is answered by the small model; the others cost the small pass
and the large model's guided pass, and are answered by the latter: as ``SGLEngine.run`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sgl_engine.evaluation.intervals import Floats
from sgl_engine.evaluation.records import BenchAnswer, BenchOutcome, Scored

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999)
NEVER = 1.01
"""A threshold that no score reaches: the large model answers everything."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """One threshold, row by row; float64 (rows,).

    Attributes:
        threshold: The small answer is kept from this score on.
        escalated: 1 where the large model answered.
        value: Of the answer that was given.
        tflops: Of both models.
        ms: Of both models.
    """

    threshold: float
    escalated: Floats
    value: Floats
    tflops: Floats
    ms: Floats


@dataclass(frozen=True, eq=False)
class Measured:
    """What cascades are composed of; float64 (rows,).

    Attributes:
        score: The small model's.
        small: Value of its answers.
        small_tflops: Of its pass with map and score.
        small_ms: Milliseconds of that pass.
        large: Value of the large model's guided answers.
        large_tflops: Of its pass.
        large_ms: Milliseconds of its pass.
    """

    score: Floats
    small: Floats
    small_tflops: Floats
    small_ms: Floats
    large: Floats
    large_tflops: Floats
    large_ms: Floats

    @classmethod
    def of(cls, rows: Sequence[Scored], point: str | None) -> Measured:
        """Reads them off the rows, at an operating point; None is the large model unpruned."""

        def large(outcome: BenchOutcome) -> BenchAnswer:
            return outcome.large if point is None else outcome.guided[point]

        return cls(
            score=column(rows, lambda outcome: outcome.score),
            small=column(rows, lambda outcome: outcome.small.value),
            small_tflops=column(rows, lambda outcome: outcome.small_pass_tflops),
            small_ms=column(rows, lambda outcome: outcome.small_pass_ms),
            large=column(rows, lambda outcome: large(outcome).value),
            large_tflops=column(rows, lambda outcome: large(outcome).tflops),
            large_ms=column(rows, lambda outcome: large(outcome).ms or 0.0),
        )

    def at(self, threshold: float) -> Cascade:
        """Composes the cascade that keeps the small answer from ``threshold`` on."""
        up = ~(self.score >= threshold)  # a score that is not a number never exits
        return Cascade(
            threshold=threshold,
            escalated=up.astype(float),
            value=np.where(up, self.large, self.small),
            tflops=self.small_tflops + np.where(up, self.large_tflops, 0.0),
            ms=self.small_ms + np.where(up, self.large_ms, 0.0),
        )

    def escalating(self, share: float) -> Cascade:
        """Composes the cascade that sends this share of the rows, or a little less, to the large model."""
        ordered = np.sort(np.nan_to_num(self.score, nan=-1.0))
        count = int(share * len(ordered))
        return self.at(NEVER if count >= len(ordered) else float(ordered[count]))


def column(rows: Sequence[Scored], of: Callable[[BenchOutcome], float]) -> Floats:
    """Collects one number per row, float64 (rows,)."""
    return np.array([of(row.outcome) for row in rows], dtype=float)
