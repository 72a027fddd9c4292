import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import traces
from samples import noise

from sgl_engine import (
    VLM,
    EngineConfig,
    ExitConfig,
    ExitDecision,
    GenerationConfig,
    LimitsConfig,
    PruningConfig,
    Request,
    Response,
    RunReport,
    SGLEngine,
    TextDelta,
)
from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.decoding.reader import agree
from sgl_engine.errors import (
    ConfigError,
    CorruptImageError,
    DeadlineError,
    ImageLimitError,
    InvalidRequestError,
    MissingImageError,
    PromptTooLongError,
    SGLError,
)
from sgl_engine.exit.decision import score_parts
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.pruning.plan import keep_everything
from sgl_engine.request import InvalidToolCall, ToolCall
from sgl_engine.testing import tiny_vlm

ASK = Request.ask("What is it?", noise(40, 50), max_new_tokens=6)


@pytest.fixture(scope="module")
def engine(small: VLM, large: VLM) -> SGLEngine:
    return SGLEngine(small, large)


def forced(engine: SGLEngine, escalate: str) -> SGLEngine:
    return engine.with_config(engine.config.escalating(escalate))  # type: ignore[arg-type]


def test_an_unsure_small_model_guides_the_large_one(engine: SGLEngine) -> None:
    response = engine.run(ASK)
    report = response.report
    assert (report.route, report.escalated, report.forced) == ("large", True, False)
    assert report.score < report.threshold == 0.8
    assert (report.visual_tokens, report.kept_visual_tokens, report.prune_layer) == (36, 7, 1)
    assert report.average_retention == pytest.approx((1 + 5 * 7 / 36) / 6)
    assert response.plan is not None
    assert response.importance is not None
    best = response.importance.mass.topk(7).indices.tolist()
    visual = response.importance.spans[0].start
    assert {visual + index for index in best} <= set(response.plan.keep.tolist())
    assert report.small_answer is not None
    assert report.large_agreed == (report.small_answer == response.text)


def test_the_answer_is_the_pruned_large_models(engine: SGLEngine) -> None:
    response = engine.run(ASK)
    assert response.plan is not None
    alone = run_large_pass(engine.large, AnswerTask(engine.large.encode(ASK), 6), response.plan)
    assert response.text == alone.generation.text


def test_a_sure_small_model_answers_alone(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.large, "embed", None)  # the large model must not be called
    response = engine.with_config(EngineConfig(exit=ExitConfig(threshold=0.0))).run(ASK)
    report = response.report
    assert (report.route, report.escalated) == ("small", False)
    small = run_small_pass(engine.small, AnswerTask(engine.small.encode(ASK), 6))
    assert response.text == small.generation.text
    assert report.score == score_parts(small.parts).score
    assert report.confidence == small.parts["confidence"]
    assert report.consistency == small.parts["consistency_product"]
    assert response.plan is None
    assert report.kept_visual_tokens is report.large_input_tokens is report.small_answer is None
    assert report.large_tflops == 0
    assert report.saved_fraction > 0


def test_the_consistency_pass_is_left_out_where_nobody_reads_it(small: VLM, large: VLM) -> None:
    exits = ExitConfig(scorer="answer_probability", escalate="never")
    found = {}
    for consistency in ("auto", "always"):
        wanted = exits.model_copy(update={"consistency": consistency})
        config = EngineConfig(exit=wanted).without_reuse()
        found[consistency] = SGLEngine(small, large, config).run(ASK)
    auto, always = (found[each].report for each in ("auto", "always"))
    assert found["auto"].text == found["always"].text
    assert auto.score == always.score == auto.score_parts["answer_probability"] != auto.confidence
    assert auto.consistency is None
    assert "consistency_small" not in auto.stage_ms
    assert always.consistency is not None
    assert "consistency_small" in always.stage_ms
    assert auto.small_tflops < always.small_tflops
    assert auto.score_parts.items() < always.score_parts.items()


def test_the_route_can_be_forced(engine: SGLEngine) -> None:
    never, always = (forced(engine, escalate).run(ASK).report for escalate in ("never", "always"))
    assert (never.route, never.forced) == ("small", True)
    assert (always.route, always.forced) == ("large", True)
    assert engine.config.exit.escalate == "auto"


def test_a_stream_yields_text_after_the_decision_then_the_response(engine: SGLEngine) -> None:
    for escalate in ("never", "always"):
        decision, *deltas, last = forced(engine, escalate).stream(ASK)
        assert isinstance(decision, ExitDecision)
        assert decision.exit is (escalate == "never")
        assert isinstance(last, Response)
        assert all(isinstance(delta, TextDelta) and delta.text for delta in deltas)
        assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == last.text


