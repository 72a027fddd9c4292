"""The loosest threshold whose risk is bounded with a given confidence: fixed-sequence Learn-then-Test. Pure.

The risk of a threshold is joint: P(exits and harms), over all questions, exits or not. It is what a cascade
loses against always asking the large model, and it can only grow when the threshold falls, so that testing
thresholds from the strictest on wastes nothing. (The risk among exits has no such order, and the strictest
thresholds have too few exits to be tested first; it is reported, not certified.)

Angelopoulos, Bates, Candes, Jordan, Lei: "Learn then Test" (2021), section 4 on fixed sequences; p-values are
those of the exact binomial test, without an approximation. The thresholds must be fixed before the records
are looked at: they come from the other half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgl_engine.evaluation.optional import extra
from sgl_engine.exit import OperatingPoint

MAX_THRESHOLDS = 100
_ENOUGH = 10_000_000  # records: beyond it, "collect more" is no advice


def thresholds_of(probabilities: Sequence[float], count: int = MAX_THRESHOLDS) -> tuple[float, ...]:
    """Picks the thresholds to be tested, strictest first: quantiles of the *fitting* half's probabilities."""
    distinct = np.unique(np.asarray(probabilities, dtype=np.float64))[::-1]
    if len(distinct) <= count:
        return tuple(distinct.tolist())
    levels = np.linspace(1.0, 0.0, count)
    # Attained values only ("higher"), so that the ties of a step stay together.
    quantiles = np.quantile(np.asarray(probabilities), levels, method="higher")
    return tuple(np.unique(quantiles)[::-1].tolist())


def certify(
    probabilities: Sequence[float] | NDArray[np.float64],
    harmful: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float],
    *,
    target_risk: float,
    confidence_level: float,
) -> OperatingPoint:
    """Tests thresholds until the first that cannot be certified; the one before it is the result.

    P(risk of the result <= target_risk) >= confidence_level, over draws of the records.

    Args:
        probabilities: Calibrated ones (n,), of records that neither the calibrator nor the thresholds saw.
        harmful: Whether keeping each small answer does harm (n,).
        thresholds: Strictest (highest) first.
        target_risk: In (0, 1).
        confidence_level: 1 - delta, in (0, 1).

    Raises:
        ConfigError: scipy is not installed.
    """
    errors, exits = _counts(probabilities, harmful, thresholds)
    p_values = binomial_p_values(errors, len(probabilities), target_risk)
    # In a fixed sequence, the first test that fails ends it: whatever follows may not be looked at.
    failed = np.flatnonzero(~(p_values <= 1 - confidence_level))
    last = (int(failed[0]) if len(failed) else len(p_values)) - 1
    if last < 0:  # not even the strictest
        seen = int(errors[0]) if len(errors) else 0
        return OperatingPoint(
            target_risk=target_risk,
            threshold=None,
            records=len(probabilities),
            exits=0,
            harmful_exits=0,
            p_value=float(p_values[0]) if len(p_values) else 1.0,
            records_needed=records_needed(
                target_risk, confidence_level, seen / len(probabilities) if len(probabilities) else 0.0
            ),
        )
    return OperatingPoint(
        target_risk=target_risk,
        threshold=float(thresholds[last]),
        records=len(probabilities),
        exits=int(exits[last]),
        harmful_exits=int(errors[last]),
        p_value=float(p_values[last]),
    )


def empirical_threshold(
    probabilities: Sequence[float] | NDArray[np.float64],
    harmful: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float],
    *,
    target_risk: float,
) -> float | None:
    """Finds the loosest threshold whose *observed* risk is within the target. It promises nothing."""
    errors, _ = _counts(probabilities, harmful, thresholds)
    good = np.flatnonzero(errors <= target_risk * len(probabilities))
    return float(thresholds[int(good[-1])]) if len(good) else None


def _counts(
    probabilities: Sequence[float] | NDArray[np.float64],
    harmful: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts harmful exits and exits at each threshold, int64 (thresholds,); a tie with it exits."""
    values, losses = np.asarray(probabilities, dtype=np.float64), np.asarray(harmful, dtype=bool)
    levels = np.asarray(thresholds, dtype=np.float64)
    return tuple(  # type: ignore[return-value]
        len(chosen) - np.searchsorted(np.sort(chosen), levels, side="left")
        for chosen in (values[losses], values)
    )


def binomial_p_values(
    errors: NDArray[np.int64] | int, records: int, target_risk: float
) -> NDArray[np.float64]:
    """Computes P(at most so many errors) if the risk were the target; small = the risk is less."""
    p_values = extra("scipy.stats").binom.cdf(errors, records, target_risk)
    return np.atleast_1d(np.asarray(p_values, dtype=np.float64))


def records_needed(target_risk: float, confidence_level: float, error_rate: float = 0.0) -> int | None:
    """Searches the least n at which a threshold with this error rate is certified; None where none is.

    Without errors (1 - target)^n <= delta, so n = log(delta) / log(1 - target).
    """
    delta = 1 - confidence_level

    def enough(n: int) -> bool:
        return float(binomial_p_values(math.ceil(error_rate * n), n, target_risk)[0]) <= delta

    high = math.ceil(math.log(delta) / math.log1p(-target_risk))
    if error_rate == 0.0:  # the formula is exact
        return high
    while not enough(high):  # double until it is enough, then halve the gap
        high *= 2
        if high > _ENOUGH:
            return None
    low = high // 2
    while high - low > 1:  # about: p-values are not quite monotone in n, since errors are whole
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
