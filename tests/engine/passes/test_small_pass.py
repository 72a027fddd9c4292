import math

import pytest
import torch
from oracles import masked_logits, plain_logits
from samples import REQUESTS
from tolerances import CONTROL, gap, of_logprobs

from sgl_engine import VLM, Request
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_small_pass
from sgl_engine.passes.small import answer_logprobs
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning import plan_pruning
from sgl_engine.testing import tiny_vlm

Case = tuple[VLM, EncodedPrompt]


def by_hand(logits: torch.Tensor, answer: list[int], first_row: int) -> list[float]:
    """Probability of each answer token: exp(x) / sum(exp(x)), in float64, row by row."""
    found = []
    for step, token in enumerate(answer):
        weights = [math.exp(value) for value in logits[first_row + step].double().tolist()]
        found.append(weights[token] / sum(weights))
    return found


@pytest.mark.parametrize("keep_ratio", [0.05, 0.4])
def test_confidence_and_consistency_equal_values_from_logits(case: Case, keep_ratio: float) -> None:
    vlm, prompt = case
    result = run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), consistency_keep_ratio=keep_ratio)
    answer, row = result.generation.token_ids.tolist(), len(prompt) - 1
    chosen = by_hand(plain_logits(vlm, prompt, answer), answer, row)
    assert result.importance is not None
    plan = plan_pruning(prompt, result.importance, layer=0, keep_ratio=keep_ratio)
    seen = masked_logits(vlm, prompt, answer, layer=0, keep=plan.keep.tolist())
    consistent = by_hand(seen, answer, row)
    parts = result.parts
    within = of_logprobs(vlm)
    assert parts["confidence"] == pytest.approx(math.prod(chosen) ** (1 / 5), rel=within)
    assert parts["consistency_product"] == pytest.approx(math.prod(consistent), rel=5 * within)
    assert parts["consistency_geometric_mean"] == pytest.approx(math.prod(consistent) ** (1 / 5), rel=within)


def test_the_unpruned_prompt_gives_another_consistency(case: Case) -> None:
    """The control: without pruning, consistency is confidence."""
    vlm, prompt = case
    whole = run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False), consistency_keep_ratio=1.0)
    little = run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False))
    parts = whole.parts
    assert parts["consistency_geometric_mean"] == pytest.approx(parts["confidence"], rel=of_logprobs(vlm))
    assert little.parts["consistency_geometric_mean"] != pytest.approx(
        parts["confidence"], rel=CONTROL * of_logprobs(vlm)
    )


def test_the_end_of_sequence_step_counts() -> None:
    vlm = tiny_vlm()
    prompt = vlm.encode(REQUESTS["one image"])
    free = run_small_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False)).generation
    vlm.model.generation_config.eos_token_id = int(free.token_ids[2])
    ended = run_small_pass(vlm, AnswerTask(prompt, 4))
    assert torch.equal(ended.generation.logprobs, free.logprobs[:3])
    assert ended.parts["confidence"] == pytest.approx(float(free.logprobs[:3].mean().exp()))


def test_500_tokens_do_not_underflow() -> None:
    vlm = tiny_vlm()
    prompt = vlm.encode(REQUESTS["one image"])
    result = run_small_pass(vlm, AnswerTask(prompt, 500, stop_at_eos=False))
    assert len(result.generation) == 500
    assert float(result.generation.logprobs.exp().prod()) == 0.0  # what float32 makes of it
    parts = result.parts
    assert parts["confidence"] == pytest.approx(float(result.generation.logprobs.double().mean().exp()))
    assert 0.001 < parts["consistency_geometric_mean"] < 1


def test_the_vision_tower_runs_once() -> None:
    vlm = tiny_vlm()
    prompt = vlm.encode(REQUESTS["images with text between"])
    calls: list[int] = []
    vlm.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    run_small_pass(vlm, AnswerTask(prompt, 3))
    assert len(calls) == 1


def test_without_an_image_there_is_confidence_alone() -> None:
    vlm = tiny_vlm()
    result = run_small_pass(vlm, AnswerTask(vlm.encode(Request.ask("Hello?")), 3, stop_at_eos=False))
    assert result.importance is None
    assert result.consistency_plan is None
    parts = {"confidence", "answer_probability", "min_token_probability", "mean_entropy"}
    assert set(result.parts) == parts


def test_teacher_forcing_reuses_the_answers_own_rows() -> None:
    """Row S - 1 + t predicts token t; a shift by one is noticed."""
    vlm = tiny_vlm()
    prompt = vlm.encode(REQUESTS["one image"])
    result = run_small_pass(vlm, AnswerTask(prompt, 5, stop_at_eos=False))
    assert result.importance is not None
    plan = plan_pruning(prompt, result.importance, layer=0, keep_ratio=1.0)
    forced = answer_logprobs(vlm, prompt, vlm.embed(prompt), result.generation, plan)
    assert gap(forced, result.generation.logprobs) < of_logprobs(vlm)
    assert gap(forced[1:], result.generation.logprobs[:-1]) > CONTROL * of_logprobs(vlm)
