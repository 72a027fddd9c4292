"""The report page: its numbers by hand, its figures drawn, and nothing claimed that was not measured."""

from pathlib import Path

import numpy as np
import pytest
from calibration_samples import BINDING, make_calibration, make_record, make_records
from PIL import Image

from sgl_engine.calibration.build import Promise
from sgl_engine.calibration.figures import bins
from sgl_engine.calibration.outcomes import outcome, outcomes_by_kind, share_interval
from sgl_engine.calibration.page import write_page
from sgl_engine.calibration.ways import Ways

RECORDS = make_records(1500)
CALIBRATION = make_calibration(RECORDS)


def exits_only(probabilities: list[float], harmful: list[bool]) -> Ways:
    return Ways(np.array(probabilities)[:, None], np.array(harmful)[:, None])


def test_what_a_cascade_would_have_done_by_hand() -> None:
    records = [
        make_record(0),
        make_record(1, small_right=False, agreed=False),  # exits, and does harm
        make_record(2, small_right=False, alone_right=False, kind="charts"),
        make_record(3, kind="charts"),
    ]
    ways = exits_only([0.9, 0.8, 0.3, 0.7], [False, True, False, False])
    result = outcome(records, ways, (), threshold=0.7)
    assert (result.questions, result.exits, result.harmed, result.exit_share) == (4, 3, 1, 0.75)
    assert (result.accuracy, result.small_accuracy, result.large_accuracy) == (0.75, 0.5, 0.75)
    assert result.guided_accuracy == 1.0
    assert (result.accuracy_lost, result.lost_by_exits, result.lost_by_pruning) == (0.0, 0.25, -0.25)
    assert (result.tflops, result.large_tflops, result.tflops_saved) == (1 + 4 / 4, 8.0, 1 - 2 / 8)
    assert (result.ms, result.large_ms, result.ms_saved) == (10 + 40 / 4, 50.0, 1 - 20 / 50)
    by_kind = outcomes_by_kind(records, ways, (), 0.7)
    assert {kind: each.exits for kind, each in by_kind.items()} == {"charts": 1, "words": 2}


def test_no_threshold_escalates_everything() -> None:
    assert outcome([make_record(0)], exits_only([1.0], [False]), (), threshold=None).exits == 0


def test_without_answers_or_times_nothing_is_claimed_of_them() -> None:
    records = [make_record(0), make_record(1, small_right=None, alone_right=None, alone_ms=None)]
    result = outcome(records, exits_only([0.9, 0.9], [False, False]), (), threshold=0.8)
    assert (result.accuracy, result.large_accuracy, result.ms_saved, result.accuracy_lost) == (None,) * 4


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(CALIBRATION, RECORDS, tmp_path_factory.mktemp("first"))


def test_the_page_says_what_was_measured(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# Which questions does big need to see?")
    for point in CALIBRATION.points:
        exits = f"{point.exit_share:.0%} of the questions never reach the large model"
        assert f"**At {point.target_risk:.1%} risk, {exits}.**" in text
        low, high = share_interval(point.exits, point.records)
        assert f"| {point.exit_share:.1%} ({low:.1%} to {high:.1%}) |" in text
    assert "| charts |" in text
    assert "| words |" in text
    assert CALIBRATION.id in text
    assert "the large model would have answered differently" in text


def test_figures_are_drawn_and_the_same_each_time(page: Path, tmp_path: Path) -> None:
    write_page(CALIBRATION, RECORDS, tmp_path)
    for name in ("risk.png", "reliability.png", "kinds.png"):
        drawing = np.asarray(Image.open(page.parent / name).convert("L"))
        assert min(drawing.shape) > 200
        assert 0.005 < (drawing < 200).mean() < 0.5  # neither empty nor full
        assert (page.parent / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(("scorer", "saved"), [("confidence", True), ("mean_product", False)])
def test_a_pass_that_nobody_will_run_is_not_counted(scorer: str, saved: bool, tmp_path: Path) -> None:
    """Half of the small model's cost, as it was asked; the page says what users pay."""
    records = [each.model_copy(update={"consistency_tflops": 0.5, "consistency_ms": 5.0}) for each in RECORDS]
    calibration = make_calibration(records, binding=BINDING.model_copy(update={"scorer": scorer}))
    text = write_page(calibration, records, tmp_path).read_text()
    cheaper = [each.model_copy(update={"small_tflops": 0.5, "small_ms": 5.0}) for each in RECORDS]
    plain = make_calibration(RECORDS, binding=calibration.binding)
    (tmp_path / "plain").mkdir()
    expected = write_page(plain, cheaper if saved else RECORDS, tmp_path / "plain").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == [line for line in expected.splitlines() if line.startswith("|")]
    other = write_page(plain, RECORDS if saved else cheaper, tmp_path / "plain").read_text()
    assert table != [line for line in other.splitlines() if line.startswith("|")]  # the control


def test_a_page_on_which_nothing_is_certified(tmp_path: Path) -> None:
    few = make_records(30, seed=3)
    text = write_page(make_calibration(few, Promise(targets=(0.02,))), few, tmp_path).read_text()
    assert (
        "No threshold can be certified for 2.0% risk with 90% confidence and n = 15; you need about" in text
    )
    assert "every question goes to the large model" in text
    assert not (tmp_path / "kinds.png").exists()


def test_a_page_of_small_answers_that_say_nothing(tmp_path: Path) -> None:
    binding = BINDING.model_copy(update={"empty_answers": "escalate"})
    records = [record.model_copy(update={"small_answer": "", "score": 0.0}) for record in make_records(60)]
    text = write_page(make_calibration(records, binding=binding), records, tmp_path).read_text()
    assert "Nothing could be certified, so every question goes to the large model." in text


def test_a_page_without_answers_or_times_says_so(tmp_path: Path) -> None:
    unknown = {"small_right": None, "large_right": None, "alone_right": None, "alone_ms": None}
    records = [each.model_copy(update=unknown) for each in RECORDS]
    text = write_page(CALIBRATION, records, tmp_path).read_text()
    assert "not known / not known / not known / not known" in text
    assert "answered right" not in text


def test_bins_hold_everything_once_and_keep_ties_together() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.random(150), np.full(100, 1.0)])
    right = rng.random(250) < 0.7
    predicted, observed, spread, sizes = bins(values.tolist(), right.tolist())
    assert sizes.sum() == 250
    assert sizes[-1] >= 100
    assert np.average(observed, weights=sizes) == pytest.approx(right.mean())
    assert np.average(predicted, weights=sizes) == pytest.approx(values.mean())
    assert spread.min() >= 0
    assert bins([0.5], [True])[1].tolist() == [1.0]
