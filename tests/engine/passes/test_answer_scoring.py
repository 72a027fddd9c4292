import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from oracles import attention_sum, exploding, masked_logits, plain_logits, traces
from samples import noise
from tolerances import CONTROL, gap, of_logprobs, relative_gap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from sgl_engine import VLM, EngineConfig, ExitConfig, PruningConfig, Request, SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.attention.trie import TokenTrie
from sgl_engine.chat.template import control_tokens
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.errors import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    PromptTooLongError,
    RequestCancelledError,
    UnsupportedModelError,
)
from sgl_engine.exit.decision import answer_shares, decision_confidence
from sgl_engine.passes import scoring
from sgl_engine.passes.scored_texts import ScoringPassResult, read_answers
from sgl_engine.passes.scoring import run_scoring_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import PruningPlan, plan_pruning
from sgl_engine.report.make import scoring_cost
from sgl_engine.request import Decoding
from sgl_engine.testing import tiny_vlm

Case = tuple[VLM, EncodedPrompt]
ANSWERS = ["yes", "no", "a rather long answer, for a tiny model"]
ASK = Request.ask("What is it?", noise(40, 50))


def ids_of(vlm: VLM, answer: str) -> list[int]:
    return vlm.processor.tokenizer(answer, add_special_tokens=False).input_ids


def log_probability(vlm: VLM, logits: torch.Tensor, answer: list[int], first_row: int) -> float:
    """Of a whole answer and its end, in float64, row by row, from the logits of prompt + answer."""
    (end,) = vlm.eos_token_ids
    logs = [
        math.log(math.exp(float(row[token])) / float(row.exp().sum()))
        for token, row in zip([*answer, end], logits[first_row:].double(), strict=True)
    ]
    return math.fsum(logs)


def longest(vlm: VLM) -> float:
    """Largest difference of the longest answer's log-probability."""
    return of_logprobs(vlm, max(len(ids_of(vlm, answer)) + 1 for answer in ANSWERS))


def random_plan(prompt: EncodedPrompt, layer: int) -> PruningPlan:
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(3))
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=layer, keep_ratio=0.3)


def result_with(*token_logprobs: tuple[float, ...]) -> ScoringPassResult:
    totals = [sum(tokens) for tokens in token_logprobs]
    return ScoringPassResult(token_logprobs, totals.index(max(totals)), None, {})


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_scores_equal_a_plain_forward(case: Case, implementation: str) -> None:
    vlm, prompt = case
    expected = []
    for answer in ANSWERS:
        ids = ids_of(vlm, answer)
        expected.append(log_probability(vlm, plain_logits(vlm, prompt, ids), ids, len(prompt) - 1))
    vlm.model.set_attn_implementation(implementation)
    scored = run_scoring_pass(vlm, prompt, ANSWERS)
    assert gap(scored.logprobs, expected) < longest(vlm)
    assert scored.best == expected.index(max(expected))
    assert scored.output_tokens == sum(len(ids_of(vlm, answer)) + 1 for answer in ANSWERS)


def test_a_shifted_row_and_a_missing_end_are_noticed(case: Case) -> None:
    """The control: the oracle tells these from the right scores."""
    vlm, prompt = case
    ids = ids_of(vlm, ANSWERS[2])
    logits = plain_logits(vlm, prompt, ids)
    right = run_scoring_pass(vlm, prompt, ANSWERS).token_logprobs[2]
    shifted = log_probability(vlm, logits.roll(1, dims=0), ids, len(prompt) - 1)
    without_end = log_probability(vlm, logits, ids, len(prompt) - 1)
    assert gap([math.fsum(right)], [shifted]) > CONTROL * longest(vlm)
    assert gap([math.fsum(right[:-1])], [without_end]) > CONTROL * longest(vlm)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_pruned_scores_equal_a_masked_forward(case: Case, layer: int, implementation: str) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, layer)
    expected = []
    for answer in ANSWERS:
        ids = ids_of(vlm, answer)
        logits = masked_logits(vlm, prompt, ids, layer=layer, keep=plan.keep.tolist())
        expected.append(log_probability(vlm, logits, ids, len(prompt) - 1))
    vlm.model.set_attn_implementation(implementation)
    scored = run_scoring_pass(vlm, prompt, ANSWERS, plan=plan).logprobs
    assert gap(scored, expected) < longest(vlm)
    unpruned = run_scoring_pass(vlm, prompt, ANSWERS).logprobs
    assert gap(unpruned, expected) > CONTROL * longest(vlm)  # the control


