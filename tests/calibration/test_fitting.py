"""Calibrators: against slow oracles, as JSON, and where there is nothing to fit."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from sgl_engine.calibration.fitting import Method, fit, logistic_features
from sgl_engine.errors import ConfigError
from sgl_engine.exit.calibrators import SCORE, Feature, Isotonic, Logistic, observe


def draw(count: int, seed: int = 0) -> tuple[list[dict[str, float]], list[bool]]:
    rng = np.random.default_rng(seed)
    scores = rng.beta(4, 1, count)
    good = rng.random(count) < scores**2
    parts = [{"confidence": s, "answer_probability": s**3, "mean_entropy": -2 * math.log(s)} for s in scores]
    values = [observe(s, p, 1 + i % 7) for i, (s, p) in enumerate(zip(scores, parts, strict=True))]
    return values, good.tolist()


def pool_adjacent_violators(labels: list[float]) -> list[float]:
    """Isotonic regression of labels in order: means of blocks, merged while they fall."""
    blocks: list[list[float]] = []
    for label in labels:
        blocks.append([label])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [float(np.mean(block)) for block in blocks for _ in block]


def test_isotonic_is_the_pooled_means_tilted_by_one_observation() -> None:
    values, good = draw(120)
    calibrator = fit("isotonic", values, good)
    order = np.argsort([each[SCORE] for each in values])
    steps = pool_adjacent_violators([float(good[index]) for index in order])
    for rank, (index, step) in enumerate(zip(order, steps, strict=True), start=1):
        expected = (120 * step + rank / 120) / 121
        assert calibrator.probability(values[index]) == pytest.approx(expected, abs=1e-12)


def test_isotonic_keeps_the_order_within_a_step() -> None:
    # One step: without the tilt a threshold could take all of it or none.
    values = [{SCORE: score} for score in (0.2, 0.4, 0.6, 0.8)]
    calibrator = fit("isotonic", values, [True] * 4)
    found = [calibrator.probability(each) for each in values]
    assert found == sorted(set(found))  # type: ignore[type-var]
    assert found[-1] == 1.0


def test_isotonic_is_flat_outside_and_rises_in_between() -> None:
    values, good = draw(2000)
    calibrator = fit("isotonic", values, good)
    assert isinstance(calibrator, Isotonic)
    assert len(calibrator.x) <= 256 + 2 * 200
    grid = [calibrator.probability({SCORE: score}) for score in np.linspace(-0.5, 1.5, 4001)]
    assert grid == sorted(grid)  # type: ignore[type-var]
    assert (grid[0], grid[-1]) == (calibrator.y[0], calibrator.y[-1])


def test_logistic_is_scikit_learns() -> None:
    values, good = draw(400)
    calibrator = fit("logistic", values, good)
    features = logistic_features(values)
    matrix = np.array([[feature.of(each) for feature in features] for each in values], dtype=float)
    standard = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    expected = LogisticRegression(max_iter=1000).fit(standard, good).predict_proba(standard)[:, 1]
    assert [calibrator.probability(each) for each in values] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
def test_a_file_gives_the_same_probabilities_bit_for_bit(method: Method) -> None:
    values, good = draw(300)
    calibrator = fit(method, values, good)
    again = type(calibrator).model_validate_json(calibrator.model_dump_json())
    assert [again.probability(each) for each in values] == [calibrator.probability(each) for each in values]


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
@pytest.mark.parametrize("outcome", [True, False])
def test_one_class_only(method: Method, outcome: bool) -> None:
    values, _ = draw(30)
    probabilities = [fit(method, values, [outcome] * 30).probability(each) for each in values]
    assert all(p is not None and (p > 0.9 if outcome else p < 0.1) for p in probabilities)


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
def test_one_record_and_constant_features(method: Method) -> None:
    same = observe(0.7, {"confidence": 0.7}, 2)
    assert fit(method, [same], [True]).probability(same) == pytest.approx(
        1.0 if method == "isotonic" else 2 / 3
    )
    mixed = fit(method, [same] * 40, [True] * 30 + [False] * 10).probability(same)
    assert mixed == pytest.approx(0.75, abs=0.02)


def test_certain_scores_have_finite_log_odds() -> None:
    logit = Feature(name=SCORE, transform="logit")
    assert logit.of({SCORE: 1.0}) == pytest.approx(math.log(1e6), abs=1e-3)
    assert logit.of({SCORE: 0.0}) == pytest.approx(-math.log(1e6), abs=1e-3)


def test_a_feature_that_is_missing_or_not_a_number_gives_no_probability() -> None:
    values, good = draw(50)
    for calibrator in (fit("isotonic", values, good), fit("logistic", values, good)):
        name = calibrator.features[0].name
        assert calibrator.probability({}) is None
        assert calibrator.probability({**values[0], name: math.nan}) is None
        assert calibrator.probability({**values[0], "a_later_part": 0.5}) is not None


def test_logistic_takes_what_all_observations_have() -> None:
    values, good = draw(50)
    del values[7]["mean_entropy"]  # as without a picture
    calibrator = fit("logistic", values, good)
    assert isinstance(calibrator, Logistic)
    transforms = {feature.name: feature.transform for feature in calibrator.inputs}
    assert transforms == {"answer_probability": "logit", "answer_tokens": "log1p", "confidence": "logit"}


def test_a_record_without_a_score_is_named() -> None:
    values, good = draw(10)
    values[3][SCORE] = math.nan
    with pytest.raises(ConfigError, match="Record 3 has no usable score"):
        fit("isotonic", values, good)
    with pytest.raises(ConfigError, match="no record to fit"):
        fit("logistic", [], [])


@pytest.mark.parametrize(
    "changes",
    [{"x": (0.5, 0.2)}, {"y": (0.6, 0.4)}, {"x": (0.1,)}, {"x": (), "y": ()}, {"y": (0.5, 1.5)}],
)
def test_a_curve_that_falls_is_refused(changes: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValidationError):
        Isotonic(feature=Feature(name=SCORE), **{"x": (0.1, 0.9), "y": (0.2, 0.8)} | changes)  # type: ignore[arg-type]


def test_logistic_needs_a_number_per_input() -> None:
    with pytest.raises(ValidationError, match="one number per input"):
        Logistic(inputs=(), mean=(0.0,), scale=(), coefficients=(), intercept=0.0)


def test_extreme_log_odds_do_not_overflow() -> None:
    steep = Logistic(
        inputs=(Feature(name=SCORE),), mean=(0.0,), scale=(1.0,), coefficients=(1e4,), intercept=0.0
    )
    assert (steep.probability({SCORE: 1.0}), steep.probability({SCORE: -1.0})) == (1.0, 0.0)
