"""The large model's own attention: an upper reference, and FastV."""

from __future__ import annotations

from sgl_engine.attention import ImportanceMap, importance_map
from sgl_engine.rankers.case import Ranker, RankingCase

FASTV_LAYER = 1
"""0-based; FastV ranks by the attention of its second layer; where that has none, the next one does."""


def large_own(case: RankingCase) -> ImportanceMap:
    """Sums all layers and rows of its unpruned pass: an upper reference, which has paid for it."""
    return importance_map(case.large_sums, case.large_prompt.spans)


def large_one_layer(case: RankingCase) -> ImportanceMap:
    """Takes one layer of its unpruned pass, that in the middle, with all its rows."""
    maps = case.large_rows.maps
    return case.large_map(maps[len(maps) // 2])


def large_last_layer(case: RankingCase) -> ImportanceMap:
    """Takes one layer of its unpruned pass, the last, with all its rows."""
    return case.large_map(case.large_rows.maps[-1])


def large_prompt_rows(case: RankingCase) -> ImportanceMap:
    """Sums all layers of its prefill, without the rows of the answer."""
    return importance_map(case.large_sums, case.large_prompt.spans, rows="prefill")


def fastv(case: RankingCase) -> ImportanceMap:
    """Takes the last prompt token's row in one early layer (FastV, ECCV 2024, arXiv 2403.06764)."""
    rows = case.large_rows
    layer = next((layer for layer in rows.attending if layer >= FASTV_LAYER), rows.attending[-1])
    return case.large_map(rows.plain[layer, rows.prompt_rows - 1])


BASELINES: dict[str, Ranker] = {"large-own": large_own, "fastv": fastv}
PARTIAL: dict[str, Ranker] = {
    "large-one-layer": large_one_layer,
    "large-last-layer": large_last_layer,
    "large-prompt-rows": large_prompt_rows,
}
