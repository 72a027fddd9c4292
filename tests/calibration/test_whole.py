"""A calibration that also chooses what the large model is shown: certified, chosen, collected, refused."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibration_samples import make_calibration, make_record
from langchain_core.messages import HumanMessage
from PIL import Image
from scipy.stats import binom

from benchmarks.coverage import LEVEL, simulate_whole
from langchain_sgl import ChatSGL, image_block
from sgl_engine import EngineConfig, ExitConfig, PruningConfig, Request, SGLEngine
from sgl_engine.attention import ImportanceMap
from sgl_engine.calibration.build import Promise
from sgl_engine.calibration.certify import certify, thresholds_of
from sgl_engine.calibration.collection import Collector
from sgl_engine.calibration.drift import check_drift
from sgl_engine.calibration.page import write_page
from sgl_engine.calibration.records import CalibrationRecord, RungOutcome, is_harmful_rung, read_records
from sgl_engine.calibration.ways import LADDER, Ways
from sgl_engine.cli import main
from sgl_engine.config import GenerationConfig, pruning_preset
from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.dataset import JsonLines
from sgl_engine.exit import Calibration, Conditions, bind, load_calibration
from sgl_engine.prompt.encoded import VisualSpan
from sgl_engine.testing import FakeEngine, tiny_vlm

PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
ASK = Request.ask("what is it?", PICTURE)
GENERATION = GenerationConfig(max_new_tokens=4)
RUNGS = {"10%": PruningConfig(layer_fraction=0.0, keep_ratio=0.1), "50%": PruningConfig(keep_ratio=0.5)}


def rung(agreed: bool = True, **changes: Any) -> RungOutcome:
    fields = {"answer": "yes", "agreed": agreed, "agreed_by_metric": agreed, "right": agreed}
    return RungOutcome(**fields | {"tflops": 2.0, "ms": 20.0} | changes)


def records(count: int, seed: int = 0) -> list[CalibrationRecord]:
    """Exits do harm where scores are low, rungs where the map is flat; the cheaper one more often."""
    rng = np.random.default_rng(seed)
    scores, focus, luck = rng.random(count), rng.random(count), rng.random((count, 3))
    harm = luck < np.stack([0.3 * (1 - scores), 0.3 * (1 - focus), 0.1 * (1 - focus)], axis=1)
    return [
        make_record(
            number,
            score=float(score),
            parts={"answer_probability": float(score)},
            seen={"map_top_share": float(top), "visual_tokens": 16.0},
            agreed=not harmed[0],
            small_right=not harmed[0],
            rungs={name: rung(not bad) for name, bad in zip(RUNGS, harmed[1:], strict=True)},
        )
        for number, (score, top, harmed) in enumerate(zip(scores, focus, harm.tolist(), strict=True))
    ]


@cache
def calibration() -> Calibration:
    promise = Promise(targets=(0.02, 0.05), method="logistic")
    found: Calibration = make_calibration(records(3000), promise, rungs=RUNGS)
    return found


def slow_certify(
    probabilities: list[list[float]], harm: list[list[bool]], grid: tuple[float, ...], target: Fraction
) -> tuple[float | None, list[int], int]:
    """Question by question, way by way, in exact arithmetic: threshold, how often each way, errors."""
    best: tuple[float | None, list[int], int] = (None, [], 0)
    for threshold in grid:
        taken, errors = [0] * len(probabilities[0]), 0
        for chances, harmed in zip(probabilities, harm, strict=True):
            for way, chance in enumerate(chances):
                if chance >= threshold:
                    taken[way] += 1
                    errors += harmed[way]
                    break
        n = len(harm)
        passed = sum(
            (math.comb(n, k) * target**k * (1 - target) ** (n - k) for k in range(errors + 1)), Fraction(0)
        )
        if passed > Fraction(1, 10):
            return best
        best = (threshold, taken, errors)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_question_by_question(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = np.round(rng.random((120, 3)), 1 + seed % 2)  # with ties
    harm = rng.random((120, 3)) < 0.3 * (1 - probabilities)
    grid = thresholds_of(np.round(rng.random(60), 2).tolist())
    found = certify(probabilities, harm, grid, target_risk=0.1, confidence_level=0.9)
    threshold, taken, errors = slow_certify(probabilities.tolist(), harm.tolist(), grid, Fraction(1, 10))
    assert found.threshold == threshold
    assert [found.exits, *found.rungs] == taken
    assert found.harmful_exits + found.harmful_rungs == errors
    assert Ways(probabilities, harm).harmed(threshold).sum() == errors


def test_the_certified_risk_of_all_that_is_done_is_exceeded_no_more_often_than_promised() -> None:
    """The control takes the threshold whose observed risk is within the target."""
    found = simulate_whole(target=0.05, sets=200)
    slack = binom.ppf(0.999, found.sets, 1 - LEVEL)
    assert 0 < found.exceeded <= slack
    assert found.control_exceeded > 2 * slack


def test_exits_alone_being_certified_says_nothing_of_what_pruning_does() -> None:
    """The control: the threshold of a calibration of exits, with the cheapest rung for all that is left."""
    made, fresh = calibration(), records(1500, seed=5)
    ways = Ways.under(made, fresh)
    threshold = made.point(0.05).threshold
    assert ways.harmed(threshold).mean() <= 0.05
    blind = Ways(np.where([False, True, True], 1.0, ways.probabilities), ways.harmful)
    assert blind.harmed(threshold).mean() > 0.1


def test_looser_targets_exit_more_and_show_less() -> None:
    made = calibration()
    strict, loose = made.points
    assert strict.threshold is not None
    assert loose.exits > strict.exits
    whole = [point.records - point.exits - sum(point.rungs) for point in made.points]
    assert 0 < whole[1] < whole[0]
    assert sum(loose.rungs) > 0
    assert "The large model sees: 10% " in made.describe()
    assert "shown everything, would have given" in made.describe()


def test_new_questions_are_checked_way_by_way() -> None:
    made = calibration()
    assert check_drift(made, records(2500, seed=1)).verdict == "confirmed"
    worse = [
        each.model_copy(update={"rungs": {name: rung(agreed=False) for name in each.rungs}})
        for each in records(800, seed=2)
    ]
    assert check_drift(made, worse).verdict == "violated"  # although its exits are as good as ever


def test_the_page_says_what_the_large_model_sees(tmp_path: Path) -> None:
    text = write_page(calibration(), records(3000), tmp_path).read_text()
    assert "large model sees 10%, 50% / everything" in text
    assert "all that the cascade does, against the large model that is shown everything" in text
    assert "fewer visual tokens" not in text  # the loss is not split into exits and pruning


def test_what_harm_at_a_rung_is() -> None:
    record = make_record(0, rungs={"10%": rung(agreed=False), "50%": rung(agreed=True, right=None)})
    assert is_harmful_rung(record, "10%", "disagreement")
    assert not is_harmful_rung(record, "50%", "disagreement")
    assert is_harmful_rung(record, "10%", "regression")
    wrong = record.model_copy(update={"large_right": False})
    assert not is_harmful_rung(wrong, "10%", "regression")
    assert is_harmful_rung(wrong, "10%", "error")
    with pytest.raises(ConfigError, match="needs known answers"):
        is_harmful_rung(record, "50%", "regression")
    with pytest.raises(ConfigError, match="was not asked at 20%; it was at 10%, 50%"):
        is_harmful_rung(record, "20%", "disagreement")


def settings(path: Path | None, **changes: Any) -> EngineConfig:
    exits = ExitConfig(scorer="answer_probability", calibration=path, risk=None if path is None else 0.05)
    whole = {"generation": GENERATION, "exit": exits, "pruning": pruning_preset("auto")}
    return EngineConfig(**whole | changes)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny pair; the calibrators read the score alone, so that a script can choose the way."""
    models = tiny_vlm(size="small"), tiny_vlm(size="large")
    binding = bind(*models, settings(None).model_copy(update={"pruning": pruning_preset("auto")}))
    rows = [
        make_record(
            number,
            score=score,
            parts={"answer_probability": score},
            agreed=score > 0.75,
            rungs={"10%": rung(score > 0.5), "50%": rung(score > 0.25)},
        )
        for number, score in enumerate(np.random.default_rng(0).random(2000).tolist())
    ]
    conditions = Conditions(generation=GENERATION, min_images=1, max_images=1)
    made = make_calibration(rows, binding=binding, conditions=conditions, rungs=RUNGS)
    path = tmp_path_factory.mktemp("whole") / "calibration.json"
    made.save(path)
    return path


