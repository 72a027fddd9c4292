"""A left-padded batch of different prompts, pictures and kept counts equals the same requests one by one."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from combinations import half
from samples import noise
from test_family_exactness import (
    ANSWER,
    FAMILIES,
    IMPLEMENTATIONS,
    LAYERS,
    LAYERS_K,
    REQUESTS,
    attention_of,
    families,
    implementations,
    layers,
    model,
    random_plan,
)
from tolerances import CONTROL, gap, of_logits, of_logprobs, relative_gap
from whole_model import masked_logits

from sgl_engine import VLM, Request
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.passes import run_large_pass, run_small_pass
from sgl_engine.passes.large import LargePassResult, run_large_batch
from sgl_engine.passes.prefill import group_rows
from sgl_engine.passes.small import SmallPassResult, answer_logprobs, answers_logprobs, run_small_batch
from sgl_engine.prompt.encoded import EncodedPrompt, PromptBatch
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import KeptColumns, PruningPlan

# Different lengths, pictures, numbers of them, and of what is kept; the first row is not the longest.
KEEP_RATIOS = (0.8, 0.05, 0.3)


@cache
def prompts(family: str) -> tuple[EncodedPrompt, ...]:
    requests = (REQUESTS["one picture"], REQUESTS["a conversation"], Request.ask("And?", noise(33, 64, 7)))
    return tuple(model(family).encode(request) for request in requests)


def plans(family: str, layer: int) -> list[PruningPlan]:
    return [
        random_plan(prompt, layer, ratio) for prompt, ratio in zip(prompts(family), KEEP_RATIOS, strict=True)
    ]


def batch_logits(
    vlm: VLM, batch: PromptBatch, kept: KeptColumns, embeddings: torch.Tensor, *, drop: int | None = None
) -> list[torch.Tensor]:
    """Of the last prompt row and of each answer token, per row; row `drop` leaves after two tokens."""
    cache_, rows = vlm.new_cache(), list(range(len(batch)))
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for step, token in enumerate((None, *ANSWER)):
        if token is not None:
            embeddings = vlm.embed_tokens(torch.full((len(rows), 1), token))
        if drop is not None and step == 3:
            rows.remove(drop)
            batch, embeddings = batch.select(rows), embeddings[rows]
            cache_.reorder_cache(torch.tensor(rows))
        first = 0 if token is None else batch.tokens + step - 1
        with prune_visual_tokens(vlm, kept.select(rows)):
            logits = vlm.forward_batch(embeddings, batch=batch, first_position=first, cache=cache_)
        for row, of_row in zip(rows, logits, strict=True):
            found[row].append(of_row[-1])
    return [torch.stack(of_row) for of_row in found]


@cache
def single_logits(family: str, row: int, layer: int) -> torch.Tensor:
    """Of a row alone, with nothing cached: its own steps are held to the same oracle elsewhere."""
    prompt, plan = prompts(family)[row], plans(family, layer)[row]
    whole = masked_logits(model(family), prompt, ANSWER, layer=layer, keep=plan.keep.tolist())
    return whole[len(prompt) - 1 :]


@cache
def embedded(family: str, implementation: str) -> tuple[torch.Tensor, ...]:
    with attention_of(model(family), implementation):
        return tuple(model(family).embed(prompt) for prompt in prompts(family))


def gaps(
    family: str, layer: int, implementation: str, *, batch: PromptBatch, kept: KeptColumns, **options: Any
) -> list[float]:
    """Of each row in the batch from the same row alone."""
    vlm = model(family)
    embeddings = batch.join(list(embedded(family, implementation)))
    with attention_of(vlm, implementation):
        got = batch_logits(vlm, batch, kept, embeddings, **options)
    return [gap(of_row, single_logits(family, row, layer)[: len(of_row)]) for row, of_row in enumerate(got)]


@half(family=FAMILIES, implementation=IMPLEMENTATIONS, layer=LAYERS_K, drop=(None, 1))
def test_logits_are_those_of_single_runs(
    family: str, implementation: str, layer: int, drop: int | None
) -> None:
    batch = model(family).batch(prompts(family))
    kept = KeptColumns.of(plans(family, layer))
    assert batch.is_padded
    assert not kept.is_even
    found = gaps(family, layer, implementation, batch=batch, kept=kept, drop=drop)
    assert max(found) < of_logits(model(family))


class OneTooFar(PromptBatch):
    """Decoding goes on where a prompt with one column of padding less would."""

    def positions(self, first: int, count: int) -> torch.Tensor:
        padded = (torch.tensor(self.padding) > 0).long()
        return super().positions(first, count) + padded[:, None] * (first > 0)


class OnePaddingSeen(PromptBatch):
    """The last column of padding counts as a token."""

    def attention_mask(self, columns: int) -> torch.Tensor:
        mask = super().attention_mask(columns)
        for row, padding in enumerate(self.padding):
            mask[row, max(0, padding - 1)] = 1
        return mask


@half(family=FAMILIES, implementation=IMPLEMENTATIONS, wrong=(OneTooFar, OnePaddingSeen))
def test_wrong_positions_and_masks_are_noticed(
    family: str, implementation: str, wrong: type[PromptBatch]
) -> None:
    layer = LAYERS // 2
    batch = wrong.of(prompts(family), pad_token=model(family).batch(prompts(family)).pad_token)
    kept = KeptColumns.of(plans(family, layer))
    found = gaps(family, layer, implementation, batch=batch, kept=kept)
    padded = [row for row, padding in enumerate(batch.padding) if padding]
    within = of_logits(model(family))
    assert min(found[row] for row in padded) > CONTROL * within
    assert max(found[row] for row in range(len(found)) if row not in padded) < within


@half(family=FAMILIES, layer=LAYERS_K, off=("columns", "fillers"))
def test_wrong_kept_rows_are_noticed(family: str, layer: int, off: str) -> None:
    batch = model(family).batch(prompts(family))
    right = KeptColumns.of(plans(family, layer))
    uneven = [row for row, count in enumerate(right.fillers[:, 0].tolist()) if count]
    fillers, columns = right.fillers.clone(), right.columns.clone()
    for row in uneven:
        if off == "fillers":
            fillers[row] = 0
        else:  # as if the prompt began one column earlier
            columns[row, int(fillers[row, 0]) :] -= 1
    wrong = KeptColumns(layer, right.tokens, columns, fillers, prunes=True)
    found = gaps(family, layer, IMPLEMENTATIONS[layer % 2], batch=batch, kept=wrong)
    assert min(found[row] for row in uneven) > CONTROL * of_logits(model(family))


def tasks(family: str) -> list[AnswerTask]:
    """Which end at different times."""
    limits = (6, 3, 5)
    return [
        AnswerTask(prompt, limit, stop_at_eos=False)
        for prompt, limit in zip(prompts(family), limits, strict=True)
    ]


@families
@implementations
def test_small_passes_are_those_of_single_runs(family: str, implementation: str) -> None:
    vlm = model(family)
    text = AnswerTask(vlm.encode(Request.ask("Only text?")), 4, stop_at_eos=False)
    wanted = [*tasks(family), text]
    with attention_of(vlm, implementation):
        got = run_small_batch(vlm, wanted)
        alone = [
            run_small_pass(vlm, AnswerTask(task.prompt, task.max_new_tokens, stop_at_eos=False))
            for task in wanted
        ]
    for ours, theirs in zip(got, alone, strict=True):
        assert isinstance(ours, SmallPassResult)
        same_generation(vlm, ours, theirs)
        within = of_logprobs(vlm, tokens=6)  # parts are products of probabilities, or means
        assert dict(ours.parts) == pytest.approx(dict(theirs.parts), rel=within)
        assert (ours.importance is None) == (theirs.importance is None)
        if ours.importance is not None and theirs.importance is not None:
            assert relative_gap(ours.importance.mass, theirs.importance.mass) < of_logprobs(vlm)
            assert ours.importance.num_queries == theirs.importance.num_queries
            assert ours.consistency_plan is not None
            assert theirs.consistency_plan is not None
            assert torch.equal(ours.consistency_plan.keep, theirs.consistency_plan.keep)


@cache
def own_large(family: str, row: int, layer: int, implementation: str) -> LargePassResult:
    """A row's pass alone."""
    task = tasks(family)[row]
    with attention_of(model(family), implementation):
        return run_large_pass(model(family), task, plans(family, layer)[row])


