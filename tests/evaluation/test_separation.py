"""AUROC and the cascade over all resamples at once, against scikit-learn and plain loops."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sgl_engine.evaluation.intervals import Bootstrap
from sgl_engine.evaluation.separation import Separation, interval

ROWS, DRAWS = 40, 25
RNG = np.random.default_rng(0)
SCORES = RNG.integers(0, 8, ROWS) / 8  # many ties
TARGET = (RNG.random(ROWS) < 0.6).astype(float)
SMALL, LARGE = RNG.random(ROWS), RNG.random(ROWS)
BOOTSTRAP = Bootstrap(ROWS, draws=DRAWS)


def test_areas_equal_scikit_learns_on_every_resample() -> None:
    got = Separation(SCORES, BOOTSTRAP).areas(TARGET)
    assert got.shape == (1 + DRAWS,)
    for number, weights in enumerate([np.ones(ROWS), *BOOTSTRAP.weights]):
        assert got[number] == pytest.approx(roc_auc_score(TARGET, SCORES, sample_weight=weights))
    assert not np.allclose(got[1:], got[0])  # the control: resamples differ


def test_areas_of_some_rows_are_those_of_these_rows_alone() -> None:
    where = (np.arange(ROWS) % 3 == 0).tolist()
    got = Separation(SCORES, BOOTSTRAP).areas(TARGET, where)
    assert got[0] == pytest.approx(roc_auc_score(TARGET[where], SCORES[where]))
    assert got[0] != pytest.approx(roc_auc_score(TARGET, SCORES))


def test_without_both_kinds_there_is_no_area() -> None:
    area = Separation(SCORES, BOOTSTRAP).areas(np.ones(ROWS))
    assert np.isnan(area).all()
    assert math.isnan(interval(area).low)


def slow_accuracy(scores: np.ndarray, weights: np.ndarray, rate: float) -> float:
    """One row after the other goes up; rows with equal scores go up in every order, averaged."""
    budget, value = rate * weights.sum(), 0.0
    for score in sorted(set(scores.tolist())):
        group = scores == score
        size = weights[group].sum()
        share = min(1.0, budget / size) if size else 0.0
        budget = max(0.0, budget - size)
        means = [(weights[group] * each[group]).sum() for each in (LARGE, SMALL)]
        value += share * means[0] + (1 - share) * means[1]
    return float(value / weights.sum())


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_accuracies_equal_rows_going_up_one_by_one(rate: float) -> None:
    separation = Separation(SCORES, BOOTSTRAP)
    [got] = separation.accuracies(SMALL, LARGE, [rate])
    assert separation.curve(SMALL, LARGE, [rate]) == pytest.approx([got[0]])
    for number, weights in enumerate([np.ones(ROWS), *BOOTSTRAP.weights]):
        assert got[number] == pytest.approx(slow_accuracy(SCORES, weights, rate))
    if rate in (0.0, 1.0):
        assert got[0] == pytest.approx((LARGE if rate else SMALL).mean())


def test_a_better_order_gives_a_better_cascade() -> None:
    perfect, worst = (Separation(sign * (SMALL - LARGE), BOOTSTRAP) for sign in (1, -1))
    chance = Separation(np.zeros(ROWS), BOOTSTRAP)
    values = [each.curve(SMALL, LARGE, [0.4])[0] for each in (worst, chance, perfect)]
    assert values == sorted(values)
    assert values[1] == pytest.approx(0.4 * LARGE.mean() + 0.6 * SMALL.mean())


def test_scores_that_are_no_numbers_are_the_least_sure() -> None:
    scores = np.linspace(0, 1, ROWS)
    scores[-1] = math.nan
    [first] = Separation(scores, BOOTSTRAP).curve(SMALL, LARGE, [1 / ROWS])
    assert first == pytest.approx((SMALL[:-1].sum() + LARGE[-1]) / ROWS)


def test_more_comparisons_widen_the_interval() -> None:
    numbers = np.concatenate(([0.5], np.random.default_rng(1).random(2000)))
    plain, many = interval(numbers), interval(numbers, comparisons=10)
    assert (plain.low, plain.high) == pytest.approx((0.025, 0.975), abs=0.02)
    assert many.low < plain.low < plain.high < many.high
    assert plain.value == many.value == 0.5
