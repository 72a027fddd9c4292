"""Asking both models: what is recorded, what a bad row does, and how a run goes on."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgl_engine import EngineConfig, ExitConfig, PruningConfig, Request, SGLEngine
from sgl_engine.calibration import collection
from sgl_engine.calibration.collection import Collector, agree_by_metric, observed_conditions
from sgl_engine.calibration.records import CalibrationRecord, Failure, read_records
from sgl_engine.config import GenerationConfig, PictureConfig
from sgl_engine.decoding import AnswerTask
from sgl_engine.demo import demo_engine
from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.dataset import HeldOut, JsonLines
from sgl_engine.evaluation.json_lines import BadLine
from sgl_engine.model.thoughts import SpeltTags
from sgl_engine.testing import FakeEngine, tiny_vlm

SETTINGS = EngineConfig(generation=GenerationConfig(max_new_tokens=4))


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), SETTINGS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three rows: answered, without answers, and about a picture that is not there."""
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "page.png")
    rows = [
        {"image": "page.png", "question": "what is it?", "answers": ["a page"], "id": 7, "kind": "words"},
        {"image": ["page.png", "page.png"], "question": "same?"},
        {"image": "gone.png", "question": "what is it?"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def collect(
    engine: SGLEngine, data: Path, records: Path, **settings: Any
) -> list[CalibrationRecord | Failure]:
    return list(Collector(engine, **settings).collect(JsonLines.read(data, answers="optional"), records))


def test_what_the_consistency_pass_takes_is_known_apart(data: Path, tmp_path: Path) -> None:
    """It is always run here; who uses a calibration that does not read it never runs it."""
    leaving = ExitConfig(scorer="answer_probability")
    plain = SGLEngine(
        tiny_vlm(size="small"), tiny_vlm(size="large"), SETTINGS.model_copy(update={"exit": leaving})
    )
    first, *_ = collect(plain, data, tmp_path / "records.jsonl")
    assert isinstance(first, CalibrationRecord)
    assert "consistency_product" in first.parts
    never = plain.with_config(plain.config.escalating("never").without_reuse())
    report = never.run(Request.ask("what is it?", tmp_path / "page.png")).report
    assert report.consistency is None
    bare = first.without_consistency()
    assert bare.small_tflops == pytest.approx(report.small_tflops)
    assert bare.small_tflops < first.small_tflops
    assert 0 < bare.small_ms < first.small_ms
    assert bare == bare.without_consistency()


def test_records_say_what_the_engine_says(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    first, second, third = collect(engine, data, records)
    always = engine.with_config(engine.config.escalating("always").without_reuse())
    response = always.run(Request.ask("what is it?", tmp_path / "page.png"))
    report = response.report
    assert isinstance(first, CalibrationRecord)
    assert (first.small_answer, first.large_answer) == (report.small_answer, response.text)
    assert (first.score, first.parts) == (report.score, report.score_parts)
    assert (first.agreed, first.kind, first.images) == (report.large_agreed, "words", 1)
    assert (first.small_tflops, first.alone_tflops) == (report.small_tflops, report.large_alone_tflops)
    assert first.alone_ms is not None
    assert min(first.small_ms, first.large_ms, first.alone_ms) > 0
    assert first.small_right is (report.small_answer.strip() == "a page")  # type: ignore[union-attr]
    assert isinstance(second, CalibrationRecord)
    assert (second.small_right, second.large_right, second.alone_right) == (None, None, None)
    assert second.images == 2
    assert isinstance(third, Failure)
    assert "gone.png" in third.error
    file = read_records(records)
    header, kept, failed = file.header, file.records, file.failures
    assert (kept, failed) == ([first, second], [third])
    conditions = observed_conditions(header, kept)
    assert (conditions.min_images, conditions.max_images) == (1, 2)
    assert conditions.generation.max_new_tokens == 4


def test_every_question_is_asked_as_if_for_the_first_time(
    engine: SGLEngine, data: Path, tmp_path: Path
) -> None:
    """The models keep nothing for, and know nothing from, another question; an engine as it is would."""
    warm = engine.with_config(SETTINGS)
    stores = (engine.small.store, engine.large.store)
    before = [store.info() for store in stores]
    collect(warm, data, tmp_path / "records.jsonl")
    assert [store.info() for store in stores] == before
    for _ in range(2):
        warm.run(Request.ask("what is it?", tmp_path / "page.png"))
    assert all(store.info().pixel_hits > old.pixel_hits for store, old in zip(stores, before, strict=True))


def test_a_run_goes_on_where_it_was_cut(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    whole = collect(engine, data, records)
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:2]) + lines[2][:40])  # in the middle of the second record
    again = collect(engine, data, records)
    assert [each.key for each in again] == [each.key for each in whole]
    assert again[0] == whole[0]  # with its times: it was not asked again
    assert again[1] != whole[1]
    file = read_records(records)
    kept, failed = file.records, file.failures
    assert ([each.key for each in kept], len(failed)) == ([each.key for each in whole[:2]], 1)
    assert kept[0] == whole[0]


def test_lines_that_nobody_can_read_are_named_and_asked_again(
    engine: SGLEngine, data: Path, tmp_path: Path
) -> None:
    """A byte order mark, separators of Unicode in a string, a number, deep nesting, a cut in a character."""
    data.write_text(
        json.dumps({"image": "page.png", "question": "a\u2028b\u2029c\u0085d?"}) + "\n" + data.read_text()
    )
    records = tmp_path / "records.jsonl"
    whole = collect(engine, data, records)
    lines = records.read_bytes().split(b"\n")
    assert "\u2028" in collect(engine, data, records)[0].model_dump_json() or len(whole) == 4
    bad = [b"5", b'{"key": ' * 50_000, b'"\xe2\x80']
    records.write_bytes(codecs.BOM_UTF8 + b"\r\n".join([lines[0], *bad, *lines[1:4], b"", lines[4][:30]]))
    said: list[BadLine] = []
    again = collect(engine, data, records, on_bad_line=said.append)
    assert again[:3] == whole[:3]  # with their times: they were not asked again
    assert [line.number for line in said] == [2, 3, 4]
    for line, reason in zip(said, ("no object", "nested too deeply", "no text in UTF-8"), strict=True):
        assert reason in line.problem
    file = read_records(records)
    assert file.records == whole[:3]
    assert len(file.failures) == 1


def test_a_file_that_was_only_made_is_begun(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    assert len(collect(engine, data, tmp_path / "records.jsonl")) == 3


def test_a_failed_row_is_tried_again_and_counts_once(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    collect(engine, data, records)
    (tmp_path / "page.png").rename(tmp_path / "gone.png")
    late = collect(engine, data, records)[-1]
    assert isinstance(late, CalibrationRecord)
    file = read_records(records)
    kept, failed = file.records, file.failures
    assert (len(kept), failed) == (3, [])


def test_a_row_that_was_corrected_is_asked_again(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    collect(engine, data, records)
    data.write_text(data.read_text().replace("a page", "a leaf"))
    collect(engine, data, records)
    kept = read_records(records).records
    assert [each.key.partition(":")[0] for each in kept] == ["7", "line 2", "7"]


def test_records_of_other_settings_are_not_mixed(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    collect(engine, data, records)
    pruned = engine.with_config(SETTINGS.model_copy(update={"pruning": PruningConfig(keep_ratio=0.5)}))
    longer = engine.with_config(EngineConfig(generation=GenerationConfig(max_new_tokens=5)))
    for other, settings, message in [
        (pruned, {}, "keep_ratio is 0.5, not 0.2"),
        (longer, {}, "generation settings or the system prompt are others"),
        (engine, {"system": "be brief"}, "generation settings or the system prompt are others"),
    ]:
        with pytest.raises(ConfigError, match=message):
            collect(other, data, records, **settings)


def test_records_in_which_thoughts_are_counted_are_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    """Written before they were told apart: of a model that thinks, nobody knows how long its answers were."""
    records = tmp_path / "records.jsonl"
    small = tiny_vlm(size="small")
    engine = FakeEngine(lambda _: "a", small=small, config=SETTINGS)
    collect(engine, data, records, alone=False)
    records.write_text(records.read_text().replace(',"thoughts_counted":true', ""))
    assert "thoughts_counted" not in records.read_text()
    collect(engine, data, records, alone=False)
    small.thought_tags = SpeltTags("<think>", "</think>", (), ())
    with pytest.raises(ConfigError, match="counts the small model.s thoughts"):
        collect(engine, data, records, alone=False)


def test_the_large_model_alone_is_asked_as_the_engine_asks_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[AnswerTask] = []
    own = collection.run_large_pass
    monkeypatch.setattr(
        collection, "run_large_pass", lambda vlm, task, plan: tasks.append(task) or own(vlm, task, plan)
    )
    generation = GenerationConfig(max_new_tokens=3, temperature=0.5, top_k=2)
    pictures = PictureConfig(max_visual_tokens=4)
    config = EngineConfig(generation=generation, large_pictures=pictures)
    vlm = tiny_vlm("qwen2_vl", size="large", max_tiles=4)
    engine = FakeEngine(lambda _: "a", large=vlm, config=config)
    first = collect(engine, data, tmp_path / "records.jsonl")[0]
    assert isinstance(first, CalibrationRecord)
    assert tasks[0].prompt.num_visual_tokens <= 4
    assert (tasks[0].max_new_tokens, tasks[0].decoding.temperature, tasks[0].decoding.top_k) == (3, 0.5, 2)


def test_the_large_model_alone_can_be_left_out(engine: SGLEngine, data: Path, tmp_path: Path) -> None:
    first = collect(engine, data, tmp_path / "records.jsonl", alone=False)[0]
    assert isinstance(first, CalibrationRecord)
    assert (first.alone_ms, first.alone_right) == (None, None)
    assert first.large_right is not None


def test_a_system_prompt_is_part_of_every_request(data: Path, tmp_path: Path) -> None:
    seen: list[Request] = []
    engine = FakeEngine(lambda request: seen.append(request) or "a", config=SETTINGS)  # type: ignore[func-returns-value]
    engine.with_config = lambda config: FakeEngine(engine._answer_of, config=config)  # type: ignore[method-assign]
    collect(engine, data, tmp_path / "records.jsonl", system="be brief", alone=False)
    assert [message.role for message in seen[0].messages] == ["system", "user"]
    assert len(seen[1].images) == 2


def test_questions_without_a_picture_are_not_about_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"question": question}) for question in ("one?", "two?", "two?")))
    engine = FakeEngine(lambda _: "a", config=SETTINGS)
    one, two, again = collect(engine, path, tmp_path / "records.jsonl", alone=False)
    assert isinstance(one, CalibrationRecord)
    assert isinstance(two, CalibrationRecord)
    assert isinstance(again, CalibrationRecord)
    assert one.picture != two.picture == again.picture


def test_an_answer_without_a_score_is_a_failure(data: Path, tmp_path: Path) -> None:
    engine = FakeEngine(lambda _: "a", score=float("nan"), config=SETTINGS)
    first = collect(engine, data, tmp_path / "records.jsonl", alone=False)[0]
    assert isinstance(first, Failure)


@pytest.mark.parametrize(
    ("metric", "small", "large", "agreed"),
    [
        ("exact", "5", "5 ", True),
        ("exact", "5.1", "5", False),
        ("relaxed", "5.1", "5", True),
        ("relaxed", "6", "5", False),
        ("anls", "total 12", "Total 13", True),
        ("vqa_score", "five", "5", True),  # although one person's word alone is never enough there
        ("vqa_score", "six", "5", False),
    ],
)
def test_agreement_by_metric_takes_the_large_answer_for_the_truth(
    metric: str, small: str, large: str, agreed: bool
) -> None:
    assert agree_by_metric(metric, small, large) is agreed


def test_what_is_no_file_of_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for content in ("", "{}", "nonsense", "5", "[" * 100_000, '{"key": "a", "error": "no header"}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match="Line 1 of .* is not a RecordsHeader"):
            read_records(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")


def test_generated_questions_are_held_out_and_have_answers(tmp_path: Path) -> None:
    data = HeldOut(2, start=5)
    engine = demo_engine(EngineConfig(exit=ExitConfig(escalate="never")))  # both are asked all the same
    outcomes = list(Collector(engine).collect(data, tmp_path / "records.jsonl"))
    assert all(isinstance(each, CalibrationRecord) and each.small_right is not None for each in outcomes)
