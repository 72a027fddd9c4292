"""Does a calibration still hold on new questions? Risk, distribution of scores, and share of exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sgl_engine import ConfigError
from sgl_engine.calibration.records import CalibrationRecord, one_of_each_picture
from sgl_engine.calibration.ways import Ways
from sgl_engine.evaluation.optional import extra
from sgl_engine.exit import Calibration, OperatingPoint, Reference, SharePoint

_ALARM = 0.05
"""How often a calibration that holds is accused, all its operating points together."""
_SHIFT_ALARM = 0.01


@dataclass(frozen=True)
class PointCheck:
    """One operating point on new records.

    Attributes:
        point: As it was certified.
        records: New ones.
        exits: Of them, how many exit.
        harmed: How many were answered, by either model, so that it did harm.
        p_too_many: P(at least so many) if the risk were the target: small = it is more.
        p_few_enough: P(at most so many) if the risk were the target: small = certified anew.
        exits_p: Two-sided Fisher test of the share of exits against that of the calibration.
    """

    point: OperatingPoint
    records: int
    exits: int
    harmed: int
    p_too_many: float
    p_few_enough: float
    exits_p: float


@dataclass(frozen=True)
class ShareCheck:
    """One share of the questions that may go to the large model, on new records.

    Attributes:
        point: As it was certified.
        records: New ones.
        escalated: Of them, how many go to the large model.
        p_too_many: P(at least so many) if the share were the target: small = it is more.
        p_few_enough: P(at most so many) if the share were the target: small = certified anew.
    """

    point: SharePoint
    records: int
    escalated: int
    p_too_many: float
    p_few_enough: float


@dataclass(frozen=True)
class DriftCheck:
    """The verdict on a calibration.

    Attributes:
        verdict: "violated": harm, or asking the large model, is more frequent than promised. "confirmed": the
            new records certify every promise by themselves. "shifted": neither, and questions are scored
            otherwise than they were, so that the promise is about others. "compatible": nothing speaks
            against it.
        points: Each certified operating point.
        shares: Each certified share.
        scores_distance: Kolmogorov-Smirnov distance of the scores to those of the calibration, in [0, 1].
        scores_p: Its p-value.
        confidence_level: Of the calibration.
    """

    verdict: Literal["confirmed", "compatible", "shifted", "violated"]
    points: tuple[PointCheck, ...]
    shares: tuple[ShareCheck, ...]
    scores_distance: float
    scores_p: float
    confidence_level: float

    @property
    def holds(self) -> bool:
        """Whether the calibration may be used on; False where it is to be made anew."""
        return self.verdict in ("confirmed", "compatible")

    def describe(self) -> str:
        """Says it in plain words: the verdict, risk and exits of each operating point, the scores."""
        lines = [_VERDICTS[self.verdict]]
        for each in self.points:
            observed, point = each.harmed / each.records, each.point
            lines.append(
                f"Risk {point.target_risk:.1%}: observed {observed:.2%} ({each.harmed} of "
                f"{each.records}), when calibrated {point.observed_risk:.2%}; so many, or more, would have a "
                f"probability of {each.p_too_many:.3f} at that risk."
            )
            lines.append(
                f"  Exits: {each.exits / each.records:.1%}, when calibrated {point.exit_share:.1%} "
                f"(p = {each.exits_p:.3f} for no change)."
            )
        lines += [
            f"Share {each.point.target_share:.1%}: {each.escalated / each.records:.2%} went to the large "
            f"model ({each.escalated} of {each.records}), when calibrated {each.point.escalated_share:.2%}; "
            f"so many, or more, would have a probability of {each.p_too_many:.3f} at that share."
            for each in self.shares
        ]
        lines.append(
            f"Scores: distance {self.scores_distance:.3f} to the calibration's, p = {self.scores_p:.3g}."
        )
        return "\n".join(lines)


_VERDICTS = {
    "confirmed": "The calibration holds: the new questions certify it by themselves.",
    "compatible": "Nothing speaks against the calibration; the new questions are too few to certify it anew.",
    "shifted": "These questions are not like those of the calibration, so its promise may not be about them. "
    "Calibrate again, with them.",
    "violated": "The calibration does not hold: harm, or asking the large model, is more frequent than "
    "promised. Calibrate again.",
}


def check_drift(calibration: Calibration, records: Sequence[CalibrationRecord]) -> DriftCheck:
    """Compares new records with what was promised.

    Args:
        calibration: What was promised.
        records: New ones, of the same pair and settings; of each picture at most one is looked at.

    Raises:
        ConfigError: There are no records, no operating point was certified, or answers are missing.
    """
    certified = [point for point in calibration.points if point.threshold is not None]
    bounded = [share for share in calibration.shares if share.threshold is not None]
    if not (certified or bounded) or not records:
        raise ConfigError(
            "There is nothing to check: no record, or no certified threshold.",
            remedy="Check a calibration that certifies something, on data with rows that can be answered.",
        )
    records = one_of_each_picture(records, calibration.samples.seed)
    ways = Ways.under(calibration, records)
    points = tuple(_check(point, ways) for point in certified)
    shares = tuple(_check_share(share, ways) for share in bounded)
    distance, scores_p = scores_shift(calibration.reference, [record.score for record in records])
    return DriftCheck(
        _verdict(points, shares, scores_p, 1 - calibration.confidence_level),
        points,
        shares,
        distance,
        scores_p,
        calibration.confidence_level,
    )


def _check(point: OperatingPoint, ways: Ways) -> PointCheck:
    assert point.threshold is not None, "certified ones only"
    stats = extra("scipy.stats")
    exits = ways.choose(point.threshold) == 0
    count, left, harmed = len(exits), int(exits.sum()), int(ways.harmed(point.threshold).sum())
    table = [[left, count - left], [point.exits, point.records - point.exits]]
    return PointCheck(
        point=point,
        records=count,
        exits=left,
        harmed=harmed,
        p_too_many=float(stats.binom.sf(harmed - 1, count, point.target_risk)),
        p_few_enough=float(stats.binom.cdf(harmed, count, point.target_risk)),
        exits_p=float(stats.fisher_exact(table).pvalue),
    )


def _check_share(share: SharePoint, ways: Ways) -> ShareCheck:
    stats = extra("scipy.stats")
    chosen = ways.choose(share.threshold)
    count, escalated = len(chosen), int((chosen > 0).sum())
    return ShareCheck(
        point=share,
        records=count,
        escalated=escalated,
        p_too_many=float(stats.binom.sf(escalated - 1, count, share.target_share)),
        p_few_enough=float(stats.binom.cdf(escalated, count, share.target_share)),
    )


def _verdict(
    points: Sequence[PointCheck], shares: Sequence[ShareCheck], scores_p: float, delta: float
) -> Literal["confirmed", "compatible", "shifted", "violated"]:
    promises: tuple[PointCheck | ShareCheck, ...] = (*points, *shares)
    if any(each.p_too_many <= _ALARM / len(promises) for each in promises):  # Bonferroni
        return "violated"
    if all(each.p_few_enough <= delta for each in promises):
        return "confirmed"  # whatever else has changed: the promise was tested on these very questions
    # One test of the scores, and one of the exits for each point.
    shifted = min([scores_p, *(each.exits_p for each in points)]) <= _SHIFT_ALARM / (len(points) + 1)
    return "shifted" if shifted else "compatible"


def scores_shift(reference: Reference, scores: Sequence[float]) -> tuple[float, float]:
    """Computes the two-sample Kolmogorov-Smirnov distance and its p-value, from stored quantiles.

    The p-value is the asymptotic one, for the number of records that the quantiles stand for; with ties,
    which scores of 1 are, it errs on the side of no shift.
    """
    old, new = np.asarray(reference.scores), np.sort(scores)
    at = np.concatenate([old, new])
    old_share = np.searchsorted(old, at, side="right") / len(old)
    new_share = np.searchsorted(new, at, side="right") / len(new)
    distance = float(np.abs(old_share - new_share).max())
    # n m / (n + m), n the records that the quantiles stand for, not the quantiles.
    size = reference.records * len(new) / (reference.records + len(new))
    return distance, float(extra("scipy.stats").kstwobign.sf(np.sqrt(size) * distance))
