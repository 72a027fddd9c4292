"""Records -> a calibration: fit on one half, certify on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from sgl_engine import ConfigError, PruningConfig
from sgl_engine.calibration.certify import certify, certify_share, thresholds_of
from sgl_engine.calibration.fitting import Method, fit
from sgl_engine.calibration.records import CalibrationRecord, halves, one_of_each_picture
from sgl_engine.calibration.ways import Ways, harms
from sgl_engine.exit import Agreement, Calibration, OperatingPoint, Reference, Risk, Rung, Samples, SharePoint
from sgl_engine.report import engine_version

if TYPE_CHECKING:
    from sgl_engine.exit import Binding, Conditions, Isotonic, Logistic

_FEWEST = 10
_MAX_SCORES = 512


@dataclass(frozen=True)
class Promise:
    """What is to be certified.

    Attributes:
        targets: Risks, each certified by itself.
        confidence_level: 1 - delta.
        risk: What is bounded.
        agreement: How answers are compared, where that is disagreement.
        method: Of the calibrators.
        seed: Of the split into halves.
        shares: Of the questions that may go to the large model, each certified by itself.
    """

    targets: tuple[float, ...] = (0.02, 0.05)
    confidence_level: float = 0.9
    risk: Risk = "disagreement"
    agreement: Agreement = "text"
    method: Method = "isotonic"
    seed: int = 0
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what is no probability.

        Raises:
            ConfigError: A target, a share or the confidence level is not between 0 and 1, or there is no
                target.
        """
        for value in (*self.targets, *self.shares, self.confidence_level):
            if not 0.0 < value < 1.0:
                raise ConfigError(
                    f"{value} is not between 0 and 1.",
                    remedy="Write risks, shares and confidence as 0.05 and 0.9.",
                )
        if not self.targets:
            raise ConfigError("No target risk is given.", remedy="Give at least one, such as 0.05.")


@dataclass(frozen=True)
class Fitted:
    """One half's work, which the other half knows nothing of.

    Attributes:
        calibrator: Observation -> probability that an exit is harmless.
        thresholds: To be tested, strictest first.
        exits: The same where only exits count: quantiles of their own probabilities.
        rungs: The same calibrators of the rungs, by name, the cheapest first.
        promise: What they were fitted for.
        empty_answers: As in ``ExitConfig``.
    """

    calibrator: Isotonic | Logistic
    thresholds: tuple[float, ...]
    exits: tuple[float, ...]
    rungs: Mapping[str, Isotonic | Logistic]
    promise: Promise
    empty_answers: str = "escalate"

    def ways(self, records: Sequence[CalibrationRecord]) -> Ways:
        """Computes probabilities and harm of each way in which each record can be answered."""
        about = (self.promise.risk, self.promise.agreement, self.empty_answers)
        return Ways.of(records, self.calibrator, self.rungs, *about)


def fit_half(
    records: Sequence[CalibrationRecord],
    promise: Promise,
    rungs: Sequence[str] = (),
    empty_answers: str = "escalate",
) -> Fitted:
    """Fits the calibrators and fixes the thresholds.

    Args:
        records: The fitting half.
        promise: What is to be certified.
        rungs: Names of the rungs, the cheapest first; none certifies exits alone.
        empty_answers: As in ``ExitConfig``.

    Raises:
        ConfigError: A record has no score, or lacks a rung; or scikit-learn is not installed.
    """
    observations = [record.observation for record in records]
    harm = harms(records, rungs, promise.risk, promise.agreement)
    leaving, *others = (fit(promise.method, observations, (~column).tolist()) for column in harm.T)
    fitted = Fitted(leaving, (), (), dict(zip(rungs, others, strict=True)), promise, empty_answers)
    # Thresholds are quantiles of their own probabilities.
    found = fitted.ways(records).probabilities
    there = np.isfinite(found)
    return replace(
        fitted,
        thresholds=thresholds_of(found[there].tolist()),
        exits=thresholds_of(found[:, 0][there[:, 0]].tolist()),
    )


def certify_half(
    records: Sequence[CalibrationRecord], fitted: Fitted, promise: Promise
) -> tuple[tuple[OperatingPoint, ...], tuple[SharePoint, ...]]:
    """Tests the thresholds for every target risk, and for every share; both ascending."""
    ways, level = fitted.ways(records), promise.confidence_level
    seen = (ways.probabilities, ways.harmful)
    points = (
        certify(*seen, fitted.thresholds, target_risk=target, confidence_level=level)
        for target in sorted(set(promise.targets))
    )
    shares = (
        certify_share(*seen, fitted.exits, target_share=share, confidence_level=level)
        for share in sorted(set(promise.shares))
    )
    return tuple(points), tuple(shares)


def calibrate(
    records: Sequence[CalibrationRecord],
    promise: Promise,
    *,
    binding: Binding,
    conditions: Conditions,
    data: str,
    failed: int = 0,
    rungs: Mapping[str, PruningConfig] | None = None,
) -> Calibration:
    """Makes a calibration of the records.

    Args:
        records: What the questions showed; of the pictures, a random half is fitted on; of each of the
            others, at most one question is certified on (``one_of_each_picture``).
        promise: What is to be certified.
        binding: The pair and its settings.
        conditions: What the requests were like.
        data: Name of the data.
        failed: Rows that could not be answered.
        rungs: What the large model may be shown, by name, the cheapest first; then all that the cascade does
            is certified against the large model that is shown everything. None certifies exits alone.

    Raises:
        ConfigError: There are fewer than ten records, or the risk needs answers that they do not have.
    """
    if len(records) < _FEWEST:
        raise ConfigError(
            f"{len(records)} questions were answered.",
            remedy=f"Calibrate with {_FEWEST} at the very least; some hundreds are needed to promise 5 %.",
        )
    fitting, rest = halves(records, promise.seed)
    certifying = one_of_each_picture(rest, promise.seed)
    if not fitting or not certifying:
        raise ConfigError("All questions are about one picture.", remedy="Calibrate with more pictures.")
    rungs = rungs or {}
    fitted = fit_half(fitting, promise, tuple(rungs), binding.empty_answers)
    points, shares = certify_half(certifying, fitted, promise)
    return Calibration(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        package_version=engine_version(),
        binding=binding,
        conditions=conditions,
        risk=promise.risk,
        agreement=promise.agreement,
        confidence_level=promise.confidence_level,
        calibrator=fitted.calibrator,
        rungs=tuple(
            Rung(name=name, pruning=pruning, calibrator=fitted.rungs[name]) for name, pruning in rungs.items()
        ),
        points=points,
        shares=shares,
        samples=Samples(
            data=data,
            fitting=len(fitting),
            certifying=len(certifying),
            failed=failed,
            pictures=len({record.picture for record in records}),
            seed=promise.seed,
        ),
        reference=reference_of([record.score for record in certifying]),
    ).identified()


def reference_of(scores: Sequence[float]) -> Reference:
    """Picks quantiles that stand for the scores, to within 1 / 1024 of their distribution."""
    count = min(len(scores), _MAX_SCORES)
    places = ((np.arange(count) + 0.5) * len(scores) / count).astype(int)
    return Reference(records=len(scores), scores=tuple(np.sort(scores)[places].tolist()))
