from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import exploding, masked_logits, traces
from samples import REQUESTS
from tolerances import CONTROL, gap, of_logits

from sgl_engine import VLM
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import ConfigError, IncompatiblePairError
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt, VisualSpan
from sgl_engine.pruning import patch as pruning
from sgl_engine.pruning import plan_pruning, prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan, keep_everything
from sgl_engine.testing import tiny_vlm

Case = tuple[VLM, EncodedPrompt]
LAYERS = 6
ANSWER = [20, 35, 11, 60, 42]


def random_plan(prompt: EncodedPrompt, layer: int, keep_ratio: float = 0.3) -> PruningPlan:
    mass = torch.rand(prompt.num_visual_tokens, generator=torch.Generator().manual_seed(3))
    return plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=layer, keep_ratio=keep_ratio)


def stepwise_logits(
    vlm: VLM, prompt: EncodedPrompt, plan: PruningPlan, chunks: list[list[int]]
) -> torch.Tensor:
    """Prefill, then chunks of given tokens on the cache; logits of the last prompt row and of all tokens."""
    cache = vlm.new_cache()
    with prune_visual_tokens(vlm, plan):
        found = [vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=cache)]
        position = len(prompt)
        for chunk in chunks:
            step = vlm.embed_tokens(torch.tensor(chunk))
            found.append(
                vlm.forward(step, prompt=prompt, first_position=position, cache=cache, logit_rows=len(chunk))
            )
            position += len(chunk)
    return torch.cat(found)


STEPS = {
    "one by one": [[token] for token in ANSWER],
    "several at once": [ANSWER[:1], ANSWER[1:4], ANSWER[4:]],
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1, LAYERS // 2])
@pytest.mark.parametrize("steps", STEPS)
def test_pruned_logits_equal_a_masked_forward(
    case: Case, implementation: str, layer: int, steps: str
) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, layer)
    expected = masked_logits(vlm, prompt, ANSWER, layer=layer, keep=plan.keep.tolist())[len(prompt) - 1 :]
    vlm.model.set_attn_implementation(implementation)
    assert gap(stepwise_logits(vlm, prompt, plan, STEPS[steps]), expected) < of_logits(vlm)