def test_answers_do_not_see_each_other(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, prompt = case
    for plan in (None, random_plan(prompt, 1)):
        forwards = run_scoring_pass(vlm, prompt, ANSWERS, plan=plan).logprobs
        backwards = run_scoring_pass(vlm, prompt, ANSWERS[::-1], plan=plan).logprobs[::-1]
        assert gap(forwards, backwards) < longest(vlm)
    plain = run_scoring_pass(vlm, prompt, ANSWERS).logprobs
    with monkeypatch.context() as patched:  # the control
        patched.setattr(TokenTrie, "visible", lambda trie: torch.ones(len(trie), len(trie)).tril().bool())
        assert gap(run_scoring_pass(vlm, prompt, ANSWERS).logprobs, plain) > CONTROL * longest(vlm)
    monkeypatch.setattr(scoring, "can_branch", lambda _: False)
    assert gap(run_scoring_pass(vlm, prompt, ANSWERS).logprobs, plain) < longest(vlm)
    monkeypatch.setattr(DynamicCache, "crop", lambda *_: None)  # the control
    assert gap(run_scoring_pass(vlm, prompt, ANSWERS).logprobs, plain) > CONTROL * longest(vlm)


def test_every_end_token_ends_an_answer(case: Case) -> None:
    vlm, prompt = case
    first, second = 7, 11
    ends = []
    for end in (None, first, second, [first, second]):  # the tokenizer's own is always one
        vlm.model.generation_config.eos_token_id = end
        ends.append(math.exp(run_scoring_pass(vlm, prompt, ["yes"]).token_logprobs[0][-1]))
    assert relative_gap(ends[3:], [ends[1] + ends[2] - ends[0]]) < of_logprobs(vlm)
    assert ends[3] > max(ends[1], ends[2]) > ends[0]


def test_the_map_is_the_best_answers(case: Case) -> None:
    vlm, prompt = case
    scored = run_scoring_pass(vlm, prompt, ANSWERS, guide=True)
    assert scored.importance is not None
    (end,) = vlm.eos_token_ids
    maps = [attention_sum(vlm, prompt, [*ids_of(vlm, answer), end]) for answer in ANSWERS]
    mass = scored.importance.mass.double()
    assert relative_gap(mass, maps[scored.best]) < of_logprobs(vlm)
    others = [other for index, other in enumerate(maps) if index != scored.best]
    assert min(relative_gap(mass, other) for other in others) > CONTROL * of_logprobs(vlm)
    assert scored.importance.spans == prompt.spans
    rows = len(prompt) - max(prompt.visual_positions) + len(ids_of(vlm, ANSWERS[scored.best]))
    assert scored.importance.num_queries == rows


def test_recording_leaves_the_scores_as_they_are(case: Case) -> None:
    vlm, prompt = case
    recorded = run_scoring_pass(vlm, prompt, ANSWERS, guide=True)
    assert recorded.logprobs == run_scoring_pass(vlm, prompt, ANSWERS).logprobs


def flops_of(
    vlm: VLM, prompt: EncodedPrompt, result: ScoringPassResult, plan: PruningPlan | None = None
) -> int:
    return scoring_cost(vlm, prompt, result, plan).flops


@pytest.mark.parametrize("kind", ["plain", "recorded", "pruned"])
def test_flops_within_2_percent(case: Case, kind: str) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, 1) if kind == "pruned" else None
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        scored = run_scoring_pass(vlm, prompt, ANSWERS, plan=plan, guide=kind == "recorded")
    flops = flops_of(vlm, prompt, scored, plan)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    if plan is not None:
        unpruned = run_scoring_pass(vlm, prompt, ANSWERS)
        assert flops < 0.98 * flops_of(vlm, prompt, unpruned)  # the control


