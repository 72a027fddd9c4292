"""A calibration at work in an engine: what it decides, what it does not cover, what it is refused for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_samples import make_calibration, make_records
from PIL import Image

from sgl_engine import EngineConfig, ExitConfig, Message, PruningConfig, Request, SGLEngine, ToolSpec
from sgl_engine.calibration.build import Promise, calibrate
from sgl_engine.calibration.collection import Collector, observed_conditions
from sgl_engine.calibration.fitting import Method
from sgl_engine.calibration.records import CalibrationRecord
from sgl_engine.config import GenerationConfig, PictureConfig
from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.dataset import JsonLines
from sgl_engine.exit.binding import Conditions, bind, identify
from sgl_engine.exit.calibrated import system_hash
from sgl_engine.model.thoughts import SpeltTags
from sgl_engine.model.vlm import VLM
from sgl_engine.passes import Asked, SmallPassResult
from sgl_engine.planning.estimate import small_flops
from sgl_engine.testing import FakeEngine, tiny_vlm

PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
GENERATION = GenerationConfig(max_new_tokens=8)
ASK = Request.ask("what is it?", PICTURE)
SCORER = "answer_probability"
METHODS: tuple[Method, ...] = ("isotonic", "logistic")


@pytest.fixture(scope="module")
def models() -> tuple[VLM, VLM]:
    return tiny_vlm(size="small"), tiny_vlm(size="large")


def config(path: Path | None = None, risk: float | None = None, **changes: Any) -> EngineConfig:
    exits: dict[str, Any] = {"scorer": SCORER, "calibration": path, "risk": risk, **changes}
    return EngineConfig(generation=GENERATION, exit=ExitConfig(**exits))


@pytest.fixture(scope="module")
def path(models: tuple[VLM, VLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of 0.75 and more exit at 2 % risk, or thereabouts; of this pair, with one picture."""
    calibration = make_calibration(
        make_records(2000),
        binding=bind(*models, config()),
        conditions=Conditions(generation=GENERATION, min_images=1, max_images=1),
    )
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    calibration.save(path)
    return path


@pytest.fixture
def scripted(models: tuple[VLM, VLM], path: Path) -> Any:
    """An engine whose small model says "yes" with a given score."""

    def build(score: float, risk: float | None = 0.02, says: str = "a", **changes: Any) -> FakeEngine:
        small, large = models
        settings = config(path, risk, **changes)
        return FakeEngine(lambda _: says, score=score, small=small, large=large, config=settings)

    return build


def calibration_of(path: Path) -> Any:
    from sgl_engine.exit.calibration_file import load_calibration

    return load_calibration(path)


@pytest.mark.parametrize(("score", "route"), [(0.98, "small"), (0.1, "large")])
def test_the_probability_decides_and_is_reported(scripted: Any, path: Path, score: float, route: str) -> None:
    report = scripted(score).run(ASK).report
    calibration = calibration_of(path)
    expected = calibration.calibrator.probability({"score": score})
    assert report.route == route
    assert report.calibrated_probability == report.score == pytest.approx(expected)
    assert report.calibration == calibration.id
    assert report.threshold == calibration.point(0.02).threshold
    assert (report.scorer, report.forced, report.uncovered) == (SCORER, False, None)


def test_a_probability_at_the_threshold_exits_and_one_below_does_not(scripted: Any, path: Path) -> None:
    calibration = calibration_of(path)
    found = {calibration.calibrator.probability(each.observation): each.score for each in make_records(2000)}
    at = found[calibration.point(0.02).threshold]  # thresholds are probabilities of the fitting half
    assert scripted(at).run(ASK).report.route == "small"
    assert scripted(at - 1e-4).run(ASK).report.route == "large"


