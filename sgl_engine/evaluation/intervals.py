"""How much of a number is chance: percentile bootstrap over rows, AUROC, calibration. Pure.

All systems see the same rows, so one set of resamples serves them all, and differences between systems are
paired by construction (Efron and Tibshirani, 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sgl_engine.evaluation.optional import extra

Floats: TypeAlias = npt.NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A number, and where it lies with 95 % confidence; NaN where rows cannot tell.

    Attributes:
        value: Of the rows themselves.
        low: 2.5 % quantile of the resamples.
        high: 97.5 % quantile.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is beyond chance."""
        return self.low > 0.0 or self.high < 0.0

    def percent(self, *, sign: bool = False) -> str:
        """Writes it in percent, as "93.1 (90.2 to 95.2)"; "n/a" where there is nothing to tell."""
        if math.isnan(self.value):
            return "n/a"
        form = "{:+.1f} ({:+.1f} to {:+.1f})" if sign else "{:.1f} ({:.1f} to {:.1f})"
        return form.format(*(100 * number for number in (self.value, self.low, self.high)))

    def plain(self, digits: int = 3) -> str:
        """Writes it as "0.931 (0.902 to 0.952)"; "n/a" where there is nothing to tell."""
        if math.isnan(self.value):
            return "n/a"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"

    def json(self) -> dict[str, float | None]:
        """Returns what JSON can say: None stands for what is not a number."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(number) else number for name, number in found.items()}


class Bootstrap:
    """Resamples of the same rows for every statistic.

    Args:
        rows: How many there are.
        draws: Resamples.
        seed: Makes them repeatable.
    """

    def __init__(self, rows: int, *, draws: int = 2000, seed: int = 0) -> None:
        self.rows = rows
        self.draws = draws
        self.seed = seed

    @cached_property
    def weights(self) -> Floats:
        """How often each row is drawn, float64 (draws, rows); each resample has as many rows as there are."""
        rng = np.random.default_rng(self.seed)
        if self.rows == 0:
            return np.zeros((self.draws, 0))
        return rng.multinomial(self.rows, np.full(self.rows, 1 / self.rows), size=self.draws).astype(float)

    def mean(self, values: Sequence[float] | Floats, where: Sequence[bool] | None = None) -> Interval:
        """Averages one value per row, over the rows where ``where`` is true, if it is given.

        Where all are 0, or all are 1, resamples are all alike; the interval is Wilson's instead.
        """
        chosen = np.ones(self.rows, dtype=bool) if where is None else np.asarray(where, dtype=bool)
        of_all = np.asarray(values, dtype=float)
        hits, count = float(of_all[chosen].sum()), int(chosen.sum())
        if count and hits in {0.0, float(count)} and np.isin(of_all[chosen], (0.0, 1.0)).all():
            return share(int(hits), count)  # no resample can differ, but certain it is not
        return self.ratio(np.where(chosen, of_all, 0.0), chosen)

    def difference(self, values: Sequence[float] | Floats, others: Sequence[float] | Floats) -> Interval:
        """Subtracts the mean of ``others`` from that of ``values``, paired row by row."""
        return self.ratio(
            np.asarray(values, dtype=float) - np.asarray(others, dtype=float), np.ones(self.rows)
        )

    def ratio(self, values: Sequence[float] | Floats, others: Sequence[float] | Floats) -> Interval:
        """Divides the sum of ``values`` by that of ``others``, over the same rows."""
        above, below = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(above.sum(), below.sum()))
            return _interval(value, (self.weights @ above) / (self.weights @ below))

    def statistic(self, of: Callable[[Floats], float]) -> Interval:
        """Evaluates a function of the rows' weights, float64 (rows,), leaving out resamples that give NaN."""
        return _interval(of(np.ones(self.rows)), np.array([of(weights) for weights in self.weights]))


def share(hits: int, count: int) -> Interval:
    """Divides hits by count, with Wilson's interval (1927), which holds for few and extreme shares too."""
    if not count:
        return Interval(math.nan, math.nan, math.nan)
    found = extra("scipy.stats").binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Interval(hits / count, float(found.low), float(found.high))


def quantiles(resampled: Floats) -> Interval:
    """Makes an interval of a number and the same number of resamples, float64 (1 + draws,), itself first."""
    return _interval(float(resampled[0]), resampled[1:])


def _interval(value: float, resampled: Floats) -> Interval:
    known = resampled[np.isfinite(resampled)]
    if not len(known) or math.isnan(value):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def auroc(scores: Sequence[float] | Floats, right: Sequence[bool], weights: Floats | None = None) -> float:
    """Estimates how often a right answer scores above a wrong one, ties counting half; NaN without both."""
    labels = np.asarray(right, dtype=bool)
    counted = np.ones(len(labels)) if weights is None else weights
    if not counted[labels].sum() or not counted[~labels].sum():
        return math.nan
    metrics = extra("sklearn.metrics")
    return float(metrics.roc_auc_score(labels, np.asarray(scores), sample_weight=counted))


@dataclass(frozen=True)
class Bin:
    """Answers with similar scores.

    Attributes:
        low: Lower end of the scores, included.
        high: Upper end; included in the last bin.
        count: Answers.
        score: Their mean score; NaN where there are none.
        right: Share of them that is right; NaN where there are none.
    """

    low: float
    high: float
    count: int
    score: float
    right: float


def reliability(scores: Sequence[float] | Floats, right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Sorts answers by score into bins of equal width over [0, 1] (Guo et al., 2017, section 2)."""
    values, labels = np.asarray(scores, dtype=float), np.asarray(right, dtype=float)
    place = np.clip((values * bins).astype(int), 0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        means = (values[inside].mean(), labels[inside].mean()) if count else (math.nan, math.nan)
        found.append(Bin(number / bins, (number + 1) / bins, count, float(means[0]), float(means[1])))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Computes the ECE: distance of score and share right, weighted by a bin's answers; NaN without any."""
    total = sum(each.count for each in bins)
    if not total:
        return math.nan
    return sum(each.count * abs(each.score - each.right) for each in bins if each.count) / total
