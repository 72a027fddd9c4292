"""Answers -> each benchmark's own score, and the paper's last column, with intervals. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sgl_engine.evaluation.intervals import Bootstrap, Floats, Interval, quantiles
from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS, Benchmark
from sgl_engine.evaluation.records import BenchAnswer, BenchOutcome, DataRow, Scored
from sgl_engine.evaluation.tables import Table

MME_QUESTIONS = 2
"""About each picture of MME; its acc+ is of pictures, so one that lacks a question has none."""

Value: TypeAlias = Callable[[DataRow, BenchAnswer], float]
"""An answer's value in [0, 1]; NaN where it was not judged."""
System: TypeAlias = Callable[[BenchOutcome], tuple[BenchAnswer, float]]
"""Outcome -> the system's answer, and what it took, in TFLOPs, of both models."""


def _group(row: DataRow) -> str:
    return row.group or f"row {row.index}"


def of_group(metric: str, values: Sequence[float]) -> float:
    """Scores rows that are scored together, in [0, 1].

    MME: the mean of acc and acc+, which is 1 where both answers are right (Fu et al., 2023, section 2.2).
    MMBench: 1 where all rotations of the options are answered rightly (Liu et al., 2024, section 4.2).
    """
    if metric == "yes_no":
        return (sum(values) / len(values) + all(values)) / 2
    return min(values) if metric == "choice" else sum(values) / len(values)


def score_of(units: Floats, parts: npt.NDArray[np.int_], scale: float, weights: Floats) -> Floats:
    """Adds up the parts' means, each times ``scale``.

    Args:
        units: Scores of groups in [0, 1], float64 (U,).
        parts: Which part each belongs to, int (U,), from 0.
        scale: A part's score where all is right.
        weights: How often each is drawn, float64 (draws, U).

    Returns:
        float64 (draws,). A part that was not drawn counts as the mean of the others.
    """
    if np.isnan(units).any():  # not all were judged
        return np.full(len(weights), math.nan)
    of_part = np.eye(int(parts.max()) + 1)[parts]
    with np.errstate(invalid="ignore"):
        means = (weights @ (units[:, None] * of_part)) / (weights @ of_part)
    found: Floats = scale * np.nanmean(means, axis=1) * of_part.shape[1]
    return found


@dataclass(frozen=True, eq=False)
class BenchmarkScore:
    """How the rows of one benchmark become its score.

    Attributes:
        benchmark: Which.
        rows: Those with an outcome.
        groups: Places in ``rows`` that are scored together.
        incomplete: Groups that are left out, because a row of theirs failed or is not there.
        draws: Resamples.
    """

    benchmark: Benchmark
    rows: Sequence[Scored]
    groups: Sequence[tuple[int, ...]]
    incomplete: tuple[str, ...]
    draws: int = 2000

    @classmethod
    def of(
        cls, benchmark: Benchmark, asked: Sequence[DataRow], rows: Sequence[Scored], draws: int
    ) -> BenchmarkScore:
        """Groups rows.

        Args:
            benchmark: Which.
            asked: All of its rows.
            rows: Those with an outcome.
            draws: Resamples.
        """
        wanted: dict[str, list[DataRow]] = {}
        for row in asked:
            wanted.setdefault(_group(row), []).append(row)
        there: dict[str, list[int]] = {}
        for place, scored in enumerate(rows):
            there.setdefault(_group(scored.row), []).append(place)
        whole, lacking = [], []
        for name, members in wanted.items():
            found = there.get(name, [])
            in_pairs = members[0].metric == "yes_no"
            if len(found) == len(members) and (len(found) == MME_QUESTIONS or not in_pairs):
                whole.append(tuple(found))
            elif len(members) > 1 or in_pairs:  # else, the row that failed is named anyway
                lacking.append(name)
        return cls(benchmark, rows, whole, tuple(lacking), draws)

    @cached_property
    def parts(self) -> npt.NDArray[np.int_]:
        """Which part each group belongs to, int (U,)."""
        names = [self.rows[group[0]].row.part for group in self.groups]
        order = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([order[name] for name in names], dtype=int)

    @cached_property
    def weights(self) -> Floats:
        """The groups themselves, then resamples of them, float64 (1 + draws, U)."""
        drawn = Bootstrap(len(self.groups), draws=self.draws).weights
        return np.concatenate([np.ones((1, len(self.groups))), drawn])

    def scores(self, system: System, value: Value) -> Floats:
        """Scores a system: float64 (1 + draws,), the score itself first; NaN where not all were judged."""
        values = [value(each.row, system(each.outcome)[0]) for each in self.rows]
        units = [
            of_group(self.rows[group[0]].row.metric, [values[place] for place in group])
            for group in self.groups
        ]
        return score_of(np.array(units), self.parts, self.benchmark.scale, self.weights)


def large_alone(outcome: BenchOutcome) -> tuple[BenchAnswer, float]:
    """Is the unpruned system."""
    return outcome.large, outcome.large.tflops


def _small_alone(outcome: BenchOutcome) -> tuple[BenchAnswer, float]:
    return outcome.small, outcome.small.tflops


