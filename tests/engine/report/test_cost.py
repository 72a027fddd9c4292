from dataclasses import replace

import pytest
import torch
from samples import REQUESTS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sgl_engine import PRESETS, VLM, Request
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_pass, run_neutral_batch, run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning import plan_pruning
from sgl_engine.pruning.plan import PruningPlan, keep_everything
from sgl_engine.report.cost import (
    answer_flops,
    average_retention,
    pass_flops,
    recorded_prompt_flops,
    small_pass_flops,
)

Case = tuple[VLM, EncodedPrompt]
TOKENS = 7


def plan_for(prompt: EncodedPrompt, layer: int, keep_ratio: float) -> PruningPlan:
    mass = torch.arange(prompt.num_visual_tokens, dtype=torch.float32)
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=layer, keep_ratio=keep_ratio)


def counted(work: object) -> int:
    """What torch counts; attention by its matrix products, which is the one kernel that it counts on CPUs."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize(("layer", "keep_ratio"), [(0, 1.0), (0, 0.2), (1, 0.2), (3, 0.5)])
def test_large_pass_within_2_percent(case: Case, layer: int, keep_ratio: float) -> None:
    vlm, prompt = case
    plan = plan_for(prompt, layer, keep_ratio)
    expected = counted(lambda: run_large_pass(vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False), plan))
    patches = vlm.tower_patches(prompt)
    got = answer_flops(vlm.shape, patches=patches, prompt_tokens=len(prompt), output_tokens=TOKENS, plan=plan)
    assert got == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("wrong", [slice(0, TOKENS), slice(2, 3), slice(0)])
def test_a_checked_draft_within_2_percent(case: Case, wrong: slice) -> None:
    """What is fed in vain is counted as well."""
    vlm, prompt = case
    plan = plan_for(prompt, 1, 0.2)
    sizes = {"patches": vlm.tower_patches(prompt), "prompt_tokens": len(prompt), "plan": plan}
    task = AnswerTask(prompt, TOKENS, stop_at_eos=False)
    draft = run_large_pass(vlm, task, plan).generation.token_ids.tolist()
    draft[wrong] = [min(set(range(90)) - set(draft))] * len(draft[wrong])
    found = []
    drafted = replace(task, draft=tuple(draft))
    counted_flops = counted(lambda: found.append(run_large_pass(vlm, drafted, plan)))
    got = pass_flops(vlm.shape, **sizes, fed=found[0].fed)
    assert got == pytest.approx(counted_flops, rel=0.02)
    if found[0].accepted_tokens == 0:  # the control: as if it had not been fed
        assert got > 1.05 * answer_flops(vlm.shape, **sizes, output_tokens=TOKENS)


def test_a_pass_without_a_draft_is_an_answer(case: Case) -> None:
    vlm, prompt = case
    plan = plan_for(prompt, 1, 0.2)
    sizes = {"patches": vlm.tower_patches(prompt), "prompt_tokens": len(prompt), "plan": plan}
    ran = run_large_pass(vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False), plan)
    assert pass_flops(vlm.shape, **sizes, fed=ran.fed) == answer_flops(
        vlm.shape, **sizes, output_tokens=TOKENS
    )


@pytest.mark.parametrize("consistency", [0.05, None])
def test_small_pass_within_2_percent(case: Case, consistency: float | None) -> None:
    vlm, prompt = case
    task = AnswerTask(prompt, TOKENS, stop_at_eos=False)
    run = lambda: run_small_pass(vlm, task, consistency_keep_ratio=consistency)  # noqa: E731
    assert small_pass_flops(
        vlm.shape, patches=vlm.tower_patches(prompt), prompt=prompt, result=run()
    ) == pytest.approx(counted(run), rel=0.02)


def test_a_neutral_question_within_2_percent(case: Case) -> None:
    vlm, prompt = case
    found = []
    expected = counted(lambda: found.extend(run_neutral_batch(vlm, [AnswerTask(prompt, 1)])))
    sizes = {"patches": vlm.tower_patches(prompt), "prompt_tokens": len(prompt)}
    queries = found[0].importance.num_queries
    assert recorded_prompt_flops(vlm.shape, **sizes, queries=queries) == pytest.approx(expected, rel=0.02)


def test_text_alone_within_2_percent(small: VLM) -> None:
    prompt = small.encode(Request.ask("Hello?"))
    run = lambda: run_small_pass(small, AnswerTask(prompt, TOKENS, stop_at_eos=False))  # noqa: E731
    got = small_pass_flops(small.shape, patches=(), prompt=prompt, result=run())
    assert got == pytest.approx(counted(run), rel=0.02)


def test_pruning_shows_in_the_count(case: Case) -> None:
    """The control: counting the pruned pass as unpruned is off by more than 2 percent."""
    vlm, prompt = case
    sizes = {"patches": vlm.tower_patches(prompt), "prompt_tokens": len(prompt), "output_tokens": TOKENS}
    pruned = answer_flops(vlm.shape, **sizes, plan=plan_for(prompt, 1, 0.2))
    assert pruned < 0.98 * answer_flops(vlm.shape, **sizes)
    assert answer_flops(vlm.shape, **sizes, plan=keep_everything(prompt)) == answer_flops(vlm.shape, **sizes)


@pytest.mark.parametrize(("preset", "expected"), [("64%", 0.64), ("35%", 0.35), ("9%", 0.09)])
def test_average_retention_of_the_presets(preset: str, expected: float, small: VLM) -> None:
    """48 layers, as in the paper."""
    pruning = PRESETS[preset]
    plan = PruningPlan(torch.empty(0), pruning.layer(48), 1100, 1000, int(1000 * pruning.keep_ratio), 1.0)
    assert average_retention(plan, 48) == pytest.approx(expected, abs=0.01)


def test_average_retention_without_an_image(small: VLM) -> None:
    prompt = small.encode(Request.ask("Hello?"))
    assert average_retention(keep_everything(prompt), 6) == 1.0
    assert average_retention(keep_everything(small.encode(REQUESTS["one image"])), 6) == 1.0