def test_another_risk_is_another_threshold(scripted: Any) -> None:
    thresholds = [scripted(0.9, risk).run(ASK).report.threshold for risk in (0.02, 0.05, 0.1)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert scripted(0.9, None).run(ASK).report.threshold == thresholds[0]


def test_a_calibration_that_reads_consistency_gets_it(models: tuple[VLM, VLM], tmp_path: Path) -> None:
    """Of the same pair and scorer: one that goes by the score alone, and the one that does not."""
    records = [
        record.model_copy(update={"parts": {**record.parts, "consistency_product": record.score}})
        for record in make_records(2000)
    ]
    bound = {
        "binding": bind(*models, config()),
        "conditions": Conditions(generation=GENERATION, min_images=1, max_images=1),
    }
    found, flops = {}, []
    for method in METHODS:
        made = make_calibration(records, Promise(targets=(0.5,), method=method), **bound)
        names = {feature.name for feature in made.calibrator.features}
        made.save(tmp_path / f"{method}.json")
        asked = config(tmp_path / f"{method}.json")
        report = SGLEngine(*models, asked).run(ASK).report
        assert report.uncovered is None
        found[method] = "consistency_product" in names, report.consistency is not None
        flops.append(small_flops(models[0], models[0].encode(ASK), 3, asked))
    assert found == {"isotonic": (False, False), "logistic": (True, True)}
    assert flops[0] < flops[1]  # estimates know it too


def test_batches_and_streams_decide_alike(scripted: Any) -> None:
    engine = scripted(0.98)
    [batched] = engine.run_batch([ASK])
    decision, *_, response = engine.stream(ASK)
    assert batched.report.calibrated_probability == response.report.calibrated_probability == decision.score
    assert decision.calibration == response.report.calibration


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (replace(ASK, temperature=0.5), "temperature is 0.5, calibrated with 0.0"),
        (replace(ASK, max_new_tokens=9), "max_new_tokens is 9, calibrated with 8"),
        (replace(ASK, repetition_penalty=1.1), "repetition_penalty is 1.1, calibrated with None"),
        (replace(ASK, top_k=3), "top_k is 3, calibrated with None"),
        (replace(ASK, logit_bias={3: 1.0}), "tokens have a logit_bias"),
        (replace(ASK, max_pixels=10_000), "its pictures are shown at a size of their own"),
        (replace(ASK, stop=("x",)), "the answer has stop strings"),
        (replace(ASK, chat_template_kwargs={"x": 1}), "its chat template is given arguments"),
        (
            replace(ASK, tools=(ToolSpec("look", "", {"type": "object", "properties": {}}),)),
            "tools may be called",
        ),
        (replace(ASK, response_schema={"type": "object"}), "the answer has to satisfy a schema"),
        (Request.ask("what is it?"), "it has 0 images, calibrated with 1"),
        (Request.ask("what is it?", PICTURE, PICTURE), "it has 2 images, calibrated with 1"),
        (
            replace(ASK, messages=(Message("system", ("be brief",)), *ASK.messages)),
            "the system prompt is another one",
        ),
        (
            replace(ASK, messages=(*ASK.messages, Message("assistant", ("a",)), Message("user", ("b",)))),
            "it is a longer conversation",
        ),
    ],
)
def test_what_is_not_covered_goes_to_the_large_model(scripted: Any, request_: Request, reason: str) -> None:
    report = scripted(1.0).run(request_).report
    assert (report.route, report.uncovered, report.forced) == ("large", reason, True)
    assert report.calibrated_probability is None
    assert report.calibration is not None


@pytest.mark.parametrize("says", ["", " \n"])
def test_an_empty_answer_is_not_covered(scripted: Any, says: str) -> None:
    report = scripted(1.0, says=says).run(ASK).report
    assert (report.route, report.uncovered, report.score) == ("large", "the small answer is empty", 0.0)


def test_given_answers_are_not_covered(models: tuple[VLM, VLM], path: Path) -> None:
    engine = SGLEngine(*models, config(path, 0.1))
    report = engine.score_answers(ASK, ["a"]).report
    assert (report.route, report.uncovered) == ("large", "given answers are scored")
    assert engine.score_answers(ASK, ["a"], model="small").report.route == "small"


