"""The other promise: at most so many questions go to the large model."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_samples import BINDING, exact_cdf, make_calibration, make_record, make_records
from PIL import Image
from scipy.stats import binom

from benchmarks.coverage import LEVEL, simulate_share
from langchain_sgl import ChatSGL
from sgl_engine import EngineConfig, ExitConfig, ImagePart, Request
from sgl_engine.calibration.build import Promise
from sgl_engine.calibration.certify import certify_share, thresholds_of
from sgl_engine.calibration.drift import check_drift
from sgl_engine.calibration.page import write_page
from sgl_engine.calibration.ways import Ways
from sgl_engine.cli import main
from sgl_engine.config import GenerationConfig
from sgl_engine.decisions import DecisionConfig, YesNoQuestion, decide
from sgl_engine.errors import ConfigError
from sgl_engine.exit import Calibration, Conditions, bind, digest, load_calibration
from sgl_engine.testing import FakeEngine, tiny_vlm

SCORER = "answer_probability"
PROMISE = Promise(targets=(0.05,), shares=(0.3, 0.1))
CALIBRATION: Calibration = make_calibration(make_records(2000), PROMISE)


def slow_share(leaving: list[float], grid: list[float], target: Fraction) -> float | None:
    """Threshold by threshold from the loosest on, in exact arithmetic."""
    passed = None
    for threshold in sorted(grid):
        escalated = sum(probability < threshold for probability in leaving)
        if exact_cdf(escalated, len(leaving), target) > Fraction(1, 10):
            return passed
        passed = threshold
    return passed


@pytest.mark.parametrize("seed", range(6))
def test_the_same_threshold_as_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = np.round(
        rng.random((120, 1 + seed % 3)), 1 + seed % 2
    )  # with ties, with and without rungs
    harmful = rng.random(probabilities.shape) < 0.3
    grid = thresholds_of(np.round(rng.random(60), 2).tolist())
    found = certify_share(probabilities, harmful, grid, target_share=0.3, confidence_level=0.9)
    wanted = slow_share(probabilities[:, 0].tolist(), list(grid), Fraction(3, 10))
    assert found.threshold == wanted
    if wanted is None:
        return
    assert found.escalated == sum(probabilities[:, 0] < wanted)
    ways = [next((way for way, p in enumerate(row) if p >= wanted), None) for row in probabilities]
    assert found.harmed == sum(
        way is not None and bool(harm[way]) for way, harm in zip(ways, harmful, strict=True)
    )


def test_the_share_is_exceeded_no_more_often_than_promised() -> None:
    """300 simulated sets; the control takes the strictest threshold whose observed share is allowed."""
    found = simulate_share(target=0.3, sets=200)
    slack = binom.ppf(0.999, found.sets, 1 - LEVEL)  # what so many sets may show where the truth is 10 %
    assert 0 < found.exceeded <= slack  # not by never asking
    assert found.control_exceeded > 2 * slack
    assert 0.65 < found.exits < 0.75  # nearly all of what is allowed is used


def test_looser_shares_are_stricter_thresholds() -> None:
    few, many = CALIBRATION.share_point(0.1), CALIBRATION.share_point(0.3)
    assert few.threshold is not None
    assert many.threshold is not None
    assert few.threshold < many.threshold
    assert few.escalated_share < 0.1
    assert few.escalated < many.escalated
    assert many.escalated_share < 0.3
    assert few.observed_risk > many.observed_risk
    assert (
        "At most 30.0% of the questions go to the large model, with 90% confidence" in CALIBRATION.describe()
    )


def test_too_few_records_certify_no_share() -> None:
    ones = np.ones((5, 1))
    point = certify_share(ones, ones < 1, [1.0], target_share=0.3, confidence_level=0.9)
    assert point.threshold is None  # 0.7 ** 5 = 0.17
    assert point.summary(0.9).startswith("No threshold can be certified to send at most 30.0%")
    enough = certify_share(
        np.ones((7, 1)), np.zeros((7, 1), bool), [1.0], target_share=0.3, confidence_level=0.9
    )
    assert (enough.threshold, enough.p_value) == (1.0, pytest.approx(0.7**7))


def test_other_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"says nothing about a share of 0\.2.*certified are 0\.1, 0\.3"):
        CALIBRATION.share_point(0.2)
    few = make_calibration(make_records(10), Promise(targets=(0.05,), shares=(0.1,)))
    with pytest.raises(ConfigError, match="No threshold can be certified to send at most 10"):
        few.share_point(0.1)


@pytest.mark.parametrize("share", [0.0, 1.0, 30.0])
def test_no_share_of_its_own_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="is not between 0 and 1"):
        Promise(shares=(share,))


def test_files_without_shares_keep_their_ids(tmp_path: Path) -> None:
    """And a file that has them is noticed when they are edited."""
    plain = make_calibration(make_records(200), Promise(targets=(0.05,)))
    content = plain.model_dump(mode="json", exclude={"id", "shares"})  # as it was before there were any
    hashed = digest(
        json.dumps({name: content[name] for name in content if name != "created"}, sort_keys=True)
    )
    (tmp_path / "old.json").write_text(json.dumps(content | {"id": hashed}), encoding="utf-8")
    assert load_calibration(tmp_path / "old.json").shares == ()
    (tmp_path / "old.json").write_text(json.dumps(content | {"id": plain.id}), encoding="utf-8")
    with pytest.raises(ConfigError, match="was changed"):  # the control: of a file that holds them
        load_calibration(tmp_path / "old.json")
    CALIBRATION.save(tmp_path / "new.json")
    text = (tmp_path / "new.json").read_text(encoding="utf-8")
    (tmp_path / "new.json").write_text(
        text.replace('"target_share": 0.3', '"target_share": 0.2'), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="was changed"):
        load_calibration(tmp_path / "new.json")


def test_more_escalations_than_promised_are_seen() -> None:
    fine = check_drift(CALIBRATION, make_records(4000, seed=1))
    assert fine.holds
    assert [each.records for each in fine.shares] == [4000, 4000]
    assert fine.shares[0].p_few_enough == pytest.approx(binom.cdf(fine.shares[0].escalated, 4000, 0.1))
    # No harm at all, but low scores: the risk holds, the share does not.
    low = [make_record(number, score=number / 800, agreed=True) for number in range(400)]
    check = check_drift(CALIBRATION, low)
    assert all(each.harmed == 0 for each in check.points)
    assert check.verdict == "violated"
    assert "Share 30.0%:" in check.describe()


def test_the_page_says_it(tmp_path: Path) -> None:
    page = write_page(CALIBRATION, make_records(2000), tmp_path).read_text(encoding="utf-8")
    assert "- At most 10.0% of the questions go to the large model" in page


@pytest.fixture(scope="module")
def engine_config(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A calibration of the tiny pair, and what its engines share."""
    models = tiny_vlm(size="small"), tiny_vlm(size="large")
    generation = GenerationConfig(max_new_tokens=8)
    plain = EngineConfig(generation=generation, exit=ExitConfig(scorer=SCORER))
    calibration = make_calibration(
        make_records(2000),
        PROMISE,
        binding=bind(*models, plain),
        conditions=Conditions(generation=generation, min_images=1, max_images=1),
    )
    path = tmp_path_factory.mktemp("shares") / "calibration.json"
    calibration.save(path)

    def build(score: float, **leaving: Any) -> FakeEngine:
        exits = ExitConfig(scorer=SCORER, calibration=path, **leaving)
        config = plain.model_copy(update={"exit": exits})
        return FakeEngine(lambda _: "a", score=score, small=models[0], large=models[1], config=config)

    return build, path


