"""Is the promise of a calibration kept where the true risk is known? Simulated calibration sets.

    python -m benchmarks.coverage

A score u is uniform in [0, 1]. A good score's answers do harm with probability 0.25 * (1 - u); those of a
score that knows nothing, with 0.125. Of 1000 records, one half is fitted on and the other certifies at 90 %
confidence. The true risk of the threshold is an integral, and may be above its target in at most 10 % of the
sets. The control takes the threshold whose observed risk is within the target.

"The whole": questions also have a focus c, uniform in [0, 1] and independent of u. What does not exit goes to
the cheaper of two rungs, whose answers do harm with probability 0.3 * (1 - c) and 0.1 * (1 - c), as far as
calibrated probabilities reach the threshold; all that is done is certified.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from rich.console import Console

from sgl_engine.calibration.certify import certify, certify_share, empirical_threshold, thresholds_of
from sgl_engine.calibration.fitting import fit
from sgl_engine.calibration.ways import choose
from sgl_engine.evaluation.tables import Table
from sgl_engine.exit.calibrators import SCORE, Isotonic, Logistic

RECORDS, LEVEL, SETS = 1000, 0.9, 500
HARM = 0.25
TARGETS = (0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Coverage:
    """What became of the sets.

    Attributes:
        exceeded: Sets whose certified threshold has a true risk above the target.
        control_exceeded: The same of the threshold whose observed risk is within the target.
        exits: Mean share that exits at the certified threshold, in [0, 1].
        sets: How many there were.
    """

    exceeded: int
    control_exceeded: int
    exits: float
    sets: int


def simulate(*, informative: bool, target: float, sets: int = SETS) -> Coverage:
    """Calibrates on so many simulated sets; set number n is the same every time."""
    ours, control, exits = 0, 0, []
    for seed in range(sets):
        scores, harmful = draw(np.random.default_rng((seed, informative)), informative=informative)
        values = [{SCORE: score} for score in scores.tolist()]
        half = RECORDS // 2
        calibrator = fit("isotonic", values[:half], (~harmful[:half]).tolist())
        probabilities = _probabilities([calibrator], scores[:, None])[:, 0]
        grid = thresholds_of(probabilities[:half].tolist())
        rest = (probabilities[half:], harmful[half:].tolist(), grid)
        certified = certify(*rest, target_risk=target, confidence_level=LEVEL)
        observed = empirical_threshold(*rest, target_risk=target)
        ours += _true_risk(_lowest_exit(calibrator, certified.threshold), informative=informative) > target
        control += _true_risk(_lowest_exit(calibrator, observed), informative=informative) > target
        exits.append(certified.exit_share)
    return Coverage(ours, control, fmean(exits), sets)


def simulate_whole(*, target: float, sets: int = SETS) -> Coverage:
    """The same where calibrators of two rungs choose as well, and everything that is done is certified."""
    ours, control, exits = 0, 0, []
    for seed in range(sets):
        rng = np.random.default_rng((seed, 7))
        values = rng.random((RECORDS, 2))  # score and focus
        harmful = rng.random((RECORDS, 3)) < _chances(values)
        half = RECORDS // 2
        calibrators = [
            fit("isotonic", [{SCORE: each} for each in column.tolist()], (~harm).tolist())
            for column, harm in zip(values[:half, _READS].T, harmful[:half].T, strict=True)
        ]
        probabilities = _probabilities(calibrators, values[:, _READS])
        grid = thresholds_of(probabilities[:half].ravel().tolist())
        rest = (probabilities[half:], harmful[half:], grid)
        certified = certify(*rest, target_risk=target, confidence_level=LEVEL)
        observed = empirical_threshold(*rest, target_risk=target)
        ours += _whole_risk(calibrators, certified.threshold) > target
        control += _whole_risk(calibrators, observed) > target
        exits.append(certified.exit_share)
    return Coverage(ours, control, fmean(exits), sets)


def simulate_share(*, target: float, sets: int = SETS) -> Coverage:
    """The same of the share that goes to the large model; too many go there in an exceeded set."""
    ours, control, exits = 0, 0, []
    for seed in range(sets):
        scores, harmful = draw(np.random.default_rng((seed, 11)), informative=True)
        values = [{SCORE: score} for score in scores.tolist()]
        half = RECORDS // 2
        calibrator = fit("isotonic", values[:half], (~harmful[:half]).tolist())
        probabilities = _probabilities([calibrator], scores[:, None])
        grid = thresholds_of(probabilities[:half, 0].tolist())
        rest = (probabilities[half:], harmful[half:, None])
        certified = certify_share(*rest, grid, target_share=target, confidence_level=LEVEL)
        observed = [at for at in grid if (rest[0] < at).mean() <= target]
        # Scores are uniform, so the share that escalates is the lowest score that is kept.
        ours += _lowest_exit(calibrator, certified.threshold) > target
        control += _lowest_exit(calibrator, max(observed)) > target
        exits.append(1 - certified.escalated_share)
    return Coverage(ours, control, fmean(exits), sets)


_READS = [0, 1, 1]
"""What each way's calibrator reads: the exit's the score, the rungs' the focus."""
_GRID = np.stack(np.meshgrid(*2 * [(np.arange(80) + 0.5) / 80]), axis=-1).reshape(-1, 2)


