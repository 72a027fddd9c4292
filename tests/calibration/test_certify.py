"""The guarantee: against exact fractions, against simulated sets, and at its edges."""

import math
from fractions import Fraction

import numpy as np
import pytest
from calibration_samples import exact_cdf, make_calibration, make_record
from scipy.stats import binom

from benchmarks.coverage import LEVEL, draw, simulate
from sgl_engine.calibration.build import Promise, certify_half, fit_half
from sgl_engine.calibration.certify import (
    binomial_p_values,
    certify,
    records_needed,
    thresholds_of,
)
from sgl_engine.calibration.records import CalibrationRecord, halves, one_of_each_picture
from sgl_engine.exit.calibrators import observe


@pytest.mark.parametrize(("errors", "records", "risk"), [(0, 45, "1/20"), (3, 80, "1/10"), (18, 500, "1/20")])
def test_p_values_are_those_of_exact_arithmetic(errors: int, records: int, risk: str) -> None:
    found = binomial_p_values(errors, records, float(Fraction(risk)))[0]
    assert found == pytest.approx(float(exact_cdf(errors, records, Fraction(risk))), rel=1e-9)


@pytest.mark.parametrize(("target", "most"), [(0.05, 18), (0.02, 5)])
def test_how_many_errors_500_records_may_hold(target: float, most: int) -> None:
    for errors in (most, most + 1):
        harmful = np.arange(500) < errors
        point = certify(np.ones(500), harmful, [1.0], target_risk=target, confidence_level=0.9)
        assert (point.threshold == 1.0) is (errors == most)


def slow_certify(
    probabilities: list[float],
    harmful: list[bool],
    thresholds: list[float],
    target: Fraction,
    delta: Fraction,
) -> float | None:
    """Threshold by threshold, in exact arithmetic."""
    passed = None
    for threshold in thresholds:
        errors = sum(h and p >= threshold for p, h in zip(probabilities, harmful, strict=True))
        if exact_cdf(errors, len(harmful), target) > delta:
            return passed
        passed = threshold
    return passed


@pytest.mark.parametrize("seed", range(6))
def test_the_same_threshold_as_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = np.round(rng.random(120), 1 + seed % 2).tolist()  # with ties
    harmful = (rng.random(120) < 0.4 * (1 - np.array(probabilities))).tolist()
    thresholds = thresholds_of(np.round(rng.random(60), 2).tolist())
    found = certify(probabilities, harmful, thresholds, target_risk=0.1, confidence_level=0.9)
    wanted = slow_certify(probabilities, harmful, list(thresholds), Fraction(1, 10), Fraction(1, 10))
    assert found.threshold == wanted
    limit = math.inf if wanted is None else wanted
    exits = [p >= limit for p in probabilities]
    assert found.exits == sum(exits)
    assert found.harmful_exits == sum(left and harm for left, harm in zip(exits, harmful, strict=True))


@pytest.mark.parametrize("informative", [True, False], ids=["a good score", "a score that knows nothing"])
def test_the_certified_risk_is_exceeded_no_more_often_than_promised(informative: bool) -> None:
    """200 sets (the benchmark has 500); the control takes the threshold whose observed risk is low enough."""
    found = simulate(informative=informative, target=0.05, sets=200)
    assert found.sets == 200
    slack = binom.ppf(0.999, found.sets, 1 - LEVEL)  # what so many may show where the truth is 10 %
    assert 0 < found.exceeded <= slack  # not by never exiting
    assert found.control_exceeded > 2 * slack
    assert found.exits > (0.4 if informative else 0.2)


def test_looser_targets_and_lower_confidence_never_exit_less() -> None:
    scores, harmful = draw(np.random.default_rng(1), informative=True)
    grid = thresholds_of(scores.tolist())
    exits = [
        certify(scores, harmful, grid, target_risk=target, confidence_level=level).exits
        for target, level in [(0.02, 0.95), (0.02, 0.9), (0.05, 0.9), (0.1, 0.9), (0.1, 0.5)]
    ]
    assert exits == sorted(exits)
    assert exits[0] < exits[-1]


def test_ties_exit_together() -> None:
    probabilities, harmful = [0.9] * 300 + [0.5] * 200, [False] * 300 + [True] * 200
    point = certify(probabilities, harmful, [0.9, 0.5], target_risk=0.05, confidence_level=0.9)
    assert (point.threshold, point.exits, point.harmful_exits) == (0.9, 300, 0)
    assert point.p_value == pytest.approx(0.95**500)


@pytest.mark.parametrize(("records", "certified"), [(44, False), (45, True)])
def test_without_errors_the_number_needed_is_known(records: int, certified: bool) -> None:
    # log(0.1) / log(0.95) = 44.9
    point = certify([1.0] * records, [False] * records, [1.0], target_risk=0.05, confidence_level=0.9)
    assert (point.threshold is not None) is certified
    assert point.records_needed == (None if certified else 45)
    assert records_needed(0.05, 0.9) == 45


