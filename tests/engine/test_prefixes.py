"""Second questions about a picture, in every family: as a run from scratch, and bit for bit a first run."""

from functools import cache
from typing import Any

import pytest
import torch
from samples import noise
from test_family_exactness import (
    LAYERS,
    attention_of,
    families,
    implementations,
    model,
    random_plan,
    rebuilt,
)

from sgl_engine import VLM, Message, Request, run_large_pass, run_small_pass
from sgl_engine.config import ReuseConfig
from sgl_engine.pruning import keep_everything
from sgl_engine.types import EncodedPrompt, ImagePart, LargePassResult, SmallPassResult

REUSE = ReuseConfig(min_prefix_tokens=1)
TOKENS = 5
PICTURES = (noise(70, 40), noise(33, 64, 7))
# Windows, recurrences and DeepStack's planes decide how much of a prompt can be reused.
LAYERS_K = (1, 2, 3, None)
NO_PREFIX = {"gemma3"}
PLANES = {"qwen3_vl": 2}  # layers below which DeepStack adds features


def one_picture(question: str) -> Request:
    return Request.ask(question, PICTURES[0])


def two_pictures(question: str) -> Request:
    """With text between them, and before the first."""
    parts = ("Look:", ImagePart(PICTURES[0]), "and", ImagePart(PICTURES[1]), question)
    return Request((Message("user", parts),))


ASKED = {"one picture": one_picture, "two pictures": two_pictures}
asked = pytest.mark.parametrize("asked", ASKED)


@cache
def encoded(family: str, asked: str, question: str) -> EncodedPrompt:
    return model(family).encode(ASKED[asked](question))


def small(vlm: VLM, prompt: EncodedPrompt, **options: Any) -> SmallPassResult:
    return run_small_pass(vlm, prompt, max_new_tokens=TOKENS, stop_at_eos=False, **options)


def large(vlm: VLM, prompt: EncodedPrompt, layer: int | None, **options: Any) -> LargePassResult:
    plan = keep_everything(prompt) if layer is None else random_plan(prompt, layer)
    return run_large_pass(vlm, prompt, plan, max_new_tokens=TOKENS, stop_at_eos=False, **options)


def same_small(got: SmallPassResult, expected: SmallPassResult) -> None:
    assert torch.equal(got.generation.token_ids, expected.generation.token_ids)
    assert got.generation.logprobs.tolist() == pytest.approx(expected.generation.logprobs.tolist(), abs=1e-4)
    assert got.importance is not None
    assert expected.importance is not None
    assert got.importance.mass == pytest.approx(expected.importance.mass, rel=1e-4, abs=1e-6)
    assert got.importance.num_queries == expected.importance.num_queries
    assert dict(got.confidence.parts) == pytest.approx(dict(expected.confidence.parts), rel=1e-3, abs=1e-6)
    assert got.consistency_plan is not None
    assert expected.consistency_plan is not None
    assert torch.equal(got.consistency_plan.keep, expected.consistency_plan.keep)


def same_large(got: LargePassResult, expected: LargePassResult) -> None:
    assert torch.equal(got.generation.token_ids, expected.generation.token_ids)
    assert got.generation.logprobs.tolist() == pytest.approx(expected.generation.logprobs.tolist(), abs=1e-4)
    assert got.cache_tokens == expected.cache_tokens


@families
@asked
@implementations
def test_the_small_model_repeats_a_run_from_scratch(family: str, asked: str, implementation: str) -> None:
    vlm = model(family)
    first, second = encoded(family, asked, "What is it?"), encoded(family, asked, "And how many are there?")
    vlm.store.clear()
    with attention_of(vlm, implementation):
        cold = small(vlm, second)
        filling = small(vlm, first, reuse=REUSE)
        warm = small(vlm, second, reuse=REUSE)
        vlm.store.clear()
        refilled = small(vlm, second, reuse=REUSE)
    same_small(warm, cold)
    assert filling.reused.tokens == 0
    assert filling.reused.pictures == 0
    assert warm.reused.tokens == (0 if family in NO_PREFIX else max(second.visual_positions))
    assert warm.reused.pictures == len({span.image for span in second.spans})
    assert warm.reused.tower_patches == ()
    # A first run computes the beginning apart as well, so the two agree to the bit.
    assert torch.equal(warm.generation.logprobs, refilled.generation.logprobs)
    assert warm.importance is not None
    assert refilled.importance is not None
    assert torch.equal(warm.importance.mass, refilled.importance.mass)
    assert warm.confidence == refilled.confidence