def test_an_abandoned_stream_leaves_nothing(engine: SGLEngine) -> None:
    engine.run(ASK)
    before = traces(engine.small), traces(engine.large)
    stream = forced(engine, "always").stream(ASK)
    next(stream)
    assert (traces(engine.small), traces(engine.large)) == before
    stream.close()  # type: ignore[attr-defined]
    assert (traces(engine.small), traces(engine.large)) == before


def test_text_alone_cascades_on_confidence(engine: SGLEngine) -> None:
    request = Request.ask("Hello?", max_new_tokens=4)
    response = engine.run(request)
    report = response.report
    assert (report.route, report.consistency, report.visual_tokens) == ("large", None, 0)
    assert report.score == report.confidence
    assert (report.kept_visual_tokens, report.average_retention) == (0, 1.0)
    assert response.importance is None
    large = engine.large
    plain = run_large_pass(
        large, AnswerTask(large.encode(request), 4), keep_everything(large.encode(request))
    )
    assert response.text == plain.generation.text
    assert forced(engine, "never").run(request).report.route == "small"


def test_keep_ratio_1_is_the_large_model_alone(engine: SGLEngine) -> None:
    response = engine.with_config(EngineConfig(pruning=PruningConfig(keep_ratio=1.0))).run(ASK)
    prompt = engine.large.encode(ASK)
    task = AnswerTask(prompt, 6)
    ids = engine.large.model.generate(**prompt.inputs, max_new_tokens=6, do_sample=False)[0, len(prompt) :]
    alone = run_large_pass(engine.large, task, keep_everything(prompt)).generation
    assert torch.equal(alone.token_ids, ids)
    # Bytes at the end of an answer that is cut off, and are no character, are left out.
    assert response.text == alone.text == engine.large.text(ids.tolist()).rstrip("\ufffd")
    assert response.report.large_output_tokens == len(ids)
    assert response.report.average_retention == 1.0


def test_the_report_is_json_and_adds_up(engine: SGLEngine) -> None:
    report = engine.run(ASK).report
    assert RunReport.model_validate_json(json.dumps(report.model_dump(mode="json"))) == report
    assert report.schema_version == "1"
    spent = (report.small_tflops + report.large_tflops) / report.large_alone_tflops
    assert report.saved_fraction == pytest.approx(1 - spent)
    assert report.large_tflops < report.large_alone_tflops
    stages = dict(report.stage_ms)
    total = stages.pop("total")
    assert sorted(stages) == [
        "consistency_small",
        "encode_large",
        "encode_small",
        "generate_large",
        "generate_small",
        "queue",
        "vision_large",
        "vision_small",
    ]
    assert 0 < sum(stages.values()) <= total
    assert report.small_model.name == "tiny-internvl-small"
    assert (report.small_input_tokens, report.small_output_tokens) == (len(engine.small.encode(ASK)), 6)


def test_requests_override_the_configuration(engine: SGLEngine) -> None:
    config = EngineConfig(generation=GenerationConfig(max_new_tokens=3, temperature=2.0))
    hot = forced(engine, "never").with_config(config.escalating("never"))
    picture = noise(40, 50)
    assert hot.run(Request.ask("?", picture, seed=1)).report.small_output_tokens == 3
    texts = {hot.run(Request.ask("?", picture, seed=seed, max_new_tokens=8)).text for seed in range(3)}
    assert len(texts) == 3
    cold = [hot.run(Request.ask("?", picture, temperature=0.0)).text for _ in range(2)]
    assert cold[0] == cold[1]


def test_stop_strings_reach_the_answer(engine: SGLEngine) -> None:
    asked = [Request.ask("What is it?", noise(40, 50, seed), max_new_tokens=6) for seed in range(20)]
    answers = [(request, engine.run(request).text) for request in asked]
    # Halves of characters are never matched, and tiny models say many.
    request, text = next((request, text) for request, text in answers if text[2:4].isascii() and text[3:4])
    stopped = engine.run(replace(request, stop=(text[2:4],)))
    assert stopped.text == text[: text.index(text[2:4])]
    assert stopped.finish_reason == "stop"


BAD: list[tuple[Request, type[SGLError], str]] = [
    (Request.ask("?", Path("nowhere.png")), MissingImageError, "nowhere.png"),
    (Request.ask("?", b"broken"), CorruptImageError, "6 bytes"),
    (Request.ask("?", *[noise(4, 4)] * 33), ImageLimitError, "33 images; the limit is 32"),
    (Request.ask("x" * 3000), PromptTooLongError, "2,048"),
    (Request.ask("?", noise(8, 8), deadline=time.monotonic() - 1), DeadlineError, "deadline passed"),
]


