"""Records -> the numbers of the report, each with its interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

import numpy as np

from sgl_engine.evaluation import evidence
from sgl_engine.evaluation.intervals import (
    Bin,
    Bootstrap,
    Floats,
    Interval,
    auroc,
    calibration_error,
    reliability,
)
from sgl_engine.evaluation.records import BenchAnswer, Scored
from sgl_engine.evaluation.threshold_sweep import NEVER, THRESHOLDS, Cascade, Measured, column

SHOWN_THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Of the sweep, in the main table."""


@dataclass(frozen=True)
class SystemSummary:
    """One system over all rows.

    Attributes:
        name: For people.
        value: Mean value of its answers, in [0, 1].
        versus_large: That minus the large model alone's, on the same rows.
        tflops: Mean per question, of both models.
        tflops_share: Of what the large model alone takes.
        ms: Mean milliseconds per question.
        ms_share: Of what the large model alone takes.
        retention: Visual tokens that the large model sees, averaged over layers and rows; None without it.
        escalated: Share of the rows that it answered; None where nothing was decided.
        threshold: Of a cascade.
        point: Operating point.
    """

    name: str
    value: Interval
    versus_large: Interval
    tflops: float
    tflops_share: Interval
    ms: float
    ms_share: Interval
    retention: float | None = None
    escalated: Interval | None = None
    threshold: float | None = None
    point: str | None = None