def _chances(values: np.ndarray) -> np.ndarray:
    """Probability of harm of each way, (n, 3)."""
    return (1 - values[:, _READS]) * (HARM, 0.3, 0.1)


def _probabilities(calibrators: Sequence[Isotonic | Logistic], columns: np.ndarray) -> np.ndarray:
    """What ``probability`` of each calibrator says of its column of (n, calibrators), all rows at once."""
    said = [
        np.interp(column, each.x, each.y)
        for column, each in zip(columns.T, calibrators, strict=True)
        if isinstance(each, Isotonic)
    ]
    return np.stack(said, axis=1)


def _whole_risk(calibrators: Sequence[Isotonic | Logistic], threshold: float | None) -> float:
    """P(harm) of all that is done at a threshold, over scores and focuses."""
    chances = np.column_stack([_chances(_GRID), np.zeros(len(_GRID))])
    chosen = choose(_probabilities(calibrators, _GRID[:, _READS]), threshold)
    return float(chances[np.arange(len(_GRID)), chosen].mean())


def draw(rng: np.random.Generator, *, informative: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores and harm of one set."""
    scores = rng.random(RECORDS)
    chance = HARM * (1 - scores) if informative else np.full(RECORDS, HARM / 2)
    return scores, rng.random(RECORDS) < chance


def _true_risk(lowest_score: float, *, informative: bool) -> float:
    """P(exit and harm) where all scores from this one on exit."""
    return HARM / 2 * ((1 - lowest_score) ** 2 if informative else (1 - lowest_score))


def _lowest_exit(calibrator: Isotonic | Logistic, threshold: float | None) -> float:
    """The score from which on answers are kept, by bisection: the calibrator rises with the score."""
    low, high = 0.0, 1.0
    if threshold is None:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        probability = calibrator.probability({SCORE: middle})
        assert probability is not None
        low, high = (low, middle) if probability >= threshold else (middle, high)
    return high


def main() -> None:
    """Simulate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=SETS)
    sets = parser.parse_args().sets
    rows = []
    for informative in (True, False):
        for target in TARGETS:
            found = simulate(informative=informative, target=target, sets=sets)
            name = "a good score" if informative else "a score that knows nothing"
            counts = (found.exceeded / sets, found.control_exceeded / sets, found.exits)
            rows.append((name, f"{target:.0%}", *(f"{share:.1%}" for share in counts)))
    for target in TARGETS:
        found = simulate_whole(target=target, sets=sets)
        counts = (found.exceeded / sets, found.control_exceeded / sets, found.exits)
        rows.append(("the whole", f"{target:.0%}", *(f"{share:.1%}" for share in counts)))
    for target in (0.1, 0.3, 0.5):
        found = simulate_share(target=target, sets=sets)
        counts = (found.exceeded / sets, found.control_exceeded / sets, found.exits)
        rows.append(("the large model's share", f"{target:.0%}", *(f"{share:.1%}" for share in counts)))
    columns = ("score", "target", "risk above it", "control: above it", "exits")
    Console().print(Table(f"{sets} simulated sets of {RECORDS} records", columns, rows).rich())


if __name__ == "__main__":
    main()