def test_a_forced_route_stays_forced(scripted: Any) -> None:
    never = scripted(0.1, escalate="never").run(replace(ASK, temperature=0.5)).report
    assert (never.route, never.forced) == ("small", True)
    always = scripted(0.98, escalate="always").run(ASK).report
    assert (always.route, always.forced) == ("large", True)
    assert always.calibrated_probability is not None


def test_a_budget_can_still_keep_the_small_answer(scripted: Any) -> None:
    report = scripted(0.1).run(replace(ASK, may_escalate=lambda: False)).report
    assert (report.route, report.forced) == ("small", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning": PruningConfig(keep_ratio=0.5)}, "pruning.keep_ratio is 0.5, not 0.2"),
        ({"pruning": PruningConfig(layer_fraction=0.5)}, "pruning.layer_fraction is 0.5, not 0.2"),
        ({"pruning": PruningConfig(tiles=5)}, "pruning.tiles is 5, not all"),
        ({"pruning": PruningConfig(neutral=True)}, "pruning.neutral is True, not False"),
        ({"scorer": "confidence"}, "exit.scorer is 'confidence', not 'answer_probability'"),
        ({"consistency_keep_ratio": 0.5}, "exit.consistency_keep_ratio is 0.5, not 0.05"),
        ({"empty_answers": "score"}, "exit.empty_answers is 'score', not 'escalate'"),
    ],
)
def test_other_settings_are_refused(
    models: tuple[VLM, VLM], path: Path, changes: dict[str, Any], message: str
) -> None:
    pruning = changes.pop("pruning", PruningConfig())
    settings = config(path, **changes).model_copy(update={"pruning": pruning})
    with pytest.raises(Exception, match=f"made for something else: {message}"):
        SGLEngine(*models, settings)


def test_the_laxer_setting_for_empty_answers_is_refused_and_the_stricter_is_not(
    models: tuple[VLM, VLM],
) -> None:
    lax, strict = (bind(*models, config(empty_answers=each)) for each in ("score", "escalate"))
    assert lax.differences(strict) == []
    assert strict.differences(lax) == ["exit.empty_answers is 'score', not 'escalate'"]


def test_another_pair_is_refused_and_named(models: tuple[VLM, VLM], path: Path) -> None:
    small, large = models
    with pytest.raises(
        Exception, match=r"the large model is tiny-\S+-large \(\w+\), not tiny-\S+-large \(\w+\)"
    ):
        SGLEngine(small, tiny_vlm(size="large", seed=1), config(path))
    with pytest.raises(Exception, match="the small model is"):
        SGLEngine(tiny_vlm(size="small", side_tokens=6), large, config(path))
    SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config(path))  # the same weights, loaded again


def test_another_precision_or_template_is_refused(models: tuple[VLM, VLM], path: Path) -> None:
    half, other = tiny_vlm(size="small"), tiny_vlm(size="large")
    half.model.to(torch.bfloat16)
    with pytest.raises(Exception, match="the small model computes in bfloat16, not float32"):
        SGLEngine(half, models[1], config(path))
    other.processor.chat_template += "\n"
    with pytest.raises(Exception, match="the large model's chat template or image processing is another one"):
        SGLEngine(models[0], other, config(path))


def test_a_fingerprint_sees_one_changed_layer_and_not_the_path() -> None:
    first, moved, tuned = (tiny_vlm() for _ in range(3))
    moved.name = "elsewhere"
    name, weight = next((n, w) for n, w in tuned.model.named_parameters() if n.endswith("q_proj.weight"))
    assert name
    with torch.no_grad():
        weight += 1e-3
    assert identify(moved).fingerprint == identify(first).fingerprint != identify(tuned).fingerprint


class Thinking(FakeEngine):
    """Its small model thinks, for as long as the question says, before it answers."""

    def _say(self, vlm: VLM, asked: Asked) -> SmallPassResult:
        result = super()._say(vlm, asked)
        said, count = result.generation, int(str(asked.request.messages[-1].content[-1]))
        thoughts = torch.zeros(count)
        longer = replace(
            said,
            token_ids=torch.cat((thoughts.long(), said.token_ids)),
            logprobs=torch.cat((thoughts, said.logprobs)),
            entropies=torch.cat((thoughts, said.entropies)),
            reasoning="hm",
            reasoning_tokens=count,
        )
        return replace(result, generation=longer)


