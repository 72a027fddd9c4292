"""How well a score separates, over all resamples at once: AUROC, and the cascade at a given rate. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
        values = np.nan_to_num(np.asarray(scores, dtype=float), nan=-np.inf, neginf=-np.inf)
        self._order = np.argsort(values, kind="stable")
        _, self._starts = np.unique(values[self._order], return_index=True)
        everyone = np.vstack((np.ones((1, bootstrap.rows)), bootstrap.weights))
        self._weights: Floats = everyone[:, self._order]

    def areas(self, target: Sequence[bool] | Floats, where: Sequence[bool] | None = None) -> Floats:
        """AUROC: how often a row that is on target scores above one that is not, ties counting half.

        Args:
            target: Per row.
            where: Rows that count; None is all.

        Returns:
            float64 (1 + draws,); NaN without both kinds of rows.
        """
        counted = np.ones(len(self._order)) if where is None else np.asarray(where, dtype=float)
        hit = np.asarray(target, dtype=float)
        on, off = self._grouped(counted * hit), self._grouped(counted * (1.0 - hit))
        above = on * (off.cumsum(axis=1) - 0.5 * off)
        with np.errstate(divide="ignore", invalid="ignore"):
            area: Floats = above.sum(axis=1) / (on.sum(axis=1) * off.sum(axis=1))
        return area

    def accuracies(self, small: Floats, large: Floats, rate: float) -> Floats:
        """Mean value when the least sure rows, this share of them, are answered by the large model.

        Among rows with equal scores it is a draw, so each counts with the share of its group that goes up.

        Args:
            small: Value of the small answers, per row.
            large: Of the large ones.
            rate: In [0, 1].

        Returns:
            float64 (1 + draws,).
        """
        rows = self._grouped(np.ones(len(self._order)))
        kept, raised = self._grouped(np.asarray(small)), self._grouped(np.asarray(large))
        total = rows.sum(axis=1, keepdims=True)
        up = np.clip(rate * total - (rows.cumsum(axis=1) - rows), 0.0, rows)
        share = np.divide(up, rows, out=np.zeros_like(up), where=rows > 0)
        value: Floats = (share * raised + (1.0 - share) * kept).sum(axis=1) / total[:, 0]
        return value

    def _grouped(self, values: Floats) -> Floats:
        """Weighted sums over rows of equal score, (1 + draws, groups)."""
        sums: Floats = np.add.reduceat(self._weights * values[self._order], self._starts, axis=1)
        return sums


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