def test_an_engine_runs_at_the_share(engine_config: Any) -> None:
    build, path = engine_config
    ask = Request.ask("what is it?", Image.new("RGB", (64, 64)))
    reports = [build(score, share=0.3).run(ask).report for score in (0.9, 0.1)]
    assert [report.route for report in reports] == ["small", "large"]
    assert reports[0].threshold == load_calibration(path).share_point(0.3).threshold
    assert reports[0].certified_risk is None  # nothing is promised about harm
    assert build(0.9, risk=0.05).run(ask).report.certified_risk == 0.05


def test_decisions_of_such_an_engine_see_whole_pictures(engine_config: Any) -> None:
    """From so many unsure questions on, they are asked without the calibration, and all that is of it."""
    build, _ = engine_config
    picture = ImagePart(Image.new("RGB", (64, 64)))
    questions = {name: YesNoQuestion("Is it?") for name in "abc"}
    found = decide(build(0.1, share=0.3), picture, questions, DecisionConfig(whole_from=1))
    assert {report.route for report in found.reports.values()} == {"large"}


def test_a_share_needs_a_calibration_and_no_risk_beside_it(tmp_path: Path) -> None:
    for fields, problem in (
        ({"share": 0.3}, "share chooses among"),
        ({"share": 0.3, "risk": 0.05, "calibration": tmp_path}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=problem):
            ExitConfig(**fields)


def test_chat_models_and_the_command_line_take_it(engine_config: Any, capsys: Any, tmp_path: Path) -> None:
    build, path = engine_config
    engine = build(0.9)
    chat = ChatSGL(engine=engine, calibration=path, share=0.3)
    assert chat.configured().config.exit.share == 0.3
    picture = tmp_path / "p.png"
    Image.new("RGB", (64, 64)).save(picture)
    for given, problem in (
        (["--share", "0.3"], "--share is given without --calibration"),
        (
            ["--share", "0.3", "--risk", "0.05", "--calibration", str(path)],
            "--risk and --share are both given",
        ),
    ):
        assert main(["ask", str(picture), "what?", *given]) == 2
        assert problem in capsys.readouterr().err


def test_empty_answers_go_to_the_large_model_in_the_promise_as_on_the_road() -> None:
    """A third of the small answers says nothing, and a share of a fifth was once certified on these."""
    records = [
        record if number % 3 else record.model_copy(update={"small_answer": " ", "score": 0.0})
        for number, record in enumerate(make_records(900))
    ]
    escalating = BINDING.model_copy(update={"empty_answers": "escalate"})
    shares = (0.2, 0.4)
    made = make_calibration(records, Promise(targets=(0.05,), shares=shares), binding=escalating)
    with pytest.raises(ConfigError, match=r"No threshold can be certified to send at most 20\.0%"):
        made.share_point(0.2)
    loose = made.share_point(0.4)
    assert loose.threshold is not None
    assert loose.escalated >= 0.25 * loose.records
    ways = Ways.under(made, records)
    empty = np.array([not record.small_answer.strip() for record in records])
    assert (ways.choose(0.0) == 1)[empty].all()  # whatever the threshold
    assert not ways.harmed(0.0)[empty].any()
    # The control: where empty answers are scored, they leave like all others.
    scored = make_calibration(records, Promise(targets=(0.05,), shares=shares))
    assert scored.share_point(0.2).threshold is not None