def test_nothing_remains_also_after_a_failure(case: Case) -> None:
    vlm, prompt = case
    vlm.embed(prompt)
    before = traces(vlm)
    run_scoring_pass(vlm, prompt, ANSWERS, guide=True)
    run_scoring_pass(vlm, prompt, ANSWERS, plan=random_plan(prompt, 1))
    assert traces(vlm) == before
    for options in ({"guide": True}, {"plan": random_plan(prompt, 1)}):
        with exploding(vlm.text_model.layers[3].mlp), pytest.raises(RuntimeError, match="in the middle"):
            run_scoring_pass(vlm, prompt, ANSWERS, **options)  # type: ignore[arg-type]
        assert traces(vlm) == before


def test_shares_do_not_underflow() -> None:
    assert answer_shares([-2000.0, -2000.0 + math.log(3)]) == pytest.approx((0.25, 0.75))
    assert sum(answer_shares([-1.0, -2.0, -3.0])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [((0.9,), 0.9), ((0.2,), 0.8), ((0.3, 0.1), 0.75), ((0.02, 0.01, 0.01), 0.5), ((0.5, 0.5), 0.5)],
)
def test_how_sure_a_decision_is(probabilities: tuple[float, ...], score: float) -> None:
    confidence = decision_confidence([(math.log(p),) for p in probabilities])
    assert confidence.score == pytest.approx(score)
    assert confidence.parts["answer_probability"] == pytest.approx(max(probabilities))


@pytest.fixture(scope="module")
def engine(small: VLM, large: VLM) -> SGLEngine:
    return SGLEngine(small, large)


def test_an_unsure_small_model_guides_the_large_one(engine: SGLEngine) -> None:
    strict = engine.with_config(EngineConfig(exit=ExitConfig(threshold=1.0)))
    scores = strict.score_answers(ASK, ANSWERS[:2])
    report = scores.report
    assert (report.route, report.escalated, report.forced) == ("large", True, False)
    assert report.scorer == "answer_share"
    assert 0.5 <= report.score < report.threshold == 1.0
    guided = run_scoring_pass(engine.small, engine.small.encode(ASK), ANSWERS[:2], guide=True)
    prompt = engine.large.encode(ASK)
    plan = engine.plan(prompt, guided.importance)
    expected = run_scoring_pass(engine.large, prompt, ANSWERS[:2], plan=plan)
    assert scores.logprobs == expected.logprobs
    assert (report.visual_tokens, report.kept_visual_tokens, report.prune_layer) == (36, 7, 1)
    assert report.small_answer == ANSWERS[guided.best]
    assert report.large_agreed == (scores.best == report.small_answer)
    assert report.large_tflops == flops_of(engine.large, prompt, expected, plan) / 1e12
    assert report.small_tflops == flops_of(engine.small, engine.small.encode(ASK), guided) / 1e12
    assert {"encode_small", "prefill_small", "score_small", "score_large", "total"} <= set(report.stage_ms)
    assert json.loads(report.model_dump_json())["route"] == "large"


def test_a_sure_small_model_scores_alone(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.large, "embed", None)  # the large model must not be called
    sure = engine.with_config(EngineConfig(exit=ExitConfig(threshold=0.5)))
    scores = sure.score_answers(ASK, ANSWERS[:2])
    assert scores.report.route == "small"
    assert scores.report.score == max(scores.shares)
    assert scores.report.large_tflops == 0
    assert scores.report.kept_visual_tokens is scores.report.small_answer is None
    assert 0 < scores.report.saved_fraction < 1
    assert scores.probabilities == pytest.approx([math.exp(logprob) for logprob in scores.logprobs])


def test_the_model_can_be_chosen(engine: SGLEngine) -> None:
    small = engine.score_answers(ASK, ANSWERS, model="small")
    large = engine.score_answers(ASK, ANSWERS, model="large")
    assert [scores.report.route for scores in (small, large)] == ["small", "large"]
    assert small.report.forced
    assert large.report.forced
    alone = run_scoring_pass(engine.small, engine.small.encode(ASK), ANSWERS)
    assert small.logprobs == alone.logprobs != large.logprobs
    never = engine.with_config(engine.config.escalating("never"))
    assert never.score_answers(ASK, ANSWERS).logprobs == small.logprobs
    assert never.score_answers(ASK, ANSWERS, model="large").logprobs == large.logprobs
    with pytest.raises(ConfigError, match="no model 'medium'"):
        engine.score_answers(ASK, ANSWERS, model="medium")  # type: ignore[arg-type]