@pytest.mark.parametrize(
    ("score", "route", "retention", "ratio"),
    [
        (0.9, "small", None, None),
        (0.6, "large", "10%", 0.1),
        (0.4, "large", "50%", 0.5),
        (0.1, "large", None, 1),
    ],
)
def test_each_question_gets_the_least_that_is_enough(
    path: Path, score: float, route: str, retention: str | None, ratio: float | None
) -> None:
    engine = FakeEngine(lambda _: "a", score=score, config=settings(path))
    response = engine.run(ASK)
    report = response.report
    assert (report.route, report.retention, report.keep_ratio) == (route, retention, ratio)
    assert report.certified_risk == 0.05
    if retention is not None:  # the same answer as at that point, without any calibration
        fixed = settings(None, pruning=RUNGS[retention])
        plain = FakeEngine(lambda _: "a", score=score, config=fixed.escalating("always")).run(ASK)
        assert response.text == plain.text
        assert report.kept_visual_tokens == plain.report.kept_visual_tokens


def test_where_nothing_is_promised_nothing_is_pruned(path: Path) -> None:
    engine = FakeEngine(lambda _: "a", score=0.6, config=settings(path))
    report = engine.run(replace(ASK, temperature=0.5)).report
    assert (report.route, report.retention, report.keep_ratio) == ("large", None, 1.0)
    assert report.certified_risk is None
    forced = engine.with_config(engine.config.escalating("always")).run(ASK).report
    assert (forced.retention, forced.certified_risk) == ("10%", None)  # exits were part of the promise