def test_too_few_records_is_an_answer_that_says_how_many() -> None:
    point = certify([0.9] * 20, [False] * 20, [0.9], target_risk=0.02, confidence_level=0.9)
    assert point.threshold is None
    assert point.exits == 0
    assert point.summary(0.9) == (
        "No threshold can be certified for 2.0% risk with 90% confidence and n = 20; you need about 114, "
        "each about another picture."
    )


def test_errors_among_the_surest_answers_raise_the_number_or_rule_it_out() -> None:
    some = certify([0.9] * 100, [True] * 3 + [False] * 97, [0.9], target_risk=0.05, confidence_level=0.9)
    assert some.threshold is None
    assert some.records_needed is not None
    assert 100 < some.records_needed < 1000
    errors = math.ceil(0.03 * some.records_needed)
    assert binomial_p_values(errors, some.records_needed, 0.05)[0] <= 0.1
    many = certify([0.9] * 100, [True] * 8 + [False] * 92, [0.9], target_risk=0.05, confidence_level=0.9)
    assert many.records_needed is None
    assert "more records would not help" in many.summary(0.9)


def test_nothing_to_test_certifies_nothing() -> None:
    point = certify([], [], [], target_risk=0.05, confidence_level=0.9)
    assert (point.threshold, point.records, point.exit_share) == (None, 0, 0.0)


def test_thresholds_are_attained_values_strictest_first() -> None:
    values = np.random.default_rng(0).random(5000).tolist()
    grid = thresholds_of(values)
    assert len(grid) <= 100
    assert set(grid) <= set(values)
    assert (grid[0], grid[-1]) == (max(values), min(values))
    assert list(grid) == sorted(grid, reverse=True)
    assert thresholds_of([0.5, 0.5, 0.7]) == (0.7, 0.5)


def test_the_observation_is_made_of_score_parts_and_length() -> None:
    assert observe(0.5, {"confidence": 0.7}, 3) == {"score": 0.5, "confidence": 0.7, "answer_tokens": 3.0}


def about_few_pictures(pictures: int, questions: int, seed: int) -> list[CalibrationRecord]:
    """15 % of the pictures are hard: nearly all that is asked about them goes wrong, whatever the score."""
    rng = np.random.default_rng(seed)
    hard = rng.random(pictures) < 0.15
    return [
        make_record(
            picture * questions + number,
            picture=f"picture-{picture}",
            score=float(rng.random()),
            agreed=not (hard[picture] and rng.random() < 0.9),
        )
        for picture in range(pictures)
        for number in range(questions)
    ]


def test_one_question_about_each_picture_is_certified_on() -> None:
    records = about_few_pictures(40, 5, seed=0)
    chosen = one_of_each_picture(records, seed=3)
    assert sorted(record.picture for record in chosen) == sorted({record.picture for record in records})
    assert one_of_each_picture(records[::-1], seed=3) == chosen
    assert one_of_each_picture(records, seed=4) != chosen
    made = make_calibration(records, Promise(targets=(0.5,)))
    assert (made.samples.fitting, made.samples.certifying, made.samples.pictures) == (100, 20, 40)


def test_all_questions_count_alike_where_pictures_have_different_numbers_of_them() -> None:
    """A fifth of the pictures has twenty questions each, and these are the hard ones."""
    records = [
        make_record(100 * picture + number, picture=f"picture-{picture}", kind=kind)
        for picture in range(400)
        for kind, count in [("many", 20) if picture % 5 == 0 else ("one", 1)]
        for number in range(count)
    ]
    share = np.mean([record.kind == "many" for record in records])  # of all questions
    chosen = [one_of_each_picture(records, seed) for seed in range(40)]
    assert all(len({record.picture for record in each}) == len(each) for each in chosen)
    kinds = [record.kind == "many" for each in chosen for record in each]
    assert np.mean(kinds) == pytest.approx(share, abs=0.02)
    # The control: one of each picture, whatever else is asked, would be mostly of the others.
    assert abs(share - 0.2) > 0.5


def test_questions_about_one_picture_do_not_break_the_promise() -> None:
    """Eight to a picture, of which the halves share none; the control counts each of them."""
    target, sets = 0.1, 120
    exceeded = control = 0
    for seed in range(sets):
        fitting, rest = halves(about_few_pictures(100, 8, seed), seed)
        fitted = fit_half(fitting, Promise(targets=(target,)))
        risks = []
        for certifying in (one_of_each_picture(rest, seed), rest):
            [point], _ = certify_half(certifying, fitted, Promise(targets=(target,)))
            leaves = [
                point.threshold is not None and probability >= point.threshold
                for probability in (
                    fitted.calibrator.probability(make_record(0, score=score).observation)
                    for score in np.linspace(0, 1, 101)
                )
            ]
            risks.append(np.mean(leaves) * 0.15 * 0.9)
        exceeded, control = exceeded + (risks[0] > target), control + (risks[1] > target)
    slack = binom.ppf(0.999, sets, 1 - LEVEL)
    assert exceeded <= slack
    assert control > slack
