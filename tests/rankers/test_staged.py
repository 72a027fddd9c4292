"""Rankers after schedules: each against its definition, written out slowly, on numbers made by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sgl_engine.attention.rows import AttentionRows
from sgl_engine.rankers import RANKERS
from sgl_engine.rankers.staged import halving_order, merging_order, raters


def slow_merging_order(features: list[list[float]], share: float) -> list[int]:
    """Bipartite soft matching as ToMe's section 3 reads, one pair at a time."""
    groups = {token: [token] for token in range(len(features))}
    gone: list[int] = []

    def mean(token: int) -> list[float]:
        members = [features[each] for each in groups[token]]
        return [sum(column) / len(members) for column in zip(*members, strict=True)]

    def cosine(one: int, other: int) -> float:
        left, right = mean(one), mean(other)
        return sum(a * b for a, b in zip(left, right, strict=True)) / math.hypot(*left) / math.hypot(*right)

    while len(groups) > 1:
        order = sorted(groups)
        even, odd = order[0::2], order[1::2]
        edges = []
        for token in even:
            partner = max(odd, key=lambda each, token=token: cosine(token, each))
            edges.append((cosine(token, partner), token, partner))
        edges.sort(key=lambda edge: -edge[0])
        for _, token, partner in edges[: min(len(odd), max(1, math.floor(share * len(order))))]:
            groups[partner] += groups.pop(token)
            gone.append(token)
    return [*groups, *reversed(gone)]


@pytest.mark.parametrize("share", [1 / 8, 1 / 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
def test_tokens_merge_as_tome_merges_them(tokens: int, share: float) -> None:
    features = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64)
    found = merging_order(features, share)
    assert found == slow_merging_order(features.tolist(), share)
    assert sorted(found) == list(range(tokens))


def test_what_resembles_another_token_merges_first() -> None:
    corners = torch.eye(7)
    features = torch.cat((corners, corners[:4] + 0.01))  # tokens 7 to 10 are nearly 0 to 3, in other places
    kept = merging_order(features)[:7]
    assert {token % 7 for token in kept} == set(range(7))  # one of each
    other = torch.cat((corners, corners[3:] + 0.01))  # the control: copies of 3 to 6
    assert {token % 7 for token in merging_order(other)[:7]} != set(range(7))


def test_raters_are_text_tokens_that_visual_tokens_look_at() -> None:
    generator = torch.Generator().manual_seed(1)
    visual, text = torch.randn(7, 4, generator=generator), torch.randn(9, 4, generator=generator)
    relevance = [0.0] * 9
    for v in visual:  # the mean over visual tokens of a softmax over text tokens
        weights = [math.exp(float(v @ t)) for t in text]
        relevance = [old + weight / sum(weights) / 7 for old, weight in zip(relevance, weights, strict=True)]
    expected = [token for token, part in enumerate(relevance) if part >= sum(relevance) / 9]
    assert raters(visual, text).tolist() == expected
    assert 0 < len(expected) < 9
    assert raters(visual, torch.ones(3, 4)).tolist() == [0, 1, 2]  # all alike


def test_only_the_raters_rows_of_the_layer_count() -> None:
    """Two visual tokens, three text tokens, of which the second speaks of the picture."""
    plain = torch.zeros(4, 4, 2)  # layers, rows, visual tokens; the first row is the last visual token's
    plain[:, 0] = plain[:, 1] = plain[:, 3] = torch.tensor([1.0, 0.0])
    plain[:, 2] = torch.tensor([0.2, 0.8])
    plain[1] = torch.tensor([1.0, 0.0])
    inputs = torch.tensor([[4.0, 0.0], [4.0, 0.1], [0.0, 1.0], [2.0, 0.0], [0.0, -1.0]])
    case = SimpleNamespace(
        large_rows=AttentionRows(plain, plain, plain[:, :, 0], prompt_rows=4),
        large_prompt=Prompt((0, 1), 5),
        visual_embeddings=inputs[:2],
        large_inputs=inputs,
        large_map=lambda mass: mass,
    )
    found = RANKERS["sparsevlm-like"](case)  # type: ignore[arg-type]  # all that it looks at
    assert torch.equal(found, torch.tensor([0.2, 0.8]))  # type: ignore[arg-type]


class Prompt:
    """What is read of a prompt."""

    def __init__(self, visual_positions: tuple[int, ...], length: int) -> None:
        self.visual_positions, self._length = visual_positions, length

    def __len__(self) -> int:
        return self._length


def slow_halving_order(scores: Tensor) -> list[int]:
    left = list(range(scores.shape[1]))
    gone: list[int] = []
    for number, stage in enumerate(scores.tolist()):
        left = sorted(left, key=lambda token, stage=stage: -stage[token])
        if number < len(scores) - 1:
            keeps = max(1, len(left) // 2)
            gone = left[keeps:] + gone
            left = left[:keeps]
    return left + gone


def test_stages_halve_what_is_left() -> None:
    scores = torch.rand(3, 13, generator=torch.Generator().manual_seed(2))
    order = halving_order(scores)
    assert order == slow_halving_order(scores)
    assert set(order[:6]) == set(scores[0].topk(6).indices.tolist())  # the first stage's half
    assert order != scores[2].sort(descending=True).indices.tolist()  # the control: not the last stage alone
    assert halving_order(scores[:, :1]) == [0]


def test_stages_read_the_last_prompt_tokens_rows_after_each_quarter() -> None:
    plain = torch.rand(8, 5, 12, generator=torch.Generator().manual_seed(3))
    case = SimpleNamespace(
        large_rows=AttentionRows(plain, plain, plain[:, :, 0], prompt_rows=4), large_order=lambda order: order
    )
    found = RANKERS["pyramiddrop-like"](case)  # type: ignore[arg-type]  # all that it looks at
    assert found == halving_order(plain[[2, 4, 6], 3])
    assert found != halving_order(plain[[2, 4, 6], 4])  # the control: an answer's row