def test_it_needs_a_calibration_and_the_calibration_needs_it(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pruning.auto lets a calibration choose .* and there is none"):
        FakeEngine(lambda _: "a", config=settings(None))
    with pytest.raises(ConfigError, match=r"pruning.auto is False, not True"):
        FakeEngine(lambda _: "a", config=settings(path, pruning=PruningConfig()))


def test_a_chat_model_takes_it_and_a_call_can_leave_it(path: Path) -> None:
    engine = FakeEngine(lambda _: "a", score=0.6, config=EngineConfig(generation=GENERATION))
    chat = ChatSGL(engine=engine, calibration=path, risk=0.05, retention="auto", scorer="answer_probability")
    message = HumanMessage([{"type": "text", "text": "what is it?"}, image_block(PICTURE)])
    report = chat.invoke([message]).response_metadata["sgl"]
    assert (report["retention"], report["certified_risk"]) == ("10%", 0.05)
    other = chat.invoke([message], retention="64%").response_metadata["sgl"]
    assert (other["retention"], other["certified_risk"], other["keep_ratio"]) == (None, None, 0.4)


def test_the_command_line_collects_the_ladder_and_certifies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tiny_vlm(size="small"), tiny_vlm(size="small")  # they agree, so that exits are certified
    monkeypatch.setattr("sgl_engine.cli.options.load_engine", lambda _, config: SGLEngine(*models, config))
    for number in range(12):
        PICTURE.resize((64 + number, 64)).save(tmp_path / f"{number}.png")
    rows = [f'{{"image": "{number}.png", "question": "what is it?"}}' for number in range(12)]
    data, out = tmp_path / "data.jsonl", tmp_path / "whole.json"
    data.write_text("\n".join(rows))
    arguments = ["calibrate", "--data", str(data), "--out", str(out), "--retention", "auto"]
    assert main([*arguments, "--max-new-tokens", "4", "--target", "0.5", "--no-large-alone"]) == 0
    made = load_calibration(out)
    assert [(each.name, each.pruning) for each in made.rungs] == list(LADDER.items())
    assert made.binding.pruning == pruning_preset("auto")
    assert "shown everything, would have given" in capsys.readouterr().out
    assert main(["calibrate", "--data", str(data), "--check", str(out), "--no-large-alone"]) in {0, 3}


def test_records_hold_every_rung_against_the_large_model_shown_everything(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "page.png")
    (tmp_path / "data.jsonl").write_text('{"image": "page.png", "question": "what is it?", "answers": ["a"]}')
    engine = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), EngineConfig(generation=GENERATION))
    data = JsonLines.read(tmp_path / "data.jsonl", answers="optional")
    file = tmp_path / "records.jsonl"
    [record] = Collector(engine, rungs=RUNGS).collect(data, file)
    assert isinstance(record, CalibrationRecord)
    always = engine.config.escalating("always").without_reuse()
    asked = Request.ask("what is it?", tmp_path / "page.png")
    answers = {
        name: engine.with_config(always.model_copy(update={"pruning": point})).run(asked)
        for name, point in {**RUNGS, "100%": pruning_preset("100%")}.items()
    }
    assert record.large_answer == answers["100%"].text
    assert record.large_tflops == pytest.approx(answers["100%"].report.large_tflops)
    assert answers["100%"].importance is not None
    assert record.seen == pytest.approx(answers["100%"].importance.describe(), rel=1e-3)
    assert list(record.rungs) == list(RUNGS)
    for name, found in record.rungs.items():
        assert found.answer == answers[name].text
        assert found.agreed is (found.answer == record.large_answer)  # gibberish: no case, no full stop
        assert found.tflops == pytest.approx(answers[name].report.large_tflops)
    assert any(not found.agreed for found in record.rungs.values())  # else nothing was compared
    assert read_records(file).header.rungs == RUNGS
    with pytest.raises(ConfigError, match="it has the rungs 10%, 50%"):
        list(Collector(engine, rungs=LADDER).collect(data, file))


def test_the_map_tells_how_much_the_most_important_tokens_have() -> None:
    span = VisualSpan(image=0, start=1, stop=41, grid=(5, 8), box=None)
    mass = torch.ones(40)
    assert ImportanceMap(mass, (span,), 1).describe() == pytest.approx(
        {"map_top_share": 2 / 40, "visual_tokens": 40.0}
    )
    mass[7] = 61.0
    assert ImportanceMap(mass, (span,), 1).describe()["map_top_share"] == pytest.approx(62 / 100)
    assert ImportanceMap(torch.zeros(40), (span,), 1).describe() == {}
