"""The file: what it holds, what it refuses, which operating point it gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from calibration_samples import make_calibration, make_record, make_records

from sgl_engine.calibration.build import Promise
from sgl_engine.calibration.records import halves, is_harmful
from sgl_engine.errors import ConfigError
from sgl_engine.exit.calibration_file import load_calibration


@pytest.fixture(scope="module")
def calibration() -> Any:
    return make_calibration(make_records(1500))


def test_a_file_is_read_as_it_was_written(calibration: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.save(path)
    assert load_calibration(path) == calibration
    content = json.loads(path.read_text())
    assert content["schema_version"] == "1"
    assert content["package_version"]
    assert content["samples"] | {"seed": 0} == content["samples"]
    assert content["samples"]["fitting"] + content["samples"]["certifying"] == 1500


def test_the_id_is_of_the_content_and_not_of_the_day(calibration: Any) -> None:
    assert calibration.model_copy(update={"created": "another day"}).identified().id == calibration.id
    assert calibration.model_copy(update={"confidence_level": 0.95}).identified().id != calibration.id
    assert make_calibration(make_records(1500)).id == calibration.id
    assert make_calibration(make_records(1500), Promise(seed=1)).id != calibration.id


def edited(calibration: Any, path: Path, change: Any) -> Path:
    content = calibration.model_dump(mode="json")
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["points"][1].update(threshold=0.1), "was changed after it was made"),
        (lambda content: content.update(schema_version="2"), "schema_version"),
        (lambda content: content.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda content: content["calibrator"].update(y=[0.9] * 3), "calibrator"),
        (lambda content: content.clear(), "not a calibration that this version can read"),
    ],
)
def test_files_that_promise_nothing_are_refused(
    calibration: Any, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_calibration(edited(calibration, tmp_path / "edited.json", change))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json cannot be read .* sgl calibrate"):
        load_calibration(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_calibration(tmp_path)


def test_a_file_that_was_made_anew_is_read_anew(calibration: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration.save(path)
    load_calibration(path)
    other = make_calibration(make_records(1500, seed=5))
    other.save(path)
    assert load_calibration(path).id == other.id != calibration.id


def test_operating_points_are_chosen_by_risk(calibration: Any) -> None:
    assert [point.target_risk for point in calibration.points] == [0.02, 0.05, 0.1]
    assert calibration.point(0.05).target_risk == 0.05
    assert calibration.point(None) == calibration.points[0]
    with pytest.raises(ConfigError, match=r"nothing about a risk of 0.03. .*certified are 0.02, 0.05, 0.1"):
        calibration.point(0.03)


def test_a_risk_without_a_threshold_is_refused_by_name() -> None:
    few = make_calibration(make_records(160, harm=0.0))  # 80 to certify with: 5 % needs 45, 2 % needs 114
    assert [point.threshold is None for point in few.points] == [True, False, False]
    assert few.point(None).target_risk == 0.05
    with pytest.raises(
        ConfigError,
        match=r"you need about 114, each about another picture. Use another risk \(certified are 0.05",
    ):
        few.point(0.02)


def test_nothing_certified_is_a_file_that_no_engine_takes() -> None:
    none = make_calibration(make_records(20))
    assert all(point.threshold is None for point in none.points)
    assert "you need about" in none.describe()
    with pytest.raises(ConfigError, match=r"certifies no threshold.* you need about"):
        none.point(None)


def test_too_few_records_and_one_picture_are_said_to_be() -> None:
    with pytest.raises(ConfigError, match="9 questions were answered"):
        make_calibration(make_records(9))
    with pytest.raises(ConfigError, match="one picture"):
        make_calibration([make_record(number, picture="the same") for number in range(20)])


def test_the_halves_share_no_picture_and_do_not_depend_on_order() -> None:
    records = [make_record(number, picture=f"picture-{number % 40}") for number in range(200)]
    fitting, certifying = halves(records, seed=3)
    assert not {each.picture for each in fitting} & {each.picture for each in certifying}
    assert len(fitting) + len(certifying) == 200
    assert halves(records[::-1], seed=3) == (fitting, certifying)
    assert halves(records, seed=4) != (fitting, certifying)


@pytest.mark.parametrize(
    ("small", "large", "agreed", "expected"),
    [
        (True, True, True, (False, False, False)),
        (False, True, False, (True, True, True)),
        (False, False, True, (False, False, True)),
        (False, False, False, (True, False, True)),
        (True, False, False, (True, False, False)),
    ],
)
def test_what_each_risk_counts(small: bool, large: bool, agreed: bool, expected: tuple[bool, ...]) -> None:
    record = make_record(0, small_right=small, large_right=large, agreed=agreed)
    assert tuple(is_harmful(record, risk) for risk in ("disagreement", "regression", "error")) == expected


def test_agreement_may_be_the_metrics() -> None:
    record = make_record(0, agreed=False, agreed_by_metric=True)
    assert is_harmful(record, "disagreement")
    assert not is_harmful(record, "disagreement", "metric")


def test_risks_that_need_answers_say_so() -> None:
    record = make_record(7, small_right=None, large_right=None)
    assert not is_harmful(record, "disagreement")
    with pytest.raises(ConfigError, match=r"'error' needs known answers; the row row-00007 has none"):
        is_harmful(record, "error")


@pytest.mark.parametrize("promise", [{"targets": (0.0,)}, {"targets": ()}, {"confidence_level": 1.0}])
def test_a_promise_is_between_0_and_1(promise: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Promise(**promise)


def test_the_second_half_has_no_say_in_calibrator_and_thresholds() -> None:
    records = make_records(400)
    fitting, certifying = halves(records, seed=0)
    spoilt = [each.model_copy(update={"agreed": False, "score": 0.999}) for each in certifying]
    first, second = make_calibration(records), make_calibration([*fitting, *spoilt])
    assert first.calibrator == second.calibrator
    assert first.points != second.points
