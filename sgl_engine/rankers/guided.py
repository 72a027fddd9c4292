"""The small model's attention as it is (SGL, section 3.2)."""

from __future__ import annotations

from sgl_engine.rankers.case import RankingCase
from sgl_engine.types import ImportanceMap


def plain(case: RankingCase) -> ImportanceMap:
    """Summed over layers, heads and rows: what the engine itself uses."""
    assert case.small.importance is not None, "a case has pictures"
    return case.small.importance
