"""What one score is worth, on every resample: for both targets, within kinds, and in the cascade. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sgl_engine.evaluation.cascade import Measured
from sgl_engine.evaluation.intervals import Bootstrap, Floats
from sgl_engine.evaluation.records import Json, Scored
from sgl_engine.evaluation.separation import Separation, interval

RATES = (0.2, 0.4, 0.6)
"""Shares of the questions that go to the large model."""
CURVE = tuple(step / 20 for step in range(21))
UNPRUNED = "unpruned"
POINT = "35%"
"""How the large model is pruned in the cascade, where that was measured; else as at the first point."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What scores are to tell, per row; float64 (rows,).

    Attributes:
        right: 1 where the small answer is.
        same: 1 where it is the large model's answer, but for case and space.
        small: Value of the small answer.
        large: Of the large model's, unpruned and guided.
        kinds: Of the questions.
    """

    right: Floats
    same: Floats
    small: Floats
    large: Mapping[str, Floats]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Scored]) -> Targets:
        """Of rows in the order of the resamples."""
        points = rows[0].outcome.guided
        point = POINT if POINT in points else next(iter(points), None)
        unpruned, guided = Measured.of(rows, None), Measured.of(rows, point)
        large = {UNPRUNED: unpruned.large}
        if point is not None:
            large[f"guided at {point}"] = guided.large
        return cls(
            right=np.array([row.outcome.small.right for row in rows], dtype=float),
            same=np.array(
                [_plain(row.outcome.small.text) == _plain(row.outcome.large.text) for row in rows],
                dtype=float,
            ),
            small=unpruned.small,
            large=large,
            kinds=tuple(row.row.kind for row in rows),
        )


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


@dataclass(frozen=True, eq=False)
class Worth:
    """What one score is worth: one number for the rows, then one per resample (``Separation``).

    Attributes:
        right: AUROC of "the small answer is right".
        within: The same, mean over kinds of questions that have both: how well it tells apart what is alike.
        same: AUROC of "the large model says the same".
        rates: How the large model runs -> accuracy of the cascade at each of ``RATES``.
        curves: How the large model runs -> accuracy of the rows themselves at each of ``CURVE``.
    """

    right: Floats
    within: Floats
    same: Floats
    rates: Mapping[str, Sequence[Floats]]
    curves: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, scores: Floats, targets: Targets, bootstrap: Bootstrap) -> Worth:
        """Of a score per row, higher = surer."""
        separation = Separation(scores, bootstrap)
        inside = [
            separation.areas(targets.right, where=[each == kind for each in targets.kinds])
            for kind in sorted(set(targets.kinds))
        ]
        known = np.isfinite(inside)
        return cls(
            right=separation.areas(targets.right),
            within=np.where(known, inside, 0.0).sum(axis=0)
            / np.where(known.any(axis=0), known.sum(axis=0), np.nan),
            same=separation.areas(targets.same),
            rates={
                how: separation.accuracies(targets.small, large, RATES)
                for how, large in targets.large.items()
            },
            curves={
                how: separation.curve(targets.small, large, CURVE) for how, large in targets.large.items()
            },
        )

    def json(self, base: Worth) -> Json:
        """All numbers, and their paired distances from another score."""
        return {
            "auroc_right": interval(self.right).json(),
            "auroc_right_minus_default": interval(self.right - base.right).json(),
            "auroc_right_within_kinds": interval(self.within).json(),
            "auroc_same": interval(self.same).json(),
            "auroc_same_minus_default": interval(self.same - base.same).json(),
            "accuracy": {
                how: {
                    f"{rate:.0%}": {
                        "value": interval(ours).json(),
                        "minus_default": interval(ours - theirs).json(),
                    }
                    for rate, ours, theirs in zip(RATES, accuracies, base.rates[how], strict=True)
                }
                for how, accuracies in self.rates.items()
            },
        }