def _guided(outcome: BenchOutcome, point: str) -> tuple[BenchAnswer, float]:
    answer = outcome.guided[point]
    return answer, outcome.small_pass_tflops + answer.tflops


def _cascade(outcome: BenchOutcome, point: str, threshold: float) -> tuple[BenchAnswer, float]:
    if outcome.score >= threshold:
        return outcome.small, outcome.small_pass_tflops
    return _guided(outcome, point)


def _ranked(outcome: BenchOutcome, ranker: str, point: str) -> tuple[BenchAnswer, float]:
    answer = outcome.pruned[ranker][point]
    return answer, answer.tflops


def systems_of(
    points: Iterable[str], rankers: Iterable[str], *, cascade_at: str, threshold: float
) -> dict[str, System]:
    """Names every system of a run, the unpruned one first.

    A ranker's operations are those of the large model's pass alone: what it costs to rank is left out.
    """
    points = list(points)
    return {
        "large alone": large_alone,
        **{f"large, guided {point}": partial(_guided, point=point) for point in points},
        f"cascade {cascade_at}, exit {threshold:g}": partial(_cascade, point=cascade_at, threshold=threshold),
        "small alone": _small_alone,
        **{
            f"{ranker} at {point}": partial(_ranked, ranker=ranker, point=point)
            for ranker in rankers
            for point in points
        },
    }


@dataclass(frozen=True, eq=False)
class PaperScores:
    """The paper's table of one run.

    Attributes:
        scorings: One for each benchmark that has rows.
        systems: Name -> its answers; the first is the large model alone, unpruned.
        value: What an answer is worth.
    """

    scorings: Sequence[BenchmarkScore]
    systems: Mapping[str, System]
    value: Value

    @cached_property
    def drawn(self) -> dict[str, dict[str, Floats]]:
        """System -> benchmark -> its score and those of resamples."""
        return {
            name: {
                each.benchmark.name: each.scores(system, self.value) for each in self.scorings if each.groups
            }
            for name, system in self.systems.items()
        }

    def score(self, system: str, benchmark: str) -> Interval:
        """Returns a benchmark's score on its own scale."""
        return quantiles(self.drawn[system][benchmark])

    @cached_property
    def comparable(self) -> list[str]:
        """Benchmarks on which a share of the unpruned score exists: it is known, and not 0."""
        [unpruned, *_] = self.drawn.values()
        return [name for name, scores in unpruned.items() if scores[0] > 0]

    def kept(self, system: str) -> Interval:
        """Averages score / unpruned score over benchmarks (SGL, table 1, last column); NaN without any.

        Resamples are of each benchmark's own questions, the same for both scores.
        """
        [unpruned, *_] = self.drawn.values()
        if not self.comparable:
            return Interval(math.nan, math.nan, math.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [self.drawn[system][name] / unpruned[name] for name in self.comparable]
        return quantiles(np.mean(ratios, axis=0))

    def operations(self, system: str) -> float:
        """Divides what a system took for all questions by what the large model alone took."""
        rows = [each.outcome for scoring in self.scorings for each in scoring.rows]
        taken, alone = (sum(of(each)[1] for each in rows) for of in (self.systems[system], large_alone))
        return taken / alone if alone else math.nan

    def table(self) -> Table:
        """Makes the paper's table."""
        names = [each.benchmark.name for each in self.scorings]
        rows = [
            (
                system,
                *(_shown(self.drawn[system].get(name)) for name in names),
                self.kept(system).percent(),
                f"{self.operations(system):.2f}",
            )
            for system in self.systems
        ]
        titles = [f"{BENCHMARKS[name].title} ({len(each.groups)})" for name, each in self._named]
        return Table(
            "The paper's benchmarks (in brackets, what is scored: questions, or pictures of MME); last, the "
            "mean of score / unpruned score in % (95 % interval); operations relative to large alone",
            ("system", *titles, "score kept %", "operations"),
            rows,
        )

    @property
    def _named(self) -> list[tuple[str, BenchmarkScore]]:
        return [(each.benchmark.name, each) for each in self.scorings]

    def notes(self) -> list[str]:
        """Says what the table leaves out."""
        lines = []
        for each in self.scorings:
            if each.incomplete:
                lines.append(
                    f"{each.benchmark.title}: {len(each.incomplete)} groups of questions are left out, as "
                    f"not all of theirs have an answer: {', '.join(each.incomplete[:5])}."
                )
            if each.benchmark.name not in self.comparable:
                lines.append(
                    f"{each.benchmark.title} is not in the last column: its unpruned score is 0 or unknown."
                )
        return lines

    def json(self) -> dict[str, dict[str, object]]:
        """Returns all numbers."""
        return {
            system: {
                **{name: quantiles(scores).json() for name, scores in self.drawn[system].items()},
                "score_kept": self.kept(system).json(),
                "operations": self.operations(system),
            }
            for system in self.systems
        }


def _shown(scores: Floats | None) -> str:
    if scores is None or math.isnan(scores[0]):
        return "n/a"
    return f"{scores[0]:.1f}"
