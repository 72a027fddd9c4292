"""Second questions about a picture, in every family: as from scratch, and bit for bit as a first run."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from combinations import half
from samples import noise
from test_family_exactness import (
    FAMILIES,
    IMPLEMENTATIONS,
    LAYERS,
    OTHER_WINDOWS,
    attention_of,
    families,
    implementations,
    model,
    random_plan,
    rebuilt,
)
from tolerances import CONTROL, gap, of_logprobs, relative_gap

from sgl_engine import VLM, Message, Request
from sgl_engine.config import ReuseConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.passes.large import LargePassResult, run_large_batch
from sgl_engine.passes.small import SmallPassResult, run_small_batch
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import keep_everything
from sgl_engine.request import ImagePart

REUSE = ReuseConfig(min_prefix_tokens=1)
TOKENS = 5
PICTURES = (noise(70, 40), noise(33, 64, 7))
# Windows, recurrences and DeepStack's planes decide how much of a prompt can be reused.
LAYERS_K = (1, 3, None)
NOT_IN_COMPANY = {"llava_onevision", "mistral3"}  # there a picture looks different beside another one
NO_PREFIX = {"gemma3"}
PLANES = {"qwen3_vl": 2}  # layers below which DeepStack adds features


def one_picture(question: str) -> Request:
    return Request.ask(question, PICTURES[0])


def two_pictures(question: str) -> Request:
    """With text between them, and before the first."""
    parts = ("Look:", ImagePart(PICTURES[0]), "and", ImagePart(PICTURES[1]), question)
    return Request((Message("user", parts),))


ASKED = {"one picture": one_picture, "two pictures": two_pictures}


@cache
def encoded(family: str, asked: str, question: str) -> EncodedPrompt:
    return model(family).encode(ASKED[asked](question))


def small(vlm: VLM, prompt: EncodedPrompt, **options: Any) -> SmallPassResult:
    return run_small_pass(vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False), **options)


def large(
    vlm: VLM, prompt: EncodedPrompt, layer: int | None, draft: Sequence[int] = (), **options: Any
) -> LargePassResult:
    plan = keep_everything(prompt) if layer is None else random_plan(prompt, layer)
    return run_large_pass(
        vlm, AnswerTask(prompt, TOKENS, stop_at_eos=False, draft=tuple(draft)), plan, **options
    )


def same_small(vlm: VLM, got: SmallPassResult, expected: SmallPassResult) -> None:
    assert torch.equal(got.generation.token_ids, expected.generation.token_ids)
    assert gap(got.generation.logprobs, expected.generation.logprobs) < of_logprobs(vlm)
    assert got.importance is not None
    assert expected.importance is not None
    assert relative_gap(got.importance.mass, expected.importance.mass) < of_logprobs(vlm)
    assert got.importance.num_queries == expected.importance.num_queries
    within = of_logprobs(vlm, TOKENS)  # parts are products of probabilities, or means
    assert dict(got.parts) == pytest.approx(dict(expected.parts), rel=within)
    assert got.consistency_plan is not None
    assert expected.consistency_plan is not None
    assert torch.equal(got.consistency_plan.keep, expected.consistency_plan.keep)


def same_large(vlm: VLM, got: LargePassResult, expected: LargePassResult, *, in_batch: bool = False) -> None:
    assert torch.equal(got.generation.token_ids, expected.generation.token_ids)
    assert gap(got.generation.logprobs, expected.generation.logprobs) < of_logprobs(vlm)
    assert in_batch or got.cache_tokens == expected.cache_tokens  # side by side, prefixes move the end


@families
@implementations
def test_the_small_model_repeats_a_run_from_scratch(family: str, implementation: str) -> None:
    vlm, asked = model(family), "two pictures"
    first, second = encoded(family, asked, "What is it?"), encoded(family, asked, "And how many are there?")
    vlm.store.clear()
    with attention_of(vlm, implementation):
        cold = small(vlm, second)
        filling = small(vlm, first, reuse=REUSE)
        warm = small(vlm, second, reuse=REUSE)
        vlm.store.clear()
        refilled = small(vlm, second, reuse=REUSE)
    same_small(vlm, warm, cold)
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
    assert warm.parts == refilled.parts


@half(family=FAMILIES, implementation=IMPLEMENTATIONS, layer=LAYERS_K)
def test_the_large_model_repeats_a_run_from_scratch(
    family: str, implementation: str, layer: int | None
) -> None:
    vlm, asked = model(family), "two pictures"
    first, second = encoded(family, asked, "What is it?"), encoded(family, asked, "And how many are there?")
    vlm.store.clear()
    with attention_of(vlm, implementation):
        cold = large(vlm, second, layer)
        large(vlm, first, layer, reuse=REUSE)
        warm = large(vlm, second, layer, reuse=REUSE)
    same_large(vlm, warm, cold)
    known = family not in NO_PREFIX and (layer is None or layer >= PLANES.get(family, 1))
    assert warm.reused.tokens == (max(second.visual_positions) if known else 0)


@families
def test_the_large_models_first_run_is_its_later_runs_to_the_bit(family: str) -> None:
    vlm, second = model(family), encoded(family, "one picture", "And how many are there?")
    vlm.store.clear()
    large(vlm, encoded(family, "one picture", "What is it?"), 3, reuse=REUSE)
    warm = large(vlm, second, 3, reuse=REUSE)
    vlm.store.clear()
    filling = large(vlm, second, 3, reuse=REUSE)
    assert filling.reused.tokens == 0
    assert torch.equal(warm.generation.logprobs, filling.generation.logprobs)


@families
def test_pruned_before_the_first_layer_only_features_are_known(family: str) -> None:
    vlm, prompt = model(family), encoded(family, "one picture", "What is it?")
    vlm.store.clear()
    cold = large(vlm, prompt, 0)
    large(vlm, prompt, 0, reuse=REUSE)
    warm = large(vlm, prompt, 0, reuse=REUSE)
    same_large(vlm, warm, cold)
    assert (warm.reused.tokens, warm.reused.pictures) == (0, 1)


@half(family=FAMILIES, implementation=IMPLEMENTATIONS, layer=LAYERS_K)
def test_a_draft_is_checked_on_what_is_known(family: str, implementation: str, layer: int | None) -> None:
    vlm = model(family)
    first, second = (encoded(family, "two pictures", question) for question in ("What?", "And how many?"))
    vlm.store.clear()
    with attention_of(vlm, implementation):
        cold = large(vlm, second, layer)
        ids = cold.generation.token_ids.tolist()
        large(vlm, first, layer, reuse=REUSE)
        for accepted in (0, 2, TOKENS - 1):  # nothing, some and all
            draft = [*ids[:accepted], (ids[accepted] + 1) % 90, *ids[accepted + 1 :]]
            warm = large(vlm, second, layer, reuse=REUSE, draft=draft)
            same_large(vlm, warm, cold)
            assert warm.accepted_tokens >= min(accepted, TOKENS - 1)
        # What was taken back must not have reached what others will read.
        same_large(vlm, large(vlm, second, layer, reuse=REUSE, draft=ids), cold)


@half(windows=OTHER_WINDOWS, implementation=IMPLEMENTATIONS, layer=(1, LAYERS // 2, 4, None))
def test_sliding_windows(windows: str, implementation: str, layer: int | None) -> None:
    name, text = OTHER_WINDOWS[windows]
    vlm = rebuilt(name, **text)
    first, second = (vlm.encode(two_pictures(question)) for question in ("What?", "And how many are there?"))
    with attention_of(vlm, implementation):
        cold, cold_small = large(vlm, second, layer), small(vlm, second)
        large(vlm, first, layer, reuse=REUSE)
        warm = large(vlm, second, layer, reuse=REUSE)
        ids = cold.generation.token_ids.tolist()
        same_large(vlm, large(vlm, second, layer, reuse=REUSE, draft=[*ids[:2], (ids[2] + 1) % 90, 0]), cold)
        small(vlm, first, reuse=REUSE)
        warm_small = small(vlm, second, reuse=REUSE)
    same_large(vlm, warm, cold)
    same_small(vlm, warm_small, cold_small)
    assert warm.reused.tokens == warm_small.reused.tokens == max(second.visual_positions)


def batch_of(family: str) -> list[EncodedPrompt]:
    """Questions of different lengths about one picture, about two, and one about another picture."""
    questions = ("What is it?", "And?", "And how many are there?")
    known = [encoded(family, asked, question) for asked in ASKED for question in questions]
    return [*known, model(family).encode(Request.ask("Something else?", noise(50, 50, 9)))]


@half(family=FAMILIES, implementation=IMPLEMENTATIONS)
def test_many_questions_at_once(family: str, implementation: str) -> None:
    vlm = model(family)
    tasks = [
        AnswerTask(prompt, 3 + row % 3, stop_at_eos=False) for row, prompt in enumerate(batch_of(family))
    ]
    plans = [random_plan(task.prompt, 3, (0.3, 0.05, 0.8)[row % 3]) for row, task in enumerate(tasks)]
    with attention_of(vlm, implementation):
        cold_small, cold_large = run_small_batch(vlm, tasks), run_large_batch(vlm, tasks, plans)
        vlm.store.clear()
        for attempt in ("first", "second"):
            warm_small = run_small_batch(vlm, tasks, reuse=REUSE)
            warm_large = run_large_batch(vlm, tasks, plans, reuse=REUSE)
            for got, expected in zip(warm_small, cold_small, strict=True):
                assert isinstance(got, SmallPassResult)
                assert isinstance(expected, SmallPassResult)
                same_small(vlm, got, expected)
            for ours, theirs in zip(warm_large, cold_large, strict=True):
                assert isinstance(ours, LargePassResult)
                assert isinstance(theirs, LargePassResult)
                same_large(vlm, ours, theirs, in_batch=True)
            if _shares(vlm):
                # Once per picture: what all prompts begin with does not count. A short beginning beside a
                # prompt with more after it may be run anew.
                known = [
                    isinstance(result, SmallPassResult)
                    and result.reused.tokens > min(task.prompt.visual_positions)
                    for result, task in zip(warm_small, tasks, strict=True)
                ]
                assert known.count(False) in ((3, 4) if attempt == "first" else (0, 1))


def _shares(vlm: VLM) -> bool:
    """Whether its prompts side by side reuse what is known."""
    return vlm.family.looks_back_only and not any(vlm.new_cache().is_linear)


@families
def test_a_conversation_that_grows_goes_on_where_it_was(family: str) -> None:
    vlm = model(family)
    asked = [Message("user", (ImagePart(PICTURES[0]), "What is it?"))]
    asked_again = [
        *asked,
        Message("assistant", ("A dog.",)),
        Message("user", (ImagePart(PICTURES[1]), "And?")),
    ]
    first, second = (vlm.encode(Request(tuple(messages))) for messages in (asked, asked_again))
    vlm.store.clear()
    cold = small(vlm, second)
    small(vlm, first, reuse=REUSE)
    grown = small(vlm, second, reuse=REUSE)
    same_small(vlm, grown, cold)
    if vlm.family.looks_back_only:
        assert grown.reused.tokens == (
            min(first.visual_positions) if family in NOT_IN_COMPANY else max(first.visual_positions)
        ) or any(vlm.new_cache().is_linear)
    # Cut: what two prompts have in common may end within what is known.
    other = vlm.encode(Request((*asked_again[:-1], Message("user", (ImagePart(noise(64, 64, 8)), "So?")))))
    cut = small(vlm, other, reuse=REUSE)
    same_small(vlm, cut, small(vlm, other))
    if _shares(vlm) and family not in NOT_IN_COMPANY:
        assert max(first.visual_positions) < cut.reused.tokens < max(second.visual_positions)


@families
def test_a_conversation_that_goes_back_is_the_beginning_of_what_is_known(family: str) -> None:
    """All of its prefix is part of a longer one: there is nothing to compute, and nothing to keep."""
    vlm = model(family)
    asked = [Message("user", (ImagePart(PICTURES[0]), "What is it?"))]
    more = (*asked, Message("assistant", ("A dog.",)), Message("user", (ImagePart(PICTURES[1]), "And?")))
    first, second = (vlm.encode(Request(tuple(messages))) for messages in (asked, more))
    vlm.store.clear()
    small(vlm, second, reuse=REUSE)
    back = small(vlm, first, reuse=REUSE)
    same_small(vlm, back, small(vlm, first))
    if _shares(vlm) and family not in NOT_IN_COMPANY:
        assert back.reused.tokens == max(first.visual_positions)


@pytest.mark.parametrize("wrong", ["keys", "hidden", "rotation"])
def test_wrong_entries_are_noticed(wrong: str) -> None:
    """The control: answers do come from what is kept."""
    vlm = model("internvl")
    first, second = encoded("internvl", "one picture", "What?"), encoded("internvl", "one picture", "And?")
    vlm.store.clear()
    cold = large(vlm, second, 3)
    large(vlm, first, 3, reuse=REUSE)
    [(_, entry)] = vlm.store.items("prefix")
    part = {"keys": entry.layers[1].keys, "hidden": entry.lower.hidden, "rotation": entry.lower.sin}[wrong]
    with torch.inference_mode():
        part[..., 5:, :] = part[..., 5:, :].flip(-1)
    warm = large(vlm, second, 3, reuse=REUSE)
    vlm.store.clear()
    assert gap(warm.generation.logprobs, cold.generation.logprobs) > CONTROL * of_logprobs(vlm)


@pytest.mark.parametrize("other", ["picture", "words before it", "order"])
def test_other_beginnings_are_not_taken(other: str) -> None:
    vlm = model("qwen2_vl")
    vlm.store.clear()
    small(vlm, encoded("qwen2_vl", "two pictures", "What?"), reuse=REUSE)
    pictures = [noise(70, 40, 5), PICTURES[1]] if other == "picture" else list(PICTURES)
    pictures = pictures[::-1] if other == "order" else pictures
    words = "Loot:" if other == "words before it" else "Look:"
    parts = (words, ImagePart(pictures[0]), "and", ImagePart(pictures[1]), "What?")
    prompt = vlm.encode(Request((Message("user", parts),)))
    got = small(vlm, prompt, reuse=REUSE)
    same_small(vlm, got, small(vlm, prompt))
    assert got.reused.tokens <= min(prompt.visual_positions)
    assert got.reused.pictures == (1 if other == "picture" else 2)
