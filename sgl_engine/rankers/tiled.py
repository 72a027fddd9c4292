"""Tile first, then tokens within it: the small model's attention, where pictures come in tiles. No training.

Attention that has nothing to do with the question is spread over all tiles, and in their sum it outweighs
what has. So these rankers ask first which tiles matter, and let the plain sum choose within them. Where a
picture is one piece, they rank as the plain sum does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_engine.attention import ImportanceMap
from sgl_engine.prompt import PromptTiles
from sgl_engine.pruning import choose_tiles
from sgl_engine.rankers.case import Ranker, RankingCase
from sgl_engine.rankers.guided import plain, question_rows, value_norms

GATE_TOKENS = 5
"""Tiles that hold one of so many of a picture's most important tokens come first."""

QUOTA_TOKENS = 20
"""Tiles share what is kept by how many of these they hold."""


def tile_gated(case: RankingCase) -> ImportanceMap:
    """Ranks tokens of the tiles that hold one of the top 5 tokens before all others."""
    return _gated(case, plain(case).mass)


def question_gated(case: RankingCase) -> ImportanceMap:
    """Gates as ``tile_gated`` does, by the top 5 tokens of ``question_rows``; the plain sum ranks within."""
    return _gated(case, question_rows(case).mass)


def value_gated(case: RankingCase) -> ImportanceMap:
    """Gates as ``tile_gated`` does, and ranks within, by ``value_norms`` instead of the plain sum."""
    mass = value_norms(case).mass
    return _gated(case, mass, within=mass)


def question_tile(case: RankingCase) -> ImportanceMap:
    """Ranks tiles by their sums of ``question_rows``, one after the other, and tokens by the plain sum."""
    tiles, mass = _tiles(case), plain(case).mass
    sums = tiles.tokens.float() @ question_rows(case).mass
    # The place of each token's tile: 0 is the last one.
    place = torch.empty_like(sums)
    place[sums.argsort(stable=True)] = torch.arange(len(sums)).float()
    return case.small_map(_share(mass) + _of_tiles(tiles, place))


def tile_quota(case: RankingCase) -> ImportanceMap:
    """Shares what is kept out among tiles, by how many of the picture's top 20 tokens each holds."""
    tiles, mass = _tiles(case), plain(case).mass
    votes = torch.zeros(len(tiles))
    for own in _pictures(tiles):
        best = torch.where(own, mass, -torch.inf).sort(descending=True, stable=True).indices
        votes += tiles.tokens[:, best[: min(QUOTA_TOKENS, int(own.sum()))]].sum(dim=1)
    return case.small_map(_in_turn(tiles, mass, votes))


def even_tiles(case: RankingCase) -> ImportanceMap:
    """Divides a token's mass by the mean of its tile: what stands out there, wherever the tile lies."""
    tiles, mass = _tiles(case), plain(case).mass
    members = tiles.tokens.float()
    means = (members @ mass) / members.sum(dim=1).clamp_min(1)
    return case.small_map(mass / _of_tiles(tiles, means).clamp_min(torch.finfo(torch.float32).tiny))


def _gated(case: RankingCase, by: Tensor, within: Tensor | None = None) -> ImportanceMap:
    """Ranks by ``within`` (V,), or the plain sum, tokens of the tiles first that ``by`` (V,) chooses."""
    tiles = _tiles(case)
    ranking = by.sort(descending=True, stable=True).indices
    inside = tiles.made_of(choose_tiles(tiles, ranking, GATE_TOKENS))
    return case.small_map(_share(plain(case).mass if within is None else within) + inside.float())


def _in_turn(tiles: PromptTiles, mass: Tensor, votes: Tensor) -> Tensor:
    """Ranks so that however many tokens are kept, tiles have them in proportion to their votes (Webster).

    Within a tile, tokens come by mass; tiles without a vote come last.
    """
    turn = torch.full_like(mass, torch.inf)
    for own, count in zip(tiles.tokens, votes.tolist(), strict=True):
        best = torch.where(own, mass, -torch.inf).sort(descending=True, stable=True).indices
        best = best[: int(own.sum())]
        # A hundredth of a vote, so that these have an order, too.
        own_turn = (torch.arange(len(best)) + 0.5) / max(count, 0.01)
        turn[best] = torch.minimum(turn[best], own_turn)  # a token of two tiles takes its earlier turn
    return 1 / turn + 1e-6 * _share(mass)  # equal turns by mass


def _tiles(case: RankingCase) -> PromptTiles:
    """Returns the small prompt's tiles; where they are unknown, its spans."""
    found = case.small_prompt.tiles
    return PromptTiles.of(case.small_prompt.spans) if found is None else found


def _pictures(tiles: PromptTiles) -> list[Tensor]:
    """Which tokens each picture has, bool (V,)."""
    rows = (torch.tensor([of == picture for of in tiles.pictures]) for picture in set(tiles.pictures))
    return [tiles.tokens[own].any(dim=0) for own in rows]


def _of_tiles(tiles: PromptTiles, values: Tensor) -> Tensor:
    """Carries a value of each tile (T,) to its tokens (V,); one of several tiles gets the largest."""
    return torch.where(tiles.tokens, values[:, None], -torch.inf).amax(dim=0)


def _share(mass: Tensor) -> Tensor:
    """Scales mass into [0, 1), the largest just below 1."""
    return mass / (mass.max() * (1 + 1e-6)).clamp_min(torch.finfo(torch.float32).tiny)


MAPS: dict[str, Ranker] = {
    "tile-gated": tile_gated,
    "tile-quota": tile_quota,
    "question-tile": question_tile,
    "question-gated": question_gated,
    "value-gated": value_gated,
    "even-tiles": even_tiles,
}
