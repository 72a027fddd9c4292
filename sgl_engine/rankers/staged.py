"""Rankers after methods that drop or merge tokens in stages, as layers go by. No training.

Here all tokens leave before one layer, so that every ranker costs the same. What remains of a schedule is the
order in which its stages would let tokens go: those of an earlier stage matter less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgl_engine.attention import AttentionRows, ImportanceMap
from sgl_engine.rankers.case import Ranker, RankingCase

MERGED_SHARE = 1 / 8
"""Of the tokens that are left, so many merge in each round; ToMe's own r is about 8 of 197."""
SPARSE_LAYER = 2
"""0-based: SparseVLM drops first at layer 2; where that has no attention, the next one counts."""
STAGES = (1 / 4, 1 / 2, 3 / 4)
"""Depths at which PyramidDrop drops."""
STAGE_KEEPS = 1 / 2
"""Of the tokens that are left, PyramidDrop's λ."""


def tome_like(case: RankingCase) -> ImportanceMap:
    """Ranks by when a token is merged into another (after ToMe, ICLR 2023, arXiv 2210.09461, section 3).

    Tokens are told apart by the features that the decoder is given, and not by a tower's keys. A token that
    is kept keeps its own features: what merged into it says whom it merges with, and is then dropped.
    """
    return case.large_order(merging_order(case.visual_embeddings))


def merging_order(features: Tensor, share: float = MERGED_SHARE) -> list[int]:
    """Merges tokens in rounds of bipartite soft matching; the last one comes first, then the last merged.

    In each round, tokens in even places look for the most similar one in an odd place, by cosine; a ``share``
    of pairs, the most similar, merge: the even one goes, and the odd one becomes the mean of all in it.

    Args:
        features: (N, D).
        share: Of the tokens that are left, how many merge in a round; at least one, at most half.
    """
    sums, sizes = features.double().clone(), torch.ones(len(features), dtype=torch.float64)
    left = torch.arange(len(features))
    gone: list[int] = []
    while len(left) > 1:
        even, odd = left[0::2], left[1::2]
        unit = torch.nn.functional.normalize(sums / sizes[:, None], dim=-1)
        best, partner = (unit[even] @ unit[odd].T).max(dim=1)
        count = min(len(odd), max(1, math.floor(share * len(left))))
        merged = best.sort(descending=True, stable=True).indices[:count]
        sums.index_add_(0, odd[partner[merged]], sums[even[merged]])
        sizes.index_add_(0, odd[partner[merged]], sizes[even[merged]])
        gone += even[merged].tolist()
        left = left[~torch.isin(left, even[merged])]
    return [*left.tolist(), *reversed(gone)]


def sparsevlm_like(case: RankingCase) -> ImportanceMap:
    """Takes the rows of text tokens that speak of the picture (after SparseVLM, ICML 2025, arXiv 2410.04417).

    The paper drops in three layers, as many as the rank of this attention says, and recycles some of what it
    drops; here one early layer's attention ranks.
    """
    rows = case.large_rows
    layer = _attending(rows, SPARSE_LAYER)
    text = torch.arange(case.large_prompt.visual_positions[-1] + 1, len(case.large_prompt))
    chosen = raters(case.visual_embeddings, case.large_inputs[text]) + 1  # row 0 is the last visual token's
    return case.large_map(rows.plain[layer, chosen].mean(dim=0))


def raters(visual: Tensor, text: Tensor) -> Tensor:
    """Chooses text tokens whose part of the visual tokens' attention is at least the mean (section 3.1).

    Args:
        visual: Embeddings (V, D).
        text: Embeddings (T, D).

    Returns:
        int64, indices of text tokens, at least one.
    """
    relevance = (visual @ text.T).softmax(dim=1).mean(dim=0)
    # Equal ones may fall just below their mean by rounding.
    return (relevance >= relevance.mean() * (1 - 1e-6)).nonzero()[:, 0]


def pyramiddrop_like(case: RankingCase) -> ImportanceMap:
    """Halves the tokens after each quarter of the layers (after PyramidDrop, CVPR 2025, arXiv 2410.17247).

    Each time those go that the last prompt token looks at least. Its rows are those of the unpruned pass.
    """
    rows = case.large_rows
    layers = [_attending(rows, math.floor(depth * len(rows.plain))) for depth in STAGES]
    return case.large_order(halving_order(rows.plain[layers, rows.prompt_rows - 1]))


def halving_order(scores: Tensor, keeps: float = STAGE_KEEPS) -> list[int]:
    """Orders tokens by the stage that lets them go, and within it by its score; the last orders the rest.

    Args:
        scores: (stages, N), higher = stays.
        keeps: Of the tokens that are left, each stage keeps the floor of this share, at least one.
    """
    order = list(range(scores.shape[1]))
    stays = len(order)
    for stage in scores:
        left = torch.tensor(order[:stays])
        ranked = left[stage[left].sort(descending=True, stable=True).indices]
        order[:stays] = ranked.tolist()
        stays = max(1, math.floor(keeps * stays))
    return order


def _attending(rows: AttentionRows, layer: int) -> int:
    return next((each for each in rows.attending if each >= layer), rows.attending[-1])


BASELINES: dict[str, Ranker] = {
    "tome-like": tome_like,
    "sparsevlm-like": sparsevlm_like,
    "pyramiddrop-like": pyramiddrop_like,
}
