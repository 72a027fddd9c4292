"""How well a score tells right from wrong answers, and its worth to a cascade, on every resample. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgl_engine.evaluation.intervals import LEVEL, Bootstrap, Floats, Interval
from sgl_engine.evaluation.records import Json, Scored
from sgl_engine.evaluation.threshold_sweep import Measured


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
        """Computes the AUROC: how often a row on target scores above one that is not, ties counting half.

        Args:
            target: Per row.
            where: Rows that count; None is all.

        Returns:
            float64 (1 + draws,); NaN without both kinds of rows.
        """
        groups = _Groups.of(self._scores, where)
        hit = np.asarray(target, dtype=float)
        on, off = groups.sums(self._weights, hit), groups.sums(self._weights, 1.0 - hit)
        # A row on target is above all that is off in groups before, and above half of that in its own.
        above = on * (off.cumsum(axis=1) - 0.5 * off)
        with np.errstate(divide="ignore", invalid="ignore"):
            area: Floats = above.sum(axis=1) / (on.sum(axis=1) * off.sum(axis=1))
        return area

    def accuracies(self, small: Floats, large: Floats, rates: Sequence[float]) -> list[Floats]:
        """Averages values when the least sure rows, a share of them, are answered by the large model.

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
        """Computes ``accuracies`` of the rows themselves, without resamples."""
        return [float(each[0]) for each in self._accuracies(self._weights[:1], small, large, rates)]

    def _accuracies(
        self, weights: Floats, small: Floats, large: Floats, rates: Sequence[float]
    ) -> list[Floats]:
        groups = _Groups.of(self._scores)
        rows, gained = groups.sums(weights), groups.sums(weights, large - small)
        total, kept = rows.sum(axis=1), weights @ small
        found = []
        for rate in rates:
            # Rows of each group that go up: all of it while there is room, then what still fits, then none.
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
        order = np.argsort(scores, kind="stable")  # the least sure first
        if where is not None:
            order = order[np.asarray(where, dtype=bool)[order]]
        return cls(order, np.unique(scores[order], return_index=True)[1])

    def sums(self, weights: Floats, values: Floats | None = None) -> Floats:
        """Sums values (rows,), or ones, in each group, weighted by resample: (1 + draws, groups)."""
        ordered = weights[:, self.order] if values is None else weights[:, self.order] * values[self.order]
        if len(self.starts) == len(self.order):  # no ties: every group is one row
            return ordered
        summed: Floats = np.add.reduceat(ordered, self.starts, axis=1)
        return summed


def interval(numbers: Floats, *, comparisons: int = 1) -> Interval:
    """Makes an interval of the rows' own number and the resamples' (1 + draws,); leaves out NaN among these.

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
        """Reads them off the rows, which stand in the order of the resamples."""
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
        within: AUROC of it within a kind of question, mean over kinds that have right and wrong answers.
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
        """Measures a score, one number per row, higher = surer."""
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
        """Returns all numbers, and their paired distances from another score's."""
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
