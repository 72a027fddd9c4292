"""What a cascade at one threshold would have done with recorded questions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sgl_engine.calibration.records import CalibrationRecord
from sgl_engine.evaluation.optional import extra


@dataclass(frozen=True)
class CascadeOutcome:
    """Sums over questions; shares and accuracies in [0, 1], None where answers or times are not known.

    Attributes:
        questions: How many.
        exits: Of them, how many never reach the large model.
        harmful_exits: Of those, how many did the harm that is bounded.
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
    harmful_exits: int
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
    records: Sequence[CalibrationRecord],
    probabilities: Sequence[float],
    harmful: Sequence[bool],
    threshold: float | None,
) -> CascadeOutcome:
    """Sums up what the cascade at a threshold would have done.

    Args:
        records: At least one.
        probabilities: Calibrated, one each.
        harmful: Whether keeping each small answer does harm.
        threshold: None escalates every question.
    """
    exits = [threshold is not None and probability >= threshold for probability in probabilities]
    pairs = list(zip(records, exits, strict=True))
    return CascadeOutcome(
        questions=len(records),
        exits=sum(exits),
        harmful_exits=sum(left and harm for left, harm in zip(exits, harmful, strict=True)),
        accuracy=_mean(each.small_right if left else each.large_right for each, left in pairs),
        small_accuracy=_mean(each.small_right for each in records),
        guided_accuracy=_mean(each.large_right for each in records),
        large_accuracy=_mean(each.alone_right for each in records),
        tflops=fmean(each.small_tflops + each.large_tflops * (not left) for each, left in pairs),
        large_tflops=fmean(each.alone_tflops for each in records),
        ms=fmean(each.small_ms + each.large_ms * (not left) for each, left in pairs),
        large_ms=_mean(each.alone_ms for each in records),
    )


def outcomes_by_kind(
    records: Sequence[CalibrationRecord],
    probabilities: Sequence[float],
    harmful: Sequence[bool],
    threshold: float | None,
) -> Mapping[str, CascadeOutcome]:
    """Calls ``outcome``, which has the same arguments, for each kind of question, in alphabetical order."""
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.kind, []).append(index)
    return {
        kind: outcome(
            [records[index] for index in rows],
            [probabilities[index] for index in rows],
            [harmful[index] for index in rows],
            threshold,
        )
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