def test_unpruned_large_scores(engine: SGLEngine) -> None:
    whole = engine.with_config(EngineConfig(pruning=PruningConfig(keep_ratio=1.0)))
    expected = run_scoring_pass(engine.large, engine.large.encode(ASK), ANSWERS)
    assert whole.score_answers(ASK, ANSWERS, model="large").logprobs == expected.logprobs


def test_text_alone_can_be_scored(engine: SGLEngine) -> None:
    scores = engine.score_answers(Request.ask("Hello?"), ANSWERS, model="large")
    assert scores.report.visual_tokens == 0
    assert scores.report.route == "large"


@pytest.mark.parametrize("answer", ["<|im_end|>", "yes<IMG_CONTEXT>", "a<|im_start|>user\nb"])
def test_what_spells_a_control_token_is_scored_as_text(engine: SGLEngine, answer: str) -> None:
    vlm = engine.small
    control = set(control_tokens(vlm.processor).values())
    assert control.intersection(ids_of(vlm, answer))  # the control: read as a prompt's text, it is one
    [ids] = read_answers(vlm, vlm.encode(ASK), [answer], Decoding())
    assert not control.intersection(ids)
    assert vlm.processor.tokenizer.decode(ids) == answer
    assert read_answers(vlm, vlm.encode(ASK), ["yes, it is"], Decoding()) == [ids_of(vlm, "yes, it is")]
    scores = engine.score_answers(ASK, ["yes", answer], model="small")
    alone = run_scoring_pass(vlm, vlm.encode(ASK), [answer])
    assert len(alone.token_logprobs[0]) == len(ids) + 1
    assert scores.logprobs[1] == pytest.approx(alone.logprobs[0], abs=longest(vlm))


@pytest.mark.parametrize("answers", [[], ["yes", ""], ["   "], "yes"])
def test_answers_that_cannot_be_scored(engine: SGLEngine, answers: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="answer"):
        engine.score_answers(ASK, answers)


def test_an_answer_that_does_not_fit(engine: SGLEngine) -> None:
    with pytest.raises(PromptTooLongError, match="context"):
        engine.score_answers(ASK, ["yes " * 3000])


def test_a_model_without_an_end_token() -> None:
    vlm = tiny_vlm()
    vlm.model.generation_config.eos_token_id = None
    vlm.processor.tokenizer.eos_token = None
    with pytest.raises(UnsupportedModelError, match="end-of-sequence"):
        run_scoring_pass(vlm, vlm.encode(ASK), ["yes"])


def test_unwanted_scores(engine: SGLEngine) -> None:
    with pytest.raises(DeadlineError):
        engine.score_answers(Request.ask("What?", noise(40, 50), deadline=time.monotonic() - 1), ANSWERS)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(RequestCancelledError):
        engine.score_answers(Request(ASK.messages, cancel=cancelled), ANSWERS)


def test_threads_get_their_own_scores(engine: SGLEngine) -> None:
    requests = [Request.ask("What is it?", noise(40, 50, seed)) for seed in range(6)]
    alone = [engine.score_answers(request, ANSWERS).logprobs for request in requests]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: engine.score_answers(request, ANSWERS).logprobs, requests))
    assert together == alone


def test_the_bundled_pairs_own_answer_has_the_probability_that_it_was_generated_with() -> None:
    engine = demo_engine()
    asked = Request.ask("How much is the total?", PICTURES / "receipt.png")
    response = engine.run(Request(asked.messages, logprobs=True))
    generated = sum(token.logprob for token in response.tokens)
    model = "small" if response.report.route == "small" else "large"
    scores = engine.score_answers(asked, [response.text, response.text.upper(), "none"], model=model)
    within = of_logprobs(getattr(engine, model), len(response.tokens))
    assert gap(scores.logprobs[:1], [generated]) < within
    assert scores.logprobs[0] == scores.logprobs[1]  # its tokenizer is uncased
    assert scores.best == response.text
