"""The ways in which each question can be answered, the cheapest first, and which one is taken. Pure.

    exit -> rungs of the ladder, the least retention first -> the large model as it is asked otherwise

A threshold takes the first way whose calibrated probability of doing no harm reaches it. The last way, for
questions of which no probability does, is harmless by definition: it is what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sgl_engine import PRESETS, PruningConfig
from sgl_engine.calibration.records import CalibrationRecord, is_harmful, is_harmful_rung

if TYPE_CHECKING:
    from sgl_engine.exit import Agreement, Calibration, Isotonic, Logistic, Risk

LADDER: Mapping[str, PruningConfig] = {
    "9%": PRESETS["9%"],
    "20%": PruningConfig(layer_fraction=0.1, keep_ratio=0.11),
    "35%": PRESETS["35%"],
    "64%": PRESETS["64%"],
}
"""What ``sgl calibrate --retention auto`` lets the calibration choose among; where none will do, 100 %."""


@dataclass(frozen=True, eq=False)
class Ways:
    """Every way to answer each of n records.

    Attributes:
        probabilities: float64 (n, ways): calibrated, that the way does no harm; -inf where there is none, and
            of small answers that count as empty: whatever the threshold, such a question takes the last way.
        harmful: bool (n, ways): whether it did.
    """

    probabilities: NDArray[np.float64]
    harmful: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        records: Sequence[CalibrationRecord],
        leaving: Isotonic | Logistic,
        rungs: Mapping[str, Isotonic | Logistic],
        risk: Risk,
        agreement: Agreement,
        empty_answers: str,
    ) -> Ways:
        """Computes both of every record.

        Args:
            records: What the questions showed.
            leaving: Calibrator of the exit.
            rungs: Calibrators of the rungs, by name, the cheapest first.
            risk: What is bounded.
            agreement: How answers are compared, where that is disagreement.
            empty_answers: As in ``ExitConfig``.

        Raises:
            ConfigError: A record lacks a rung, or an answer that the risk needs.
        """
        calibrators = (leaving, *rungs.values())
        found = []
        for record in records:
            uncovered = empty_answers == "escalate" and not record.small_answer.strip()
            known = [None if uncovered else each.probability(record.observation) for each in calibrators]
            found.append([-np.inf if probability is None else probability for probability in known])
        harm = harms(records, tuple(rungs), risk, agreement)
        return cls(np.asarray(found, dtype=np.float64).reshape(harm.shape), harm)

    @classmethod
    def under(cls, calibration: Calibration, records: Sequence[CalibrationRecord]) -> Ways:
        """Computes both as a calibration has them; raises as ``of`` does."""
        rungs = {rung.name: rung.calibrator for rung in calibration.rungs}
        about = (calibration.risk, calibration.agreement, calibration.binding.empty_answers)
        return cls.of(records, calibration.calibrator, rungs, *about)

    def __len__(self) -> int:
        return len(self.probabilities)

    def only(self, rows: Sequence[int]) -> Ways:
        """Some of the records."""
        return Ways(self.probabilities[list(rows)], self.harmful[list(rows)])

    def choose(self, threshold: float | None) -> NDArray[np.int64]:
        """The way that each record takes, int64 (n,): a column, or their number for the last way."""
        return choose(self.probabilities, threshold)

    def harmed(self, threshold: float | None) -> NDArray[np.bool_]:
        """Whether the way that each record takes does harm, bool (n,)."""
        chosen = self.choose(threshold)
        return np.column_stack([self.harmful, np.zeros(len(self), dtype=bool)])[np.arange(len(self)), chosen]


def choose(probabilities: NDArray[np.float64], threshold: float | None) -> NDArray[np.int64]:
    """The first way whose probability reaches the threshold; a tie takes it. None takes the last way."""
    ways = probabilities.shape[1]
    if threshold is None:
        return np.full(len(probabilities), ways)
    enough = probabilities >= threshold
    chosen: NDArray[np.int64] = np.where(enough.any(axis=1), enough.argmax(axis=1), ways)
    return chosen


def harms(
    records: Sequence[CalibrationRecord], rungs: Sequence[str], risk: Risk, agreement: Agreement
) -> NDArray[np.bool_]:
    """Whether each way of each record did harm, bool (n, 1 + rungs); raises as ``Ways.of`` does."""
    found = [
        [
            is_harmful(record, risk, agreement),
            *(is_harmful_rung(record, name, risk, agreement) for name in rungs),
        ]
        for record in records
    ]
    return np.asarray(found, dtype=bool).reshape(len(records), 1 + len(rungs))
