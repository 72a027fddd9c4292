"""Statistics against slow and obvious ones, and against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from sgl_engine.evaluation.intervals import (
    Bootstrap,
    Interval,
    auroc,
    calibration_error,
    reliability,
    share,
)

RNG = np.random.default_rng(0)
VALUES = RNG.random(60)
OTHERS = VALUES - 0.1 + 0.05 * RNG.standard_normal(60)


def test_a_mean_has_scipys_percentile_interval() -> None:
    found = Bootstrap(60, draws=20_000).mean(VALUES)
    theirs = stats.bootstrap((VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert found.value == pytest.approx(VALUES.mean())
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=2e-3)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=2e-3)


def test_weights_are_resamples_of_all_rows_and_repeatable() -> None:
    draws = Bootstrap(60, draws=50, seed=3)
    assert draws.weights.shape == (50, 60)
    assert (draws.weights.sum(axis=1) == 60).all()
    assert (draws.weights == Bootstrap(60, draws=50, seed=3).weights).all()
    assert (draws.weights != Bootstrap(60, draws=50, seed=4).weights).any()


def test_a_difference_is_paired() -> None:
    draws = Bootstrap(60)
    found = draws.difference(VALUES, OTHERS)
    apart = draws.mean(VALUES), Bootstrap(60, seed=1).mean(OTHERS)  # as if the rows were others
    assert found.value == pytest.approx(VALUES.mean() - OTHERS.mean())
    assert found.high - found.low < 0.5 * (apart[0].high - apart[0].low)
    assert found.excludes_zero
    assert not draws.difference(VALUES, VALUES[::-1]).excludes_zero
    assert not draws.difference(VALUES, VALUES).excludes_zero


def test_ratios_and_any_statistic_agree_with_loops() -> None:
    draws = Bootstrap(60, draws=300)
    by_hand = [(weights * VALUES).sum() / (weights * OTHERS).sum() for weights in draws.weights]
    found = draws.ratio(VALUES, OTHERS)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])))
    same = draws.statistic(lambda weights: float(np.average(VALUES, weights=weights)))
    mean = draws.mean(VALUES)
    assert (same.value, same.low, same.high) == pytest.approx((mean.value, mean.low, mean.high))


def test_a_mean_over_some_rows_is_that_of_those_alone() -> None:
    where = VALUES > 0.4
    found = Bootstrap(60).mean(VALUES, where.tolist())
    assert found.value == pytest.approx(VALUES[where].mean())
    alone = Bootstrap(int(where.sum())).mean(VALUES[where])
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.15)


@pytest.mark.parametrize(("value", "ends"), [(1.0, (0.722, 1.0)), (0.0, (0.0, 0.278))])
def test_where_all_are_right_or_wrong_the_interval_is_not_a_point(
    value: float, ends: tuple[float, float]
) -> None:
    found = Bootstrap(10).mean([value] * 10)
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-3)  # Wilson, 10 of 10: a textbook's 72.2 %
    assert Bootstrap(10).ratio([value] * 10, [1.0] * 10).low == value  # what resamples alone would say
    graded = Bootstrap(10).mean([0.7] * 10)
    assert graded.low == pytest.approx(0.7)


def test_intervals_hold_the_truth_as_often_as_they_promise() -> None:
    held, narrow = 0, 0
    for trial in range(300):
        right = np.random.default_rng(trial).random(120) < 0.8
        found = Bootstrap(120, draws=400, seed=trial).mean(right.astype(float))
        half = (found.high - found.low) / 4  # the control: half as wide
        held += found.low <= 0.8 <= found.high
        narrow += abs(found.value - 0.8) <= half
    assert 0.91 <= held / 300 <= 0.98
    assert narrow / 300 < 0.85


def test_auroc_counts_pairs() -> None:
    scores = RNG.integers(0, 5, 40) / 4  # with ties
    right = RNG.random(40) < scores
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[right] for b in scores[~right]]
    assert auroc(scores, right.tolist()) == pytest.approx(np.mean(pairs))
    doubled = np.where(np.arange(40) < 10, 2.0, 1.0)
    again = [*range(40), *range(10)]
    assert auroc(scores, right.tolist(), doubled) == pytest.approx(
        auroc(scores[again], right[again].tolist())
    )
    assert math.isnan(auroc(scores, [True] * 40))
    assert math.isnan(Bootstrap(40).statistic(lambda weights: auroc(scores, [True] * 40, weights)).low)


def test_bins_and_calibration_error_by_hand() -> None:
    bins = reliability([0.05, 0.15, 0.16, 0.999, 1.0], [False, True, False, True, True])
    assert [each.count for each in bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (bins[1].score, bins[1].right) == (pytest.approx(0.155), 0.5)
    assert math.isnan(bins[2].right)
    by_hand = (1 * 0.05 + 2 * abs(0.155 - 0.5) + 2 * abs(0.9995 - 1.0)) / 5
    assert calibration_error(bins) == pytest.approx(by_hand)
    assert math.isnan(calibration_error(reliability([], [])))


def test_intervals_as_text() -> None:
    assert Interval(0.5, 0.25, 0.755).percent() == "50.0 (25.0 to 75.5)"
    assert Interval(-0.01, -0.02, 0.0).percent(sign=True) == "-1.0 (-2.0 to +0.0)"
    assert Interval(math.nan, math.nan, math.nan).percent() == "n/a"
    assert Interval(math.nan, math.nan, 1.0).json() == {"value": None, "low": None, "high": 1.0}
    assert math.isnan(share(0, 0).value)
