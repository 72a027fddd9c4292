"""Rankers: which visual tokens of the large model's prompt matter. For measurements, on equal terms.

    from sgl_engine.rankers import RANKERS, RankingCase

    case = RankingCase.of(engine, request)
    importance = RANKERS["divprune"](case)
    plan = plan_pruning(case.large_prompt, importance, layer=K, keep_ratio=r)

A ranker is a function from a case to an ``ImportanceMap``, higher = more important; ``plan_pruning`` carries
it onto the large model's grid where it was taken from another. The small model runs once per case, the large
one's own unpruned pass at most once, and only where a ranker asks for it.

Each file ends with its rankers by name, in up to three dictionaries; here they are joined.
"""

from __future__ import annotations

from sgl_engine.rankers import baselines, diversity, dominance, guided, large_attention, staged, tiled
from sgl_engine.rankers.case import Ranker, RankingCase
from sgl_engine.rankers.guided import DEFAULT_RANKER

BASELINES: dict[str, Ranker] = {
    **guided.BASELINES,
    **large_attention.BASELINES,
    **diversity.BASELINES,
    **dominance.BASELINES,
    **staged.BASELINES,
    **baselines.BASELINES,
}
"""What the paper's way is held against."""

PARTIAL: dict[str, Ranker] = {**large_attention.PARTIAL, **guided.PARTIAL}
"""Parts of the sums, for the paper's first finding."""

MAPS: dict[str, Ranker] = {**guided.MAPS, **diversity.MAPS, **tiled.MAPS}
"""Better maps of the small model's attention, all training-free, against the plain sum."""

RANKERS: dict[str, Ranker] = {**BASELINES, **PARTIAL, **MAPS}
"""Every ranker by name."""

__all__ = ["BASELINES", "DEFAULT_RANKER", "MAPS", "PARTIAL", "RANKERS", "Ranker", "RankingCase"]