def thinking(small: VLM, calibration: Path | None = None) -> Thinking:
    # The longer it thinks, the less sure it is.
    return Thinking(
        lambda _: "a",
        score=lambda request: 1 / int(str(request.messages[-1].content[-1])),
        small=small,
        large=tiny_vlm(size="large"),
        config=config(calibration),
    )


def thinker() -> VLM:
    vlm = tiny_vlm(size="small")
    vlm.thought_tags = SpeltTags("<think>", "</think>", (), ())
    return vlm


def test_an_answer_that_was_thought_about_is_judged_as_it_was_recorded(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(12)]
    lines = []
    for count, page in enumerate(pages, 1):
        page.save(tmp_path / f"{count}.png")
        lines.append(json.dumps({"question": str(count), "image": f"{count}.png"}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    vlm = thinker()
    collector = Collector(thinking(vlm), alone=False)
    data = JsonLines.read(tmp_path / "data.jsonl", answers="optional")
    found = [*collector.collect(data, tmp_path / "records.jsonl")]
    records = [each for each in found if isinstance(each, CalibrationRecord)]
    assert {each.answer_tokens for each in records} == {2}  # "a", and its end
    header = collector.header()
    made = calibrate(
        [each.model_copy(update={"agreed": True}) for each in records],
        Promise(targets=(0.5,), method="logistic"),
        binding=header.binding,
        conditions=observed_conditions(header, records),
        data="pages",
    )
    made.save(tmp_path / "calibration.json")
    engine = thinking(vlm, tmp_path / "calibration.json")
    for count, page in enumerate(pages, 1):
        report = engine.run(Request.ask(str(count), page)).report
        expected = made.calibrator.probability(records[count - 1].observation)
        assert report.calibrated_probability == expected


def test_files_that_count_thoughts_are_refused_where_their_length_matters(tmp_path: Path) -> None:
    small, large = thinker(), tiny_vlm(size="large")
    before = bind(small, large, config()).model_copy(update={"thoughts_counted": True})
    conditions = Conditions(generation=GENERATION, min_images=1, max_images=1)
    for method in ("logistic", "isotonic"):
        promise = Promise(targets=(0.1,), method=method)
        made = make_calibration(make_records(400), promise, binding=before, conditions=conditions)
        made.save(path := tmp_path / f"{method}.json")
        if method == "isotonic":  # on the score alone
            SGLEngine(small, large, config(path))
        else:
            with pytest.raises(ConfigError, match="counts the small model.s thoughts"):
                SGLEngine(small, large, config(path))


def test_a_system_prompt_is_compared_without_being_stored() -> None:
    assert system_hash(None) is None
    assert system_hash("  ") is None
    assert system_hash(" be brief\n") == system_hash("be brief") != system_hash("be long")
    assert "brief" not in str(system_hash("be brief"))


def test_a_risk_needs_a_calibration() -> None:
    with pytest.raises(ValueError, match="risk chooses among the operating points of a calibration"):
        ExitConfig(risk=0.05)


def test_a_configuration_with_a_calibration_is_plain_json(path: Path) -> None:
    settings = config(path, 0.05)
    assert EngineConfig.model_validate_json(settings.model_dump_json()) == settings


def test_sizes_of_pictures_belong_to_what_a_calibration_is_tied_to(models: tuple[VLM, VLM]) -> None:
    usual = bind(*models, EngineConfig())
    halved = bind(*models, EngineConfig(large_pictures=PictureConfig(max_pixels=10_000)))
    assert usual.differences(usual) == []
    assert usual.differences(halved) == ["large_pictures is max_pixels=10000, not the processor's own size"]
    assert halved.differences(usual) == ["large_pictures is the processor's own size, not max_pixels=10000"]
