"""What a cascade at one threshold would have done with recorded questions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from sgl_engine.calibration.records import CalibrationRecord
from sgl_engine.calibration.ways import Ways
from sgl_engine.evaluation.optional import extra


@dataclass(frozen=True)
class CascadeOutcome:
    """Sums over questions; shares and accuracies in [0, 1], None where answers or times are not known.

    Attributes:
        questions: How many.
        exits: Of them, how many never reach the large model.
        harmed: How many were answered so that it did the harm that is bounded.
        rungs: Of those that reach it, how many are answered at each rung; the rest is shown everything.
        accuracy: Of the cascade.
        small_accuracy: Of the small model alone.
        guided_accuracy: Of the large model, guided and pruned, if it answered every question.
        large_accuracy: Of the large model alone, unpruned.
        tflops: Of the cascade, per question.
        large_tflops: Of the large model alone, per question.
        ms: Of the cascade, per question.
        large_ms: Of the large model alone, per question.
    """

    questions: int
    exits: int
    harmed: int
    rungs: tuple[int, ...]
    accuracy: float | None
    small_accuracy: float | None
    guided_accuracy: float | None
    large_accuracy: float | None
    tflops: float
    large_tflops: float
    ms: float
    large_ms: float | None

    @property
    def exit_share(self) -> float:
        """Share of the questions that never reach the large model."""
        return self.exits / self.questions

    @property
    def tflops_saved(self) -> float:
        """Fraction of the large model's operations; negative where the cascade needs more."""
        return 1 - self.tflops / self.large_tflops

    @property
    def ms_saved(self) -> float | None:
        """Fraction of the large model's time; negative where the cascade takes longer."""
        return None if self.large_ms is None else 1 - self.ms / self.large_ms

    @property
    def lost_by_exits(self) -> float | None:
        """Accuracy of the guided large model minus that of the cascade: what the risks bound."""
        return _difference(self.guided_accuracy, self.accuracy)

    @property
    def lost_by_pruning(self) -> float | None:
        """Accuracy of the large model alone minus that of the guided one."""
        return _difference(self.large_accuracy, self.guided_accuracy)

    @property
    def accuracy_lost(self) -> float | None:
        """Accuracy of the large model alone minus the cascade's; negative where the cascade is better."""
        return _difference(self.large_accuracy, self.accuracy)


def outcome(
    records: Sequence[CalibrationRecord], ways: Ways, rungs: Sequence[str], threshold: float | None
) -> CascadeOutcome:
    """Sums up what the cascade at a threshold would have done.

    Args:
        records: At least one.
        ways: Of each record.
        rungs: Names of all ways but the first.
        threshold: None escalates every question.
    """
    chosen = ways.choose(threshold).tolist()
    answers = [_answer(each, way, rungs) for each, way in zip(records, chosen, strict=True)]
    return CascadeOutcome(
        questions=len(records),
        exits=chosen.count(0),
        harmed=int(ways.harmed(threshold).sum()),
        rungs=tuple(chosen.count(1 + number) for number in range(len(rungs))),
        accuracy=_mean(answer.right for answer in answers),
        small_accuracy=_mean(each.small_right for each in records),
        guided_accuracy=_mean(each.large_right for each in records),
        large_accuracy=_mean(each.alone_right for each in records),
        tflops=fmean(answer.tflops for answer in answers),
        large_tflops=fmean(each.alone_tflops for each in records),
        ms=fmean(answer.ms for answer in answers),
        large_ms=_mean(each.alone_ms for each in records),
    )


class _Answer(NamedTuple):
    """What one way of answering comes to, the small pass included."""

    right: bool | None
    tflops: float
    ms: float


def _answer(record: CalibrationRecord, way: int, rungs: Sequence[str]) -> _Answer:
    if way == 0:
        return _Answer(record.small_right, record.small_tflops, record.small_ms)
    large = _Answer(record.large_right, record.large_tflops, record.large_ms)
    if way <= len(rungs):
        rung = record.rungs[rungs[way - 1]]
        large = _Answer(rung.right, rung.tflops, rung.ms)
    return _Answer(large.right, record.small_tflops + large.tflops, record.small_ms + large.ms)


def outcomes_by_kind(
    records: Sequence[CalibrationRecord], ways: Ways, rungs: Sequence[str], threshold: float | None
) -> Mapping[str, CascadeOutcome]:
    """Calls ``outcome``, which has the same arguments, for each kind of question, in alphabetical order."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.kind, []).append(index)
    return {
        kind: outcome([records[index] for index in rows], ways.only(rows), rungs, threshold)
        for kind, rows in sorted(groups.items())
    }


def _difference(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part


def _mean(values: Iterable[float | None]) -> float | None:
    """Averages; None where one is unknown: a mean over some would be compared with one over all."""
    known = list(values)
    return None if None in known else fmean(value for value in known if value is not None)


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Computes a share's 95 % interval (Clopper and Pearson, 1934), which never promises too much."""
    found = extra("scipy.stats").binomtest(hits, count).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)
