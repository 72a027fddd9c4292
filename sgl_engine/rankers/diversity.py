"""Rankers that keep tokens which differ from each other, with no regard to the question.

Both papers select a set for one budget. Here each gives an order in which every prefix is such a set, so that
one ranking serves all keep ratios.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_engine.attention import ImportanceMap
from sgl_engine.rankers.case import Ranker, RankingCase

DART_LAYER = 2
"""0-based: DART prunes before its third layer."""
DART_PIVOTS = 4
"""Of the picture, and as many of the text after it."""


def divprune(case: RankingCase) -> ImportanceMap:
    """Ranks by max-min diversity of the features, by cosine distance (DivPrune, CVPR 2025, arXiv 2503.02175).

    The greedy solution of the paper, which builds a set one by one, is an order already.
    """
    distance = 1.0 - _cosines(case.visual_embeddings)
    return case.large_order(farthest_first(distance))


def dart(case: RankingCase) -> ImportanceMap:
    """Ranks by least duplication of pivots, at an early large layer (DART, arXiv 2502.11494).

    Pivots are the visual tokens, and the text tokens after them, whose keys have the largest L1 norms. The
    pivots then choose in turn, each the token that is least similar to it; the paper lets each choose all its
    tokens at once, which would be another set for every budget.
    """
    layer = min(DART_LAYER, case.engine.large.num_layers - 1)
    states = case.hidden_states(layer)
    rows = case.large_rows
    norms = rows.key_norms[max((each for each in rows.attending if each < layer), default=rows.attending[0])]
    visual = torch.tensor(case.large_prompt.visual_positions)
    after = torch.arange(int(visual[-1]) + 1, len(case.large_prompt))
    pivots = [tokens[norms[tokens].topk(min(DART_PIVOTS, len(tokens))).indices] for tokens in (visual, after)]
    # Pivots of the picture are kept before all others; as indices into the visual tokens.
    seen = [int(token) for token in (visual[:, None] == pivots[0]).nonzero()[:, 0]]
    similar = _cosines(torch.cat((states[torch.cat(pivots)], states[visual])))
    similar = similar[: sum(map(len, pivots)), sum(map(len, pivots)) :]
    return case.large_order(least_similar_in_turn(similar, taken=seen))


def importance_and_diversity(case: RankingCase) -> ImportanceMap:
    """Ranks by the plain sum, in which whatever resembles a token that was chosen counts for less.

    As ID-Selection does it (arXiv 2604.05601): the token with the highest score is next, and every other
    score is multiplied by one minus its feature's similarity to it. (STS, arXiv 2606.03569, mixes the two in
    stages that depend on the budget.)
    """
    assert case.small.importance is not None, "a case has pictures"
    mass = case.small.importance.resample(case.large_prompt.spans).mass
    return case.large_order(suppressing(mass, _cosines(case.visual_embeddings)))


def suppressing(mass: Tensor, similar: Tensor) -> list[int]:
    """Orders tokens by mass (N,), each chosen one lowering that of those similar to it, (N, N) in [-1, 1]."""
    left = mass.double().clone()
    order: list[int] = []
    for _ in range(len(mass)):
        order.append(int(left.argmax()))
        left *= 1.0 - similar[order[-1]].clamp(0.0, 1.0)
        left[order] = float("-inf")  # never taken twice; also puts right what 0 * -inf has become
    return order


def farthest_first(distance: Tensor, first: int | None = None) -> list[int]:
    """Orders points so that each is farthest from all before it; ties go to the lower index.

    Args:
        distance: (N, N), symmetric.
        first: Where to begin; None is the point whose nearest neighbour is farthest.
    """
    if first is None:
        apart = distance.clone().fill_diagonal_(float("inf"))
        first = int(apart.amin(dim=1).argmax())
    nearest = distance[first].clone()  # of each point, to the closest one that was taken
    order = [first]
    for _ in range(len(distance) - 1):
        nearest[order[-1]] = float("-inf")  # never taken twice
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[order[-1]])
    return order


def least_similar_in_turn(similar: Tensor, taken: list[int]) -> list[int]:
    """Orders tokens: those taken, then each pivot's least similar one of what is left, pivot after pivot.

    Args:
        similar: (P, N), of each pivot to each token.
        taken: Tokens that come first.
    """
    order = list(taken)
    left = torch.ones(similar.shape[1], dtype=torch.bool)
    left[order] = False
    turn = 0
    while bool(left.any()):
        token = int(similar[turn % len(similar)].masked_fill(~left, float("inf")).argmin())
        order.append(token)
        left[token] = False
        turn += 1
    return order


def _cosines(vectors: Tensor) -> Tensor:
    """Computes all cosines between vectors: (N, D) -> (N, N)."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return unit @ unit.T


BASELINES: dict[str, Ranker] = {"divprune": divprune, "dart": dart}
MAPS: dict[str, Ranker] = {"diverse": importance_and_diversity}