@pytest.mark.parametrize("layer", [0, 1, LAYERS // 2])
def test_greedy_answer_equals_the_masked_models(case: Case, layer: int) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, layer)
    result = run_large_pass(vlm, AnswerTask(prompt, 6, stop_at_eos=False), plan)
    answer = result.generation.token_ids.tolist()
    # The masked model says each token behind those before it, so it is its own greedy answer, too.
    logits = masked_logits(vlm, prompt, answer[:-1], layer=layer, keep=plan.keep.tolist())
    assert logits[len(prompt) - 1 :].argmax(dim=-1).tolist() == answer
    full, pruned = len(prompt) + 5, len(plan.keep) + 5
    assert result.cache_tokens == (full,) * layer + (pruned,) * (LAYERS - layer)


@pytest.mark.parametrize("layer", [0, 1, LAYERS // 2])
def test_renumbered_positions_are_noticed(case: Case, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, layer)
    expected = masked_logits(vlm, prompt, ANSWER, layer=layer, keep=plan.keep.tolist())[len(prompt) - 1 :]
    original = pruning._prune_first_forward

    def renumber(plan: pruning.KeptColumns, index: int, args: Any, kwargs: Any) -> Any:
        cos, sin = kwargs["position_embeddings"]
        args, pruned = original(plan, index, args, kwargs)
        kept = pruned["position_embeddings"][0].shape[-2]
        return args, {**pruned, "position_embeddings": (cos[..., :kept, :], sin[..., :kept, :])}

    monkeypatch.setattr(pruning, "_prune_first_forward", renumber)
    got = stepwise_logits(vlm, prompt, plan, STEPS["one by one"])
    assert gap(got, expected) > CONTROL * of_logits(vlm)


@pytest.mark.parametrize("layer", [0, 1, LAYERS // 2])
def test_positions_from_the_cache_length_are_noticed(case: Case, layer: int) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, layer)
    expected = masked_logits(vlm, prompt, ANSWER, layer=layer, keep=plan.keep.tolist())[-1]
    cache = vlm.new_cache()
    with prune_visual_tokens(vlm, plan):
        vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=cache)
        for token in ANSWER:
            shortened = cache.get_seq_length(LAYERS - 1)
            got = vlm.forward(
                vlm.embed_tokens(torch.tensor([token])), prompt=prompt, first_position=shortened, cache=cache
            )[0]
    assert gap(got, expected) > CONTROL * of_logits(vlm)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_mask_of_layer_0_does_not_do_for_a_ragged_cache(
    case: Case, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, prompt = case
    vlm.model.set_attn_implementation(implementation)
    original = pruning._layer_hook

    def with_mask_of_layer_0(plan: pruning.KeptColumns, index: int, *others: Any) -> Any:
        hook = original(plan, index, *others)

        def keep_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            first = kwargs["cache"].get_seq_length(index) == 0
            return hook(module, args, kwargs) if first else (args, kwargs)

        return keep_mask

    monkeypatch.setattr(pruning, "_layer_hook", with_mask_of_layer_0)
    with pytest.raises(RuntimeError, match="size|shape|expand"):
        stepwise_logits(vlm, prompt, random_plan(prompt, 1), STEPS["several at once"])


def test_a_finished_or_failed_pass_leaves_nothing(case: Case) -> None:
    vlm, prompt = case
    plan = random_plan(prompt, 1)
    vlm.embed(prompt)
    before = traces(vlm)
    run_large_pass(vlm, AnswerTask(prompt, 2), plan)
    assert traces(vlm) == before
    with prune_visual_tokens(vlm, plan):
        assert traces(vlm) != before  # the control: hooks are seen

    with exploding(vlm.text_model.layers[3].mlp), pytest.raises(RuntimeError, match="in the middle"):
        run_large_pass(vlm, AnswerTask(prompt, 2), plan)
    assert traces(vlm) == before


def test_a_plan_that_keeps_everything_hooks_nothing(case: Case) -> None:
    vlm, prompt = case
    before = traces(vlm)
    with prune_visual_tokens(vlm, random_plan(prompt, 1, keep_ratio=1.0)):
        assert traces(vlm) == before


def grid_prompt(sizes: list[int]) -> EncodedPrompt:
    """A prompt of one row of visual tokens per size, three text tokens before, between and after."""
    spans, position = [], 3
    for image, size in enumerate(sizes):
        spans.append(VisualSpan(image, position, position + size, (1, size), (0.0, 0.0, 1.0, 1.0)))
        position += size + 3
    return EncodedPrompt({}, torch.zeros(1, position, dtype=torch.int64), tuple(spans))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    keep_ratio=st.floats(0.01, 1.0),
    ranks=st.lists(st.integers(0, 3), min_size=27, max_size=27),
)
def test_plans_keep_all_text_and_the_best_visual_tokens(
    sizes: list[int], keep_ratio: float, ranks: list[int]
) -> None:
    prompt = grid_prompt(sizes)
    total = sum(sizes)
    mass = torch.tensor(ranks[:total], dtype=torch.float32)
    plan = plan_pruning(prompt, ImportanceMap(mass, prompt.spans, 1), layer=1, keep_ratio=keep_ratio)
    kept = max(1, int(total * keep_ratio))
    best = sorted(range(total), key=lambda index: (-ranks[index], index))[:kept]  # ties: the lower index
    visual = [position for span in prompt.spans for position in range(span.start, span.stop)]
    text = set(range(len(prompt))) - set(visual)
    assert plan.keep.tolist() == sorted(text | {visual[index] for index in best})
    assert (plan.visual_tokens, plan.kept_visual_tokens) == (total, kept)
    assert plan.prunes == (kept < total)


def test_a_map_of_other_grids_is_refused() -> None:
    prompt, other = grid_prompt([4]), grid_prompt([2, 2])
    importance = ImportanceMap(torch.rand(4), other.spans, 1)
    with pytest.raises(IncompatiblePairError, match="2 images in 2 tiles of 1 x 2 tokens"):
        plan_pruning(prompt, importance, layer=0, keep_ratio=0.5)


@pytest.mark.parametrize(("layer", "keep_ratio"), [(-1, 0.5), (0, 0.0), (0, 1.5)])
def test_impossible_plans_are_refused(layer: int, keep_ratio: float) -> None:
    prompt = grid_prompt([4])
    with pytest.raises(ConfigError, match="keep_ratio in"):
        plan_pruning(
            prompt, ImportanceMap(torch.rand(4), prompt.spans, 1), layer=layer, keep_ratio=keep_ratio
        )


def test_a_layer_that_does_not_exist_is_refused() -> None:
    vlm = tiny_vlm(size="large")
    prompt = vlm.encode(REQUESTS["one image"])
    with pytest.raises(ConfigError, match=f"layer {LAYERS}; it can at 0 to {LAYERS - 1}"):
        run_large_pass(vlm, AnswerTask(prompt, 1), random_plan(prompt, LAYERS))


def test_keep_everything_is_the_plain_model() -> None:
    vlm = tiny_vlm(size="large")
    prompt = vlm.encode(REQUESTS["one image"])
    plan = keep_everything(prompt)
    assert plan.keep.tolist() == list(range(len(prompt)))
    alone = run_large_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False), plan)
    small = run_small_pass(vlm, AnswerTask(prompt, 4, stop_at_eos=False))
    assert torch.equal(alone.generation.token_ids, small.generation.token_ids)
