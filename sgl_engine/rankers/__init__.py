"""Rankers: which visual tokens of the large model's prompt matter. For measurements, on equal terms.

    from sgl_engine.rankers import RANKERS, RankingCase

    case = RankingCase.of(engine, request)
    importance = RANKERS["divprune"](case)
    plan = plan_pruning(case.large_prompt, importance, layer=K, keep_ratio=r)

A ranker is a function from a case to an ``ImportanceMap``, higher = more important; ``plan_pruning`` carries
it onto the large model's grid where it was taken from another. The small model runs once per case, the large
one's own unpruned pass at most once, and only where a ranker asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from sgl_engine.rankers import attention, blind, diversity, guided
from sgl_engine.rankers.case import RankingCase
from sgl_engine.types import ImportanceMap

Ranker: TypeAlias = Callable[[RankingCase], ImportanceMap]
"""A case -> importance of visual tokens, of the small or of the large prompt."""

DEFAULT_RANKER = "small-guided"
"""What the engine itself does."""

BASELINES: dict[str, Ranker] = {
    DEFAULT_RANKER: guided.plain,
    "large-own": attention.large_own,
    "fastv": attention.fastv,
    "divprune": diversity.divprune,
    "dart": diversity.dart,
    "uniform": blind.uniform,
    "random": blind.random,
}
"""What the paper's way is held against."""

PARTIAL: dict[str, Ranker] = {
    "large-one-layer": attention.large_one_layer,
    "large-last-layer": attention.large_last_layer,
    "large-prompt-rows": attention.large_prompt_rows,
    "small-one-layer": guided.one_layer,
    "small-last-layer": guided.last_layer,
    "prompt-rows": guided.prompt_rows,
}
"""Parts of the sums, for the paper's first finding."""

MAPS: dict[str, Ranker] = {
    DEFAULT_RANKER: guided.plain,
    "value-norms": guided.value_norms,
    "without-recency": guided.without_recency,
    "capped": guided.capped,
    "relative": guided.relative,
    "even-layers": guided.even_layers,
    "middle-layers": guided.middle_layers,
    "late-layers": guided.late_layers,
    "question-rows": guided.question_rows,
    "answer-rows": guided.answer_rows,
    "even-rows": guided.even_rows,
    "sure-answer": guided.sure_answer,
    "sure-tokens": guided.sure_tokens,
    "sure-even-rows": guided.sure_even_rows,
    "diverse": diversity.importance_and_diversity,
}
"""Better maps of the small model's attention, all training-free, against the plain sum."""

RANKERS: dict[str, Ranker] = {**BASELINES, **PARTIAL, **MAPS}
"""Every ranker by name: one line each, in one of the three above."""

__all__ = ["BASELINES", "DEFAULT_RANKER", "MAPS", "PARTIAL", "RANKERS", "Ranker", "RankingCase"]