@pytest.mark.parametrize(("request_", "kind", "message"), BAD)
def test_a_bad_request_fails_alone(
    request_: Request, kind: type[SGLError], message: str, engine: SGLEngine
) -> None:
    expected = engine.run(ASK)
    before = traces(engine.small), traces(engine.large)
    with pytest.raises(kind, match=message) as caught:
        engine.run(request_)
    assert caught.value.remedy
    assert (traces(engine.small), traces(engine.large)) == before
    assert engine.run(ASK).text == expected.text


NAN = float("nan")
UNANSWERABLE: list[tuple[Request, str]] = [
    (Request.ask("?", Path("nowhere.png"), temperature=-1), r"temperature=-1 \(.*greater than or equal to 0"),
    (Request.ask("?", Path("nowhere.png"), temperature=NAN), "temperature=nan"),
    (Request.ask("?", Path("nowhere.png"), temperature=float("inf")), "temperature=inf"),
    (Request.ask("?", Path("nowhere.png"), top_p=0), "top_p=0 "),
    (Request.ask("?", Path("nowhere.png"), top_p=5), "top_p=5 "),
    (Request.ask("?", Path("nowhere.png"), max_new_tokens=0), "max_new_tokens=0 "),
    (Request.ask("?", Path("nowhere.png"), max_new_tokens=0, top_p=5), "max_new_tokens=0 .*top_p=5 "),
]


@pytest.mark.parametrize(("request_", "message"), UNANSWERABLE)
def test_bad_wishes_are_refused_before_images_are_loaded(
    request_: Request, message: str, engine: SGLEngine
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        engine.run(request_)


def test_limits_are_the_configurations(engine: SGLEngine) -> None:
    strict = engine.with_config(EngineConfig(limits=LimitsConfig(max_image_pixels=100)))
    with pytest.raises(ImageLimitError, match="40 x 50 pixels; the limit is 100"):
        strict.run(ASK)


def test_a_pair_with_different_grids_and_tiles(small: VLM) -> None:
    """6 x 6 tokens of the whole picture guide tiles of 4 x 4 and a thumbnail."""
    engine = SGLEngine(small, tiny_vlm(size="large", side_tokens=4, max_tiles=4))
    response = engine.run(Request.ask("?", noise(64, 32), max_new_tokens=1))
    assert response.plan is not None
    assert (response.report.visual_tokens, response.report.kept_visual_tokens) == (48, 9)
    assert (response.plan.visual_tokens, response.plan.kept_visual_tokens) == (48, 9)


def test_an_unknown_scorer(small: VLM, large: VLM) -> None:
    with pytest.raises(ConfigError, match="no scorer 'luck'"):
        SGLEngine(small, large, EngineConfig(exit=ExitConfig(scorer="luck")))


def test_from_pretrained(tmp_path: Path) -> None:
    for size in ("small", "large"):
        vlm = tiny_vlm(size=size)
        vlm.model.save_pretrained(tmp_path / size)
        vlm.processor.save_pretrained(tmp_path / size)
    engine = SGLEngine.from_pretrained(
        tmp_path / "small", tmp_path / "large", EngineConfig.preset("9%"), dtype=torch.float32
    )
    expected = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), EngineConfig.preset("9%"))
    assert engine.run(ASK).text == expected.run(ASK).text
    assert engine.run(ASK).report.kept_visual_tokens == 1


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Red", " red. ", True),
        ("red", "blue", False),
        ("", "", True),
        ("3.5", "35", False),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ("1.0", "1", False),
    ],
)
def test_agreement(first: str, second: str, same: bool) -> None:
    assert agree(ParsedAnswer(first), ParsedAnswer(second)) == same


def test_agreement_is_about_calls_too() -> None:
    def call(call_id: str, value: int) -> ToolCall:
        return ToolCall(call_id, "add", {"a": value})

    one, other = ParsedAnswer("", (call("1", 1),)), ParsedAnswer("", (call("2", 1),))
    assert agree(one, other)
    assert not agree(one, ParsedAnswer("", (call("1", 2),)))
    assert not agree(one, ParsedAnswer("", (call("1", 1), call("2", 1))))
    assert not agree(one, ParsedAnswer(""))
    unreadable = ParsedAnswer("", (), (InvalidToolCall("1", None, "", "why"),))
    assert not agree(unreadable, unreadable)