@dataclass(frozen=True, eq=False)
class Summary:
    """Everything that tables and figures show.

    Attributes:
        rows: In the order of the data; at least one.
        draws: Resamples of them.
        point: Operating point of the cascade.
        threshold: Of the cascade, where one is singled out.
    """

    rows: Sequence[Scored]
    draws: Bootstrap
    point: str
    threshold: float

    @cached_property
    def points(self) -> list[str]:
        """Names of the operating points, the one that shows most first."""
        return sorted(self.rows[0].outcome.guided, key=lambda point: -self.retention(point))

    @cached_property
    def rankers(self) -> list[str]:
        """Names of the rankers, in the order of the run."""
        return list(next((each.outcome.pruned for each in self.rows if each.outcome.compared), ()))

    @cached_property
    def compared(self) -> Summary:
        """The same of the rows in which rankers and studies took part; of all where they did in none."""
        rows = [each for each in self.rows if each.outcome.compared]
        if len(rows) in {0, len(self.rows)}:
            return self
        draws = Bootstrap(len(rows), draws=self.draws.draws, seed=self.draws.seed)
        return replace(self, rows=rows, draws=draws)

    @cached_property
    def kinds(self) -> dict[str, list[bool]]:
        """Kind -> which rows are of it, in alphabetical order."""
        names = sorted({each.row.kind for each in self.rows})
        return {name: [each.row.kind == name for each in self.rows] for name in names}

    @cached_property
    def grids(self) -> dict[str, list[bool]]:
        """Number of tiles in words -> which rows' pictures are cut so; empty where all are cut alike."""
        counts = [each.outcome.study.get(evidence.STUDY, {}).get("grids", 1) for each in self.rows]
        if len(set(counts)) == 1:
            return {}
        named = {count: f"{count} tile{'s' * (count > 1)}" for count in sorted(set(counts))}
        return {name: [each == count for each in counts] for count, name in named.items()}

    def evidence(self, ranker: str, point: str) -> Interval:
        """Averages the share of the evidence that a ranker keeps; NaN where no row's evidence is known."""
        known = [each.outcome.study.get(evidence.STUDY, {}).get("evidence") for each in self.rows]
        shares = [each[ranker][point] if each else 0.0 for each in known]
        return self.draws.mean(shares, [bool(each) for each in known])

    @cached_property
    def right(self) -> list[bool]:
        """Whether the small model's answer is right."""
        return [each.outcome.small.right for each in self.rows]

    @cached_property
    def scores(self) -> Floats:
        """The small model's scores, float64 (rows,); 0 where one is not a number."""
        return np.nan_to_num(column(self.rows, lambda outcome: outcome.score))

    @cached_property
    def small(self) -> Floats:
        """Values of the small model's answers, float64 (rows,)."""
        return column(self.rows, lambda outcome: outcome.small.value)

    @cached_property
    def large(self) -> Floats:
        """Values of the large model's own answers, float64 (rows,)."""
        return column(self.rows, lambda outcome: outcome.large.value)

    def ranked(self, ranker: str, point: str) -> Floats:
        """Collects values of the large model's answers under a ranker, float64 (rows,)."""
        return column(self.rows, lambda outcome: outcome.pruned[ranker][point].value)

    def retention(self, point: str) -> float:
        """Averages retention at an operating point over all rows."""
        return float(np.mean([each.outcome.guided[point].retention for each in self.rows]))

    def measured(self, point: str | None) -> Measured:
        """Collects what cascades at a point are composed of; None is unpruned."""
        return Measured.of(self.rows, point)

    @cached_property
    def systems(self) -> list[SystemSummary]:
        """Lines of the main table: both models alone, guided at each point, the cascade."""
        alone = [
            self._alone("small alone", [each.outcome.small for each in self.rows], retention=None),
            self._alone("large alone", [each.outcome.large for each in self.rows], retention=1.0),
        ]
        guided = [self.cascade(point, NEVER, name=f"large, guided {point}") for point in self.points]
        cascades = [self.cascade(self.point, each) for each in SHOWN_THRESHOLDS]
        return [*alone, *guided, *cascades]

    @cached_property
    def sweep(self) -> list[SystemSummary]:
        """The cascade at every threshold, at its operating point."""
        return [self.cascade(self.point, threshold) for threshold in (*THRESHOLDS, NEVER)]

    def cascade(self, point: str | None, threshold: float, *, name: str | None = None) -> SystemSummary:
        """Sums up the cascade at a point and a threshold; ``NEVER`` escalates every row."""
        composed = self.measured(point).at(threshold)
        named = "no exit" if threshold > 1 else f"exit {threshold:g}"
        return self._system(
            name or f"cascade {point or 'unpruned'}, {named}",
            composed.value,
            composed.tflops,
            composed.ms,
            escalated=self.draws.mean(composed.escalated),
            threshold=threshold,
            point=point,
            retention=1.0 if point is None else self.retention(point),
        )

    def _alone(self, name: str, answers: Sequence[BenchAnswer], *, retention: float | None) -> SystemSummary:
        value, tflops, ms = (
            np.array([getattr(answer, of) for answer in answers], dtype=float)
            for of in ("value", "tflops", "ms")
        )
        return self._system(name, value, tflops, ms, retention=retention)

    def _system(
        self,
        name: str,
        value: Floats,
        tflops: Floats,
        ms: Floats,
        *,
        retention: float | None,
        escalated: Interval | None = None,
        threshold: float | None = None,
        point: str | None = None,
    ) -> SystemSummary:
        alone = column(self.rows, lambda outcome: outcome.large.tflops)
        alone_ms = column(self.rows, lambda outcome: outcome.large.ms or 0.0)
        return SystemSummary(
            name=name,
            value=self.draws.mean(value),
            versus_large=self.draws.difference(value, self.large),
            tflops=float(tflops.mean()),
            tflops_share=self.draws.ratio(tflops, alone),
            ms=float(ms.mean()),
            ms_share=self.draws.ratio(ms, alone_ms),
            retention=retention,
            escalated=escalated,
            threshold=threshold,
            point=point,
        )

    @cached_property
    def chosen(self) -> Cascade:
        """The cascade at its point and threshold, row by row."""
        return self.measured(self.point).at(self.threshold)

    @cached_property
    def auroc(self) -> Interval:
        """How well the score tells the small model's right answers from its wrong ones."""
        return self.draws.statistic(lambda weights: auroc(self.scores, self.right, weights))

    @cached_property
    def auroc_within(self) -> float:
        """The same within a kind of question, averaged over kinds that have right and wrong answers."""
        found = [self.auroc_where(where) for where in self.kinds.values()]
        known = [area for area in found if not math.isnan(area)]
        return fmean(known) if known else math.nan

    def auroc_where(self, where: Sequence[bool]) -> float:
        """The same over some of the rows."""
        return auroc(self.scores, self.right, np.asarray(where, dtype=float))

    @cached_property
    def bins(self) -> list[Bin]:
        """Small answers by score, with the share of right ones in each bin."""
        return reliability(self.scores, self.right)

    @cached_property
    def calibration_error(self) -> float:
        """ECE of the small model's score."""
        return calibration_error(self.bins)

    def same_side_by_side(self, ranker: str) -> tuple[int, int]:
        """Counts the ranker's answers that equal those of single runs of the engine, and all of them."""
        pairs = [
            (each.outcome.pruned[ranker][point].text, each.outcome.guided[point].text)
            for each in self.rows
            for point in self.points
        ]
        return sum(one.strip() == other.strip() for one, other in pairs), len(pairs)
