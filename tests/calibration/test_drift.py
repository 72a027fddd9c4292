"""Does it still hold? On data that is the same, worse, other, and too little."""

import numpy as np
import pytest
from calibration_samples import make_calibration, make_record, make_records
from scipy.stats import binom, ks_2samp

from sgl_engine.calibration.build import Promise, reference_of
from sgl_engine.calibration.drift import check_drift, scores_shift
from sgl_engine.errors import ConfigError

CALIBRATION = make_calibration(make_records(2000), Promise(targets=(0.05,)))


def test_many_questions_of_the_same_kind_confirm_it() -> None:
    check = check_drift(CALIBRATION, make_records(4000, seed=1))
    assert (check.verdict, check.holds) == ("confirmed", True)
    [point] = check.points
    assert point.records == 4000
    assert point.p_few_enough == pytest.approx(binom.cdf(point.harmed, 4000, 0.05))
    assert point.p_too_many == pytest.approx(1 - binom.cdf(point.harmed - 1, 4000, 0.05))
    assert "certify it by themselves" in check.describe()


def test_few_questions_of_the_same_kind_speak_neither_for_nor_against_it() -> None:
    check = check_drift(CALIBRATION, make_records(30, seed=1))
    assert (check.verdict, check.holds) == ("compatible", True)


def test_more_harm_than_promised_is_seen_at_equal_scores() -> None:
    check = check_drift(CALIBRATION, make_records(800, seed=1, harm=1.0, power=0.5))
    assert (check.verdict, check.holds) == ("violated", False)
    assert check.scores_p > 0.01
    assert "is more frequent than promised" in check.describe()


@pytest.mark.parametrize("harmful", [27, 28])
def test_where_more_than_promised_begins(harmful: int) -> None:
    # P(at least 27 of 400) at 5 % is 0.073, P(at least 28) 0.048.
    records = [make_record(number, score=0.99, agreed=number >= harmful) for number in range(400)]
    check = check_drift(CALIBRATION, records)
    assert check.points[0].harmed == harmful
    assert (check.verdict == "violated") is (harmful == 28)


def test_other_scores_without_proof_that_it_holds_are_a_shift() -> None:
    low = [each.model_copy(update={"score": each.score**4}) for each in make_records(40, seed=1, harm=0.0)]
    check = check_drift(CALIBRATION, low)
    assert (check.verdict, check.holds) == ("shifted", False)
    assert check.scores_p < 1e-4


def test_other_scores_that_certify_it_anew_are_none() -> None:
    low = [each.model_copy(update={"score": each.score**4}) for each in make_records(400, seed=1, harm=0.0)]
    check = check_drift(CALIBRATION, low)
    assert (check.verdict, check.holds) == ("confirmed", True)
    assert check.scores_p < 1e-4


def test_a_calibration_that_holds_is_seldom_accused() -> None:
    checks = [check_drift(CALIBRATION, make_records(300, seed=seed)).verdict for seed in range(2, 102)]
    assert checks.count("violated") <= 5
    assert checks.count("shifted") <= 5


def test_nothing_to_check_is_said_to_be() -> None:
    nothing = make_calibration(make_records(20))
    for calibration, records in [(CALIBRATION, []), (nothing, make_records(20))]:
        with pytest.raises(ConfigError, match="nothing to check"):
            check_drift(calibration, records)


def test_records_without_a_probability_never_exit() -> None:
    blank = [make_record(number, score=float("nan"), agreed=False) for number in range(50)]
    assert check_drift(CALIBRATION, blank).points[0].exits == 0


@pytest.mark.parametrize("ties", [False, True])
def test_the_distance_is_scipys_where_all_scores_are_kept(ties: bool) -> None:
    rng = np.random.default_rng(0)
    old, new = rng.random(300), rng.random(200) ** 1.3
    if ties:
        old, new = np.round(old, 1), np.round(new, 1)
    distance, p_value = scores_shift(reference_of(old.tolist()), new.tolist())
    expected = ks_2samp(old, new, method="asymp")
    assert distance == pytest.approx(expected.statistic)
    assert p_value == pytest.approx(expected.pvalue, rel=0.2)


def test_many_scores_are_thinned_to_within_a_thousandth() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.random(5000), rng.random(700)
    reference = reference_of(old.tolist())
    assert len(reference.scores) == 512
    distance, _ = scores_shift(reference, new.tolist())
    assert distance == pytest.approx(ks_2samp(old, new).statistic, abs=1 / 1000)
