"""Temperatures, thresholds and the file of a calibration of decisions, and what an engine makes of it."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import isotonic_regression

from sgl_engine import ConfigError, ImagePart, SGLEngine
from sgl_engine.calibration import decisions as calibration_decisions
from sgl_engine.calibration.decisions import (
    DecisionRecord,
    _split,
    calibrate_boxes,
    calibrate_decisions,
    calibrate_type,
    collect_boxes,
    collect_decisions,
    curve_is_better,
    fit_curve,
    fit_temperature,
    log_loss,
)
from sgl_engine.decisions import (
    ChoiceQuestion,
    DecisionCalibration,
    DecisionConfig,
    brier,
    decide,
    expected_calibration_error,
    overlap,
    tempered,
)
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.demo.decisions import DEMO_DECISIONS, generated_decisions
from sgl_engine.exit import load_sealed

SCENE = [ImagePart(PICTURES / "scene.png")]
COLOR = ChoiceQuestion("What color is the shape with number 18?", ["red", "orange", "blue"])


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return demo_engine()


def records(count: int, temperature: float, seed: int = 0) -> list[DecisionRecord]:
    """Distributions that are too sharp by that temperature; both models agree where the small one is sure."""
    drawn = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        true = drawn.dirichlet([0.6] * 4)
        shown = tempered(true.tolist(), 1 / temperature)
        right = int(drawn.choice(4, p=true))
        large = [0.01] * 4
        large[int(np.argmax(true)) if max(true) > 0.7 else right] = 0.97
        found.append(DecisionRecord(tuple(shown), tuple(large), right))
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_temperature_is_found_again(temperature: float) -> None:
    made = records(3000, temperature)
    shares, right = [each.small for each in made], [each.right for each in made]
    found = fit_temperature(shares, right)
    assert found == pytest.approx(temperature, rel=0.15)

    def loss(way: float) -> float:
        return log_loss([tempered(each, way) for each in shares[:300]], right[:300])

    best = fit_temperature(shares[:300], right[:300])
    assert loss(best) <= min(loss(best * 2**0.125), loss(best / 2**0.125))  # its neighbours on the grid


def test_calibrated_probabilities_mean_what_they_say() -> None:
    made, fresh = records(1500, 3.0), records(1500, 3.0, seed=1)
    of_type = calibrate_type(made, [0.05], 0.9)

    def error(temperature: float) -> tuple[float, float]:
        shares = [
            tempered(each.small, 1.0) if temperature == 1.0 else of_type.calibrated(each.small, "small")
            for each in fresh
        ]
        right = [share.index(max(share)) == each.right for share, each in zip(shares, fresh, strict=True)]
        tops = [max(share) for share in shares]
        return expected_calibration_error(tops, right), brier(tops, right)

    (ece, score), (plain_ece, plain_score) = error(of_type.small), error(1.0)
    assert ece < 0.5 * plain_ece
    assert score < plain_score


def bent(count: int, seed: int = 0) -> list[DecisionRecord]:
    """Two options whose probabilities are wrong in a way that no temperature mends: sure ones are too sure,
    unsure ones not sure enough."""
    drawn = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shown = float(drawn.uniform(0.5, 1.0))
        true = 0.9 if shown < 0.75 else 0.6
        shares = (shown, 1 - shown)
        found.append(DecisionRecord(shares, (0.99, 0.01), int(drawn.uniform() > true)))
    return found


def test_a_curve_is_the_isotonic_regression_of_scipy() -> None:
    """The oracle, on values without ties; but for what keeps the order, at most 1 / (n + 1)."""
    made = records(60, 2.0)
    options = sorted(
        (share, float(number == each.right)) for each in made for number, share in enumerate(each.small)
    )
    assert len({share for share, _ in options}) == len(options)
    expected = isotonic_regression([of for _, of in options]).x
    curve = fit_curve([each.small for each in made], [each.right for each in made])
    found = [curve.probability({"score": share}) for share, _ in options]
    assert found == pytest.approx(expected, abs=1 / len(options))
    assert [share for share, _ in options] != pytest.approx(expected, abs=0.05)  # the control


def test_whichever_does_better_on_what_it_has_not_seen() -> None:
    for make, is_curved in ((bent, True), (partial(records, temperature=3.0), False)):
        made, fresh = make(1000), make(1000, seed=1)
        right = [each.right for each in made]
        assert curve_is_better([each.small for each in made], right) is is_curved
        of_type = calibrate_type(made, [0.05], 0.9)
        assert (of_type.small_curve is not None) is is_curved
        assert ("small by isotonic regression" in of_type.describe()) is is_curved
        fresh_right = [each.right for each in fresh]
        after = log_loss([of_type.calibrated(each.small, "small") for each in fresh], fresh_right)
        assert after < log_loss([each.small for each in fresh], fresh_right) - 0.01
        shares = of_type.calibrated(fresh[0].small, "small")
        assert sum(shares) == pytest.approx(1)


def test_a_boxs_confidence_becomes_the_overlap_to_expect(engine: SGLEngine, tmp_path: Path) -> None:
    cases = list(generated_decisions("box", 4))
    boxes = collect_boxes(engine, cases, DEMO_DECISIONS)
    found = [decide(engine, [ImagePart(c.image)], {"q": c.question}, DEMO_DECISIONS) for c in cases]
    answers: list[Any] = [made.answers["q"] for made in found]
    expected = [
        (answer.confidence, overlap(answer.box, case.evidence or (0, 0, 1, 1)))
        for answer, case in zip(answers, cases, strict=True)
    ]
    assert boxes == pytest.approx(np.asarray(expected))
    drawn = np.random.default_rng(0)
    many = [(float(c), float(drawn.binomial(10, c / 2)) / 10) for c in drawn.uniform(size=400)]
    made = calibrate_boxes(many, DEMO_DECISIONS)
    for confidence in (0.2, 0.5, 0.8):  # half of the confidence, as they were drawn
        assert made.expected(confidence) == pytest.approx(confidence / 2, abs=0.1)
    path = tmp_path / "decisions.json"
    given: Any = {"choice": records(100, 2.0)}
    calibrate_decisions(engine, given, DEMO_DECISIONS, targets=[0.05], confidence_level=0.9, boxes=many).save(
        path
    )
    config = DEMO_DECISIONS.model_copy(update={"calibration": path})
    asked = [ImagePart(cases[0].image)], {"q": cases[0].question}
    answer: Any = decide(engine, *asked, config).answers["q"]
    assert answer.box == answers[0].box
    assert answer.confidence == pytest.approx(made.expected(answers[0].confidence))
    with pytest.raises(ConfigError, match="boxes asked for as 'bare, map, 0.3, 0.02'"):
        decide(engine, *asked, config.model_copy(update={"box_share": 0.5}))


def test_the_guarantee_holds_on_fresh_decisions() -> None:
    of_type = calibrate_type(records(1500, 2.0), [0.05, 0.001], 0.9)
    strict, loose = of_type.points
    assert (strict.target_risk, loose.target_risk) == (0.001, 0.05)
    assert strict.threshold is None  # the control: too few records for that
    assert loose.threshold is not None
    fresh = records(4000, 2.0, seed=2)
    kept = [max(of_type.calibrated(each.small, "small")) >= loose.threshold for each in fresh]
    harm = sum(keep and each.harmful for keep, each in zip(kept, fresh, strict=True)) / len(fresh)
    assert sum(kept) > 0
    assert harm <= 0.05
    everything = sum(each.harmful for each in fresh) / len(fresh)
    assert everything > 0.05  # the control: keeping all breaks the promise


def test_measures() -> None:
    assert expected_calibration_error([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    assert brier([0.9, 0.1], [True, False]) == pytest.approx(0.01)
    assert overlap((0, 0, 1, 1), (0, 0, 0.5, 1)) == pytest.approx(0.5)
    assert overlap((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1)) == 0


def file(engine: SGLEngine, path: Path, config: DecisionConfig = DEMO_DECISIONS) -> DecisionCalibration:
    given: Any = {"choice": records(1500, 2.0)}
    made = calibrate_decisions(engine, given, config, targets=[0.05], confidence_level=0.9)
    made.save(path)
    return made


def test_an_engine_goes_by_the_file(engine: SGLEngine, tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    made = file(engine, path)
    assert load_sealed(DecisionCalibration, path) == made
    assert made.types["choice"].describe() in made.describe()
    config = DEMO_DECISIONS.model_copy(update={"calibration": path})
    forced = engine.with_config(engine.config.escalating("never"))
    answer: Any = decide(forced, SCENE, {"q": COLOR}, config).answers["q"]
    plain: Any = decide(forced, SCENE, {"q": COLOR}, DEMO_DECISIONS).answers["q"]
    expected = made.calibrated("choice", "small", list(plain.probabilities.values()))
    assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-4)
    report = decide(engine, SCENE, {"q": COLOR}, config).reports["q"]
    point = made.types["choice"].points[0]
    assert (report.calibration, report.threshold) == (made.id, point.threshold)
    assert report.certified_risk == 0.05
    assert report.escalated is not (report.score >= report.threshold)
    other = decide(engine, SCENE, {"q": COLOR}, config.model_copy(update={"risk": 0.2})).reports["q"]
    assert (other.policy, other.route) == ("uncovered", "large")  # nothing is certified for that risk


def test_a_file_of_other_questions_or_an_edited_one_is_refused(engine: SGLEngine, tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    file(engine, path)
    letters = DecisionConfig(form="bare", labels="letters", calibration=path)
    with pytest.raises(ConfigError, match="put as"):
        decide(engine, SCENE, {"q": COLOR}, letters)
    path.write_text(path.read_text().replace('"confidence_level": 0.9', '"confidence_level": 0.8'))
    config = DEMO_DECISIONS.model_copy(update={"calibration": path})
    with pytest.raises(ConfigError, match="changed after it was made"):
        decide(engine, SCENE, {"q": COLOR}, config)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is not a calibration of decisions that this version can read"):
        decide(engine, SCENE, {"q": COLOR}, config)
    missing = config.model_copy(update={"calibration": tmp_path / "none.json"})
    with pytest.raises(ConfigError, match="cannot be read"):
        decide(engine, SCENE, {"q": COLOR}, missing)


def test_records_of_the_bundled_pair(engine: SGLEngine) -> None:
    cases = list(generated_decisions("score", 3))
    made = collect_decisions(engine, cases, DEMO_DECISIONS)
    assert len(made) == 3
    assert all(sum(each.small) == pytest.approx(1) for each in made)
    assert [str(each.right) for each in made] == [case.truth for case in cases]


@pytest.mark.parametrize("refuses", ["never", "always"])
def test_what_either_model_refuses_is_left_out(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    cases = list(generated_decisions("score", 3))
    bad = {"q": cases[1].question}

    def asked(model: SGLEngine, state: Any, questions: Any, config: DecisionConfig) -> Any:
        if model.config.exit.escalate == refuses and questions == bad:
            return SimpleNamespace(answers={"q": None})
        return decide(model, state, questions, config)

    monkeypatch.setattr(calibration_decisions, "decide", asked)
    found = collect_decisions(engine, cases, DEMO_DECISIONS)
    assert len(found) == 2
    assert all(len(each.small) == len(each.large) > 1 for each in found)


@pytest.mark.parametrize("kind", ["yes_no", "choice", "score", "box"])
def test_generated_decisions_are_what_they_say(kind: Any) -> None:
    cases = list(generated_decisions(kind, 4))
    assert [case.question.type for case in cases] == [kind] * 4
    assert all(isinstance(case.image, Image.Image) for case in cases)
    again = list(generated_decisions(kind, 4))
    assert [case.question for case in again] == [case.question for case in cases]
    for case in cases:
        if isinstance(case.question, ChoiceQuestion):
            assert case.truth in case.question.labels
        if kind == "box":
            assert case.evidence is not None
            assert all(0 <= edge <= 1 for edge in case.evidence)


def test_questions_about_one_picture_stay_in_one_half_and_are_certified_on_once() -> None:
    shares = (0.6, 0.4)
    records = [
        DecisionRecord(shares, shares, 0, f"picture {number % 40}") for number in range(200)
    ]  # five to a picture
    fitting, certifying = _split(records)
    assert len(fitting) == 100
    assert len(certifying) == len({record.picture for record in certifying}) == 20
    assert not {record.picture for record in fitting} & {record.picture for record in certifying}
    # Records that name no picture are each of their own, every other one fitted on.
    alone = [DecisionRecord((number / 10, 1 - number / 10), shares, 0) for number in range(10)]
    assert _split(alone) == (alone[::2], alone[1::2])
