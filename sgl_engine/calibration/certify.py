"""The loosest threshold whose risk is bounded with a given confidence: fixed-sequence Learn-then-Test. Pure.

The risk of a threshold is joint: P(exits and harms), over all questions, exits or not. It is what a cascade
loses against always asking the large model, and it can only grow when the threshold falls, so that testing
thresholds from the strictest on wastes nothing. (The risk among exits has no such order, and the strictest
thresholds have too few exits to be tested first; it is reported, not certified.)

Where the calibration also chooses what the large model is shown, the risk is that of all that is done,
against the large model that is shown everything. It need not grow when the threshold falls: a question may go
from a rung that fails it to a cheaper one that happens not to. The test is valid all the same, as it needs no
order; what it may lose is a looser threshold behind one that fails.

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
from sgl_engine.exit import OperatingPoint, SharePoint

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
        probabilities: Calibrated ones (n,), of records that neither the calibrator nor the thresholds saw; or
            (n, ways), where there is more to choose than whether to exit (``Ways``).
        harmful: Whether keeping each small answer, or taking each way, does harm; of the same shape.
        thresholds: Strictest (highest) first.
        target_risk: In (0, 1).
        confidence_level: 1 - delta, in (0, 1).

    Raises:
        ConfigError: scipy is not installed.
    """
    errors, taken = _counts(probabilities, harmful, thresholds)
    p_values = binomial_p_values(errors.sum(axis=1), len(probabilities), target_risk)
    # In a fixed sequence, the first test that fails ends it: whatever follows may not be looked at.
    failed = np.flatnonzero(~(p_values <= 1 - confidence_level))
    last = (int(failed[0]) if len(failed) else len(p_values)) - 1
    if last < 0:  # not even the strictest
        seen = int(errors[0].sum()) if len(errors) else 0
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
        exits=int(taken[last, 0]),
        harmful_exits=int(errors[last, 0]),
        p_value=float(p_values[last]),
        rungs=tuple(taken[last, 1:].tolist()),
        harmful_rungs=int(errors[last, 1:].sum()),
    )


def certify_share(
    probabilities: NDArray[np.float64],
    harmful: NDArray[np.bool_],
    thresholds: Sequence[float],
    *,
    target_share: float,
    confidence_level: float,
) -> SharePoint:
    """Tests thresholds from the loosest on, until the first whose escalations cannot be bounded.

    P(share that escalates at the result <= target_share) >= confidence_level, over draws of the records.
    Fewer escalate the looser a threshold is, so the test can begin where nearly none does. The result is the
    strictest threshold that passes, as that does the least harm.

    Args:
        probabilities: Calibrated ones (n, ways), the exit's first, of records that were not fitted on.
        harmful: Whether each way does harm; of the same shape.
        thresholds: In any order; fixed before the records were looked at.
        target_share: In (0, 1).
        confidence_level: 1 - delta, in (0, 1).

    Raises:
        ConfigError: scipy is not installed.
    """
    grid = sorted(thresholds)
    leaving = probabilities[:, 0]
    escalated = (leaving < np.asarray(grid)[:, None]).sum(axis=1)
    p_values = binomial_p_values(escalated, len(probabilities), target_share)
    failed = np.flatnonzero(~(p_values <= 1 - confidence_level))
    last = (int(failed[0]) if len(failed) else len(p_values)) - 1
    if last < 0:
        return SharePoint(
            target_share=target_share,
            threshold=None,
            records=len(probabilities),
            escalated=len(probabilities),
            harmed=0,
            p_value=float(p_values[0]) if len(p_values) else 1.0,
        )
    errors, _ = _counts(probabilities, harmful, grid[last : last + 1])
    return SharePoint(
        target_share=target_share,
        threshold=float(grid[last]),
        records=len(probabilities),
        escalated=int(escalated[last]),
        harmed=int(errors.sum()),
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
    good = np.flatnonzero(errors.sum(axis=1) <= target_risk * len(probabilities))
    return float(thresholds[int(good[-1])]) if len(good) else None


def _counts(
    probabilities: Sequence[float] | NDArray[np.float64],
    harmful: Sequence[bool] | NDArray[np.bool_],
    thresholds: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts how often each way does harm, and is taken, at each threshold: int64 (thresholds, ways) both."""
    values, losses = np.asarray(probabilities, dtype=np.float64), np.asarray(harmful, dtype=bool)
    if values.ndim == 1:
        values, losses = values[:, None], losses[:, None]
    # (thresholds, n, ways): which way is the first whose probability is enough, as ``Ways.choose`` does.
    enough = values >= np.asarray(thresholds, dtype=np.float64)[:, None, None]
    taken = enough & (enough.cumsum(axis=2) == 1)
    return (taken & losses).sum(axis=1), taken.sum(axis=1)


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