@half(family=FAMILIES, implementation=IMPLEMENTATIONS, layer=LAYERS_K)
def test_large_passes_are_those_of_single_runs(family: str, implementation: str, layer: int) -> None:
    vlm, wanted = model(family), tasks(family)
    with attention_of(vlm, implementation):
        got = run_large_batch(vlm, wanted, plans(family, layer))
    for row, (ours, plan) in enumerate(zip(got, plans(family, layer), strict=True)):
        theirs = own_large(family, row, layer, implementation)
        assert isinstance(ours, LargePassResult)
        same_generation(vlm, ours, theirs)
        # Columns of the whole batch: no layer holds fewer than its own, pruned ones fewer than others.
        assert all(held >= own for held, own in zip(ours.cache_tokens, theirs.cache_tokens, strict=True))
        full = max(len(each.prompt) for each in wanted) + len(ours.generation) - 1
        assert all(held < full for held in ours.cache_tokens[plan.layer :])
        assert torch.equal(ours.plan.keep, plan.keep)


@families
@layers
def test_forced_answers_are_those_of_single_runs(family: str, layer: int) -> None:
    vlm = model(family)
    generations = [own_large(family, row, layer, "sdpa").generation for row in range(len(tasks(family)))]
    embeddings = [vlm.embed(prompt) for prompt in prompts(family)]
    batch = vlm.batch(prompts(family))
    got = answers_logprobs(vlm, batch, batch.join(embeddings), generations, plans(family, layer))
    for row, ours in enumerate(got):
        plan = plans(family, layer)[row]
        theirs = answer_logprobs(vlm, prompts(family)[row], embeddings[row], generations[row], plan)
        assert gap(ours, theirs) < of_logprobs(vlm)


def same_generation(
    vlm: VLM, ours: SmallPassResult | LargePassResult, theirs: SmallPassResult | LargePassResult
) -> None:
    assert ours.generation.text == theirs.generation.text
    assert torch.equal(ours.generation.token_ids, theirs.generation.token_ids)
    assert gap(ours.generation.logprobs, theirs.generation.logprobs) < of_logprobs(vlm)
    assert ours.generation.finish_reason == theirs.generation.finish_reason


def test_rows_of_one_kind_and_similar_length_go_together() -> None:
    def groups(lengths: Sequence[int], kinds: Sequence[int], max_rows: int = 2) -> list[list[int]]:
        return group_rows(lengths, kinds, max_rows=max_rows)

    assert groups([5, 9, 6, 8], [0, 0, 0, 0]) == [[0, 2], [3, 1]]
    assert groups([5, 9, 6, 8], [1, 2, 1, 1], 4) == [[0, 2, 3], [1]]
    assert groups([30_000, 30_000], [0, 0]) == [[0], [1]]  # two masks of 30,000 x 30,000 are too many
    assert groups([], []) == []
