"""Rows through every system: right, side by side as one by one, resumed, and never ended by a bad row."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import PRESETS, EngineConfig, GenerationConfig, PictureConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.engine import SGLEngine
from sgl_engine.errors import ConfigError, InvalidRequestError
from sgl_engine.evaluation.dataset import Data, DataSample, HeldOut, JsonLines
from sgl_engine.evaluation.records import BenchOutcome
from sgl_engine.evaluation.runner import Runner, manifest
from sgl_engine.evaluation.store import Store
from sgl_engine.evaluation.systems import Systems, at, measure
from sgl_engine.exit.decision import score_parts
from sgl_engine.passes.large import run_large_pass
from sgl_engine.pruning.plan import keep_everything, plan_pruning
from sgl_engine.rankers import RANKERS, RankingCase
from sgl_engine.request import Request
from sgl_engine.testing import tiny_vlm

POINTS = {"64%": PRESETS["64%"], "9%": PRESETS["9%"]}
FAST = Systems({"9%": PRESETS["9%"]}, ("small-guided",))


def begin(
    engine: SGLEngine, data: Data, folder: Path, systems: Systems = FAST, *, overwrite: bool = False
) -> Runner:
    return Runner(engine, data, systems, Store(folder, manifest(engine, data, systems), overwrite=overwrite))


def test_every_answer_is_that_of_a_run_of_its_own(bundled: SGLEngine) -> None:
    systems = Systems(POINTS, ("small-guided", "fastv", "random"), seed=3)
    sample = HeldOut(9)[8]
    outcome = measure(bundled, sample, systems)
    limit = bundled.config.generation.max_new_tokens
    request = Request.ask(sample.row.question, *sample.images)
    case = RankingCase.of(bundled, request, seed=3 + sample.row.index)
    prompt = case.large_prompt
    kept = set()
    for ranker in systems.rankers:
        for name, point in POINTS.items():
            layer = point.layer(bundled.large.num_layers)
            plan = plan_pruning(prompt, RANKERS[ranker](case), layer=layer, keep_ratio=point.keep_ratio)
            single = run_large_pass(bundled.large, AnswerTask(prompt, limit), plan)
            answer = outcome.pruned[ranker][name]
            assert (answer.text, answer.tokens) == (single.generation.text, len(single.generation))
            assert answer.ms is None
            kept.add((name, tuple(plan.keep.tolist())))
    assert len(kept) == 6  # the rankers do differ
    for name, point in POINTS.items():
        config = at(bundled, point).config.escalating("always").without_reuse()
        response = bundled.with_config(config).run(request)
        guided = outcome.guided[name]
        assert guided.text == response.text == outcome.pruned["small-guided"][name].text
        assert guided.tflops == pytest.approx(response.report.large_tflops)
        assert guided.retention == pytest.approx(response.report.average_retention)
    unpruned = run_large_pass(bundled.large, AnswerTask(prompt, limit), keep_everything(prompt))
    assert outcome.large.text == unpruned.generation.text
    assert outcome.large.tflops == pytest.approx(response.report.large_alone_tflops, rel=0.05)
    assert outcome.small.text == case.small.generation.text
    assert outcome.score == score_parts(case.small.parts, bundled.config.exit.scorer).score
    assert outcome.small.tflops < outcome.small_pass_tflops
    assert BenchOutcome.model_validate_json(outcome.model_dump_json()) == outcome


def test_both_models_alone_are_asked_as_the_configuration_says(no_studies: None) -> None:
    """Sizes of pictures, each role its own, and how tokens are chosen."""
    sample, points = HeldOut(8)[3], Systems({"64%": PRESETS["64%"]}, ())
    pair = tiny_vlm("qwen2_5_vl", max_tiles=9), tiny_vlm("qwen2_5_vl", size="large", max_tiles=9)
    engine = SGLEngine(*pair, EngineConfig(generation=GenerationConfig(max_new_tokens=3)))
    config = engine.config.model_copy(
        update={
            "generation": engine.config.generation.model_copy(update={"repetition_penalty": 1.5}),
            "small_pictures": PictureConfig(max_visual_tokens=12),
            "large_pictures": PictureConfig(max_visual_tokens=24),
        }
    )
    outcome = measure(engine.with_config(config), sample, points)
    plain = measure(engine, sample, points)
    small, large = (
        engine.with_config(each).run(Request.ask(sample.row.question, *sample.images))
        for each in (config.escalating("never"), config.model_copy(update={"pruning": PRESETS["100%"]}))
    )
    assert (outcome.small.text, outcome.large.text) == (small.text, large.text)
    assert outcome.large.tflops == pytest.approx(large.report.large_alone_tflops, rel=0.05)
    # The control: what is asked for changes what is said and what it costs.
    assert (plain.small.text, plain.large.text) != (small.text, large.text)
    assert outcome.large.tflops < 0.8 * plain.large.tflops


def test_a_ranker_that_chooses_otherwise_answers_otherwise(bundled: SGLEngine, no_studies: None) -> None:
    def worst(case: RankingCase) -> ImportanceMap:
        best = RANKERS["small-guided"](case)
        return ImportanceMap(-best.mass, best.spans, best.num_queries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RANKERS, "worst", worst)
        outcomes = [
            measure(bundled, HeldOut(8)[n], Systems({"64%": PRESETS["64%"]}, ("small-guided", "worst")))
            for n in (3, 4, 5, 7)
        ]
    right = {
        name: [each.pruned[name]["64%"].right for each in outcomes] for name in ("small-guided", "worst")
    }
    assert sum(right["small-guided"]) > sum(right["worst"])


def test_a_run_goes_on_where_it_stopped_and_grows(tiny: SGLEngine, no_studies: None, tmp_path: Path) -> None:
    stopped = begin(tiny, HeldOut(3), tmp_path).run()
    assert next(stopped).row.index == 0
    stopped.close()
    first = (tmp_path / "records.jsonl").read_bytes()
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(first[: len(first) // 2])  # as a power failure leaves it
    more = begin(tiny, HeldOut(2), tmp_path)
    assert more.pending() == [1]
    assert [record.row.index for record in more.run()] == [1]
    content = (tmp_path / "records.jsonl").read_bytes()
    assert content.startswith(first)
    assert [json.loads(line)["row"]["index"] for line in content.splitlines()] == [0, 1]
    assert begin(tiny, HeldOut(4), tmp_path).pending() == [2, 3]


def test_an_interrupt_keeps_what_is_done(tiny: SGLEngine, no_studies: None, tmp_path: Path) -> None:
    class Tired(HeldOut):
        def __getitem__(self, index: int) -> DataSample:
            if index == 1:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    runner = begin(tiny, Tired(3), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        list(runner.run())
    assert runner.pending() == [1, 2]


def test_a_line_of_the_records_that_is_none_is_named_and_its_row_asked_again(
    tiny: SGLEngine, no_studies: None, tmp_path: Path
) -> None:
    runner = begin(tiny, HeldOut(3), tmp_path)
    list(runner.run())
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"5", lines[1][:40] + b"\xe2\x80", lines[2], b""]))
    again = begin(tiny, HeldOut(3), tmp_path)
    assert again.pending() == [1]
    assert [line.number for line in again.store.bad] == [2, 3]
    list(again.run())
    assert again.pending() == []


def test_a_bad_row_is_a_record_and_is_tried_again(tiny: SGLEngine, no_studies: None, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "fine.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines = [
        {"image": name, "question": "what color?", "answers": ["red"]}
        for name in ("missing.png", "broken.png", "fine.png")
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runner = begin(tiny, JsonLines.read(path), tmp_path / "out")
    records = list(runner.run())
    assert [record.error is None for record in records] == [False, False, True]
    assert records[0].error is not None
    assert records[0].error.startswith("MissingImageError: ")
    assert "CorruptImageError" in str(records[1].error)
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "missing.png")
    again = begin(tiny, JsonLines.read(path), tmp_path / "out")
    assert again.pending() == [0, 1]
    list(again.run())
    assert [record.error is None for _, record in sorted(again.store.records().items())] == [
        True,
        False,
        True,
    ]


def test_whatever_a_library_throws_the_next_row_goes_on(
    tiny: SGLEngine, no_studies: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(case: RankingCase) -> ImportanceMap:
        if case.seed == 0:
            raise RuntimeError("out of memory")
        if case.seed == 1:
            raise InvalidRequestError("No map.", remedy="None.")
        return RANKERS["random"](case)

    monkeypatch.setitem(RANKERS, "sometimes", sometimes)
    systems = Systems(FAST.points, ("sometimes",))
    records = list(begin(tiny, HeldOut(3), tmp_path, systems).run())
    assert [record.error for record in records] == [
        "RuntimeError: out of memory",
        "InvalidRequestError: Ranker sometimes: No map. None.",
        None,
    ]


def test_settings_that_cannot_work_end_the_run_at_once(
    tiny: SGLEngine, no_studies: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: RankingCase) -> ImportanceMap:
        raise ConfigError("It cannot be.", remedy="Leave it out.")

    monkeypatch.setitem(RANKERS, "never", never)
    with pytest.raises(ConfigError, match="Ranker never: It cannot be"):
        list(begin(tiny, HeldOut(3), tmp_path, Systems(FAST.points, ("never",))).run())
    assert not (tmp_path / "records.jsonl").exists()


def test_rankers_take_part_in_as_many_rows_as_they_should(
    tiny: SGLEngine, no_studies: None, tmp_path: Path
) -> None:
    def run(compared: int | None, folder: str) -> tuple[list[int], list[BenchOutcome]]:
        runner = begin(tiny, HeldOut(3), tmp_path / folder, replace(FAST, compared=compared))
        pending = runner.pending()
        list(runner.run())
        return pending, [each.outcome for _, each in sorted(runner.store.records().items()) if each.outcome]

    _, whole = run(None, "whole")
    pending, found = run(1, "few")
    assert pending == [0, 1, 2]
    assert [each.compared for each in found] == [True, False, False]
    assert [set(each.pruned) for each in found] == [{"small-guided"}, set(), set()]
    for one, other in zip(found, whole, strict=True):
        assert one.small.text == other.small.text
        assert one.large.text == other.large.text
        assert one.guided["9%"].text == other.guided["9%"].text
        assert (one.score, one.study["prompt"]["grids"]) == (other.score, other.study["prompt"]["grids"])
    assert run(1, "few")[0] == []
    pending, found = run(2, "few")  # what is to be compared besides is measured again
    assert pending == [1]
    assert [each.compared for each in found] == [True, True, False]
    assert found[1].pruned == whole[1].pruned
    assert run(1, "few")[0] == []


def test_other_settings_are_refused_by_name(tiny: SGLEngine, no_studies: None, tmp_path: Path) -> None:
    list(begin(tiny, HeldOut(1), tmp_path).run())
    with pytest.raises(ConfigError, match=r"seed was 0 and is 1.*--overwrite"):
        begin(tiny, HeldOut(1), tmp_path, Systems(FAST.points, FAST.rankers, seed=1))
    with pytest.raises(ConfigError, match=r"data was 'questions .* seed 0 on'"):
        begin(tiny, HeldOut(1, start=1), tmp_path)
    other = PRESETS["9%"].model_copy(update={"keep_ratio": 0.1})
    with pytest.raises(ConfigError, match=r"points\.9%\.keep_ratio was 0\.05 and is 0\.1"):
        begin(tiny, HeldOut(1), tmp_path, Systems({"9%": other}, FAST.rankers))
    begin(tiny, HeldOut(1), tmp_path, Systems(FAST.points, FAST.rankers, max_rows=1))  # the same answers
    anew = begin(tiny, HeldOut(1), tmp_path, Systems(FAST.points, FAST.rankers, seed=1), overwrite=True)
    assert anew.pending() == [0]


def test_other_weights_under_the_same_name_are_another_model(tiny: SGLEngine) -> None:
    before = manifest(tiny, HeldOut(1), FAST)
    assert manifest(tiny, HeldOut(1), FAST) == before
    weight = next(tiny.small.model.parameters())
    kept = weight.data.clone()
    try:
        weight.data.mul_(1.01)
        assert manifest(tiny, HeldOut(1), FAST).small.weights != before.small.weights
    finally:
        weight.data.copy_(kept)


def test_a_folder_of_something_else_is_refused(tiny: SGLEngine, no_studies: None, tmp_path: Path) -> None:
    begin(tiny, HeldOut(1), tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json is not the description of a run"):
        begin(tiny, HeldOut(1), tmp_path)
