"""Rankers that look at nothing: strong baselines all the same, so always reported."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_engine.attention import ImportanceMap
from sgl_engine.rankers.case import Ranker, RankingCase


def uniform(case: RankingCase) -> ImportanceMap:
    """Spreads over each grid of tokens evenly, in both directions, at any number of tokens kept."""
    shares = [even_spread(*span.grid) for span in case.large_prompt.spans]
    return case.large_map(-torch.cat(shares))


def even_spread(rows: int, cols: int) -> Tensor:
    """Says when each cell's turn comes: float32 (rows * cols,), the share of the grid that is taken before.

    Next is always the least crowded cell, on a grid whose opposite edges touch, so that edges are not
    preferred. A cell is crowded by those taken, each by 1 / distance^3: an order that stays even between the
    numbers which make a regular grid. Shares let grids of several sizes be filled side by side.
    """
    row, col = torch.arange(rows).repeat_interleave(cols), torch.arange(cols).repeat(rows)
    crowded = torch.zeros(rows * cols, dtype=torch.float64)
    order = [rows // 4 * cols + cols // 4]
    for _ in range(rows * cols - 1):
        down, right = (row - row[order[-1]]).abs(), (col - col[order[-1]]).abs()
        squared = torch.minimum(down, rows - down) ** 2 + torch.minimum(right, cols - right) ** 2
        crowded += squared.double() ** -1.5  # infinite for the cell itself: it is taken
        order.append(int(crowded.argmin()))
    shares = torch.empty(rows * cols)
    shares[torch.tensor(order)] = (torch.arange(rows * cols) + 0.5) / (rows * cols)
    return shares


def random(case: RankingCase) -> ImportanceMap:
    """Draws lots with the case's seed."""
    lots = torch.Generator().manual_seed(case.seed)
    return case.large_map(torch.rand(case.large_prompt.num_visual_tokens, generator=lots))


BASELINES: dict[str, Ranker] = {"uniform": uniform, "random": random}
