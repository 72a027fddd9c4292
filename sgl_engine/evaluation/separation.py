"""How well a score separates, over all resamples at once: AUROC, and the cascade at a given rate. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgl_engine.evaluation.intervals import LEVEL, Bootstrap, Floats, Interval


class Separation:
    """Rows ordered by one score, the least sure first; those with equal scores are treated alike.

    What its methods return has one number for the rows themselves, then one per resample, so that
    differences between scores are paired.

    Args:
        scores: One per row, higher = surer; NaN is the least sure.
        bootstrap: Resamples of the rows.
    """

    def __init__(self, scores: Sequence[float] | Floats, bootstrap: Bootstrap) -> None:
        self._scores = np.nan_to_num(np.asarray(scores, dtype=float), nan=-np.inf, neginf=-np.inf)
        self._weights: Floats = np.vstack((np.ones((1, bootstrap.rows)), bootstrap.weights))

    def areas(self, target: Sequence[bool] | Floats, where: Sequence[bool] | None = None) -> Floats:
        """AUROC: how often a row that is on target scores above one that is not, ties counting half.

        Args:
            target: Per row.
            where: Rows that count; None is all.

        Returns:
            float64 (1 + draws,); NaN without both kinds of rows.
        """
        groups = _Groups.of(self._scores, where)
        hit = np.asarray(target, dtype=float)
        on, off = groups.sums(self._weights, hit), groups.sums(self._weights, 1.0 - hit)
        above = on * (off.cumsum(axis=1) - 0.5 * off)
        with np.errstate(divide="ignore", invalid="ignore"):
            area: Floats = above.sum(axis=1) / (on.sum(axis=1) * off.sum(axis=1))
        return area

    def accuracies(self, small: Floats, large: Floats, rates: Sequence[float]) -> list[Floats]:
        """Mean value when the least sure rows, a share of them, are answered by the large model.

        Among rows with equal scores it is a draw, so each counts with the share of its group that goes up.

        Args:
            small: Value of the small answers, per row.
            large: Of the large ones.
            rates: Shares in [0, 1].

        Returns:
            float64 (1 + draws,) for each rate.
        """
        return self._accuracies(self._weights, small, large, rates)

    def curve(self, small: Floats, large: Floats, rates: Sequence[float]) -> list[float]:
        """``accuracies`` of the rows themselves, without resamples."""
        return [float(each[0]) for each in self._accuracies(self._weights[:1], small, large, rates)]

    def _accuracies(
        self, weights: Floats, small: Floats, large: Floats, rates: Sequence[float]
    ) -> list[Floats]:
        groups = _Groups.of(self._scores)
        rows, gained = groups.sums(weights), groups.sums(weights, large - small)
        total, kept = rows.sum(axis=1), weights @ small
        found = []
        for rate in rates:
            up = np.clip(rate * total[:, None] - (rows.cumsum(axis=1) - rows), 0.0, rows)
            share = np.divide(up, rows, out=np.zeros_like(up), where=rows > 0)
            found.append((kept + (share * gained).sum(axis=1)) / total)
        return found


@dataclass(frozen=True, eq=False)
class _Groups:
    """Rows of equal score.

    Attributes:
        order: int64, rows from the least sure on.
        starts: int64, where each group begins in it.
    """

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats, where: Sequence[bool] | None = None) -> _Groups:
        order = np.argsort(scores, kind="stable")
        if where is not None:
            order = order[np.asarray(where, dtype=bool)[order]]
        return cls(order, np.unique(scores[order], return_index=True)[1])

    def sums(self, weights: Floats, values: Floats | None = None) -> Floats:
        """Weighted sums of values (rows,), or of ones, in each group: (1 + draws, groups)."""
        ordered = weights[:, self.order] if values is None else weights[:, self.order] * values[self.order]
        if len(self.starts) == len(self.order):
            return ordered
        summed: Floats = np.add.reduceat(ordered, self.starts, axis=1)
        return summed


def interval(numbers: Floats, *, comparisons: int = 1) -> Interval:
    """Of the rows' own number and those of the resamples, (1 + draws,); NaN among the latter is left out.

    Args:
        numbers: As ``Separation`` returns them, or differences of these.
        comparisons: How many intervals are looked at for the best of them (Bonferroni); 1 is a plain one.
    """
    known = numbers[1:][np.isfinite(numbers[1:])]
    if not len(known) or not np.isfinite(numbers[0]):
        return Interval(float(numbers[0]), float("nan"), float("nan"))
    tail = (1 - LEVEL) / 2 / comparisons
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(numbers[0]), float(low), float(high))