@families
@asked
@implementations
@pytest.mark.parametrize("layer", LAYERS_K)
def test_the_large_model_repeats_a_run_from_scratch(
    family: str, asked: str, implementation: str, layer: int | None
) -> None:
    vlm = model(family)
    first, second = encoded(family, asked, "What is it?"), encoded(family, asked, "And how many are there?")
    vlm.store.clear()
    with attention_of(vlm, implementation):
        cold = large(vlm, second, layer)
        large(vlm, first, layer, reuse=REUSE)
        warm = large(vlm, second, layer, reuse=REUSE)
        vlm.store.clear()
        refilled = large(vlm, second, layer, reuse=REUSE)
    same_large(warm, cold)
    assert torch.equal(warm.generation.logprobs, refilled.generation.logprobs)
    known = family not in NO_PREFIX and (layer is None or layer >= PLANES.get(family, 1))
    assert warm.reused.tokens == (max(second.visual_positions) if known else 0)
    assert refilled.reused.tokens == 0


@families
def test_pruned_before_the_first_layer_only_features_are_known(family: str) -> None:
    vlm, prompt = model(family), encoded(family, "one picture", "What is it?")
    vlm.store.clear()
    cold = large(vlm, prompt, 0)
    large(vlm, prompt, 0, reuse=REUSE)
    warm = large(vlm, prompt, 0, reuse=REUSE)
    same_large(warm, cold)
    assert (warm.reused.tokens, warm.reused.pictures) == (0, 1)


@families
@implementations
@pytest.mark.parametrize("layer", [1, 3, None])
def test_a_draft_is_checked_on_what_is_known(family: str, implementation: str, layer: int | None) -> None:
    vlm = model(family)
    first, second = (encoded(family, "two pictures", question) for question in ("What?", "And how many?"))
    vlm.store.clear()
    with attention_of(vlm, implementation):
        cold = large(vlm, second, layer)
        ids = cold.generation.token_ids.tolist()
        large(vlm, first, layer, reuse=REUSE)
        for accepted in range(TOKENS):
            draft = [*ids[:accepted], (ids[accepted] + 1) % 90, *ids[accepted + 1 :]]
            warm = large(vlm, second, layer, reuse=REUSE, draft=draft)
            same_large(warm, cold)
            assert warm.accepted_tokens == min(accepted, TOKENS - 1)
            # What was taken back must not have reached what others will read.
            same_large(large(vlm, second, layer, reuse=REUSE), cold)


@pytest.mark.parametrize("windows", ["in every layer", "in the upper layers"])
@implementations
@pytest.mark.parametrize("layer", [1, LAYERS // 2, 4, None])
def test_sliding_windows(windows: str, implementation: str, layer: int | None) -> None:
    from test_family_exactness import OTHER_WINDOWS

    name, text = OTHER_WINDOWS[windows]
    vlm = rebuilt(name, **text)
    first, second = (vlm.encode(two_pictures(question)) for question in ("What?", "And how many are there?"))
    with attention_of(vlm, implementation):
        cold, cold_small = large(vlm, second, layer), small(vlm, second)
        large(vlm, first, layer, reuse=REUSE)
        warm = large(vlm, second, layer, reuse=REUSE)
        ids = cold.generation.token_ids.tolist()
        same_large(large(vlm, second, layer, reuse=REUSE, draft=[*ids[:2], (ids[2] + 1) % 90, 0]), cold)
        small(vlm, first, reuse=REUSE)
        warm_small = small(vlm, second, reuse=REUSE)
    same_large(warm, cold)
    same_small(warm_small, cold_small)
    assert warm.reused.tokens == warm_small.reused.tokens == max(second.visual_positions)
