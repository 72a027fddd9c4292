"""Is the promise of a calibration kept on real records? Random splits of the bundled pair's held-out questions.

    python -m benchmarks.calibration --questions 2000 --json runs/calibration.json

Records are collected as ``sgl calibrate`` does it (into runs/, resumed where it was cut short). Then, 200
times: half of them calibrates, and the risk of the certified threshold is counted on the other half, which
the calibration never saw. A certified threshold is to exceed its target in at most 10 % of the splits, up to
what counting on a finite half adds by chance; the table also tells how often the exact test finds the fresh
half in contradiction to the target, which chance alone does in at most 5 %. The control takes the threshold
whose observed risk was within the target.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import get_args

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binom

from sgl_engine.calibration.certify import certify, empirical_threshold
from sgl_engine.calibration.collection import Collector
from sgl_engine.calibration.dataset import generated
from sgl_engine.calibration.fitting import Method
from sgl_engine.calibration.making import Promise, fit_half
from sgl_engine.calibration.records import Record, halves, read_records
from sgl_engine.calibration.risks import Risk
from sgl_engine.demo import demo_engine

TARGETS = (0.02, 0.05, 0.1)
SPLITS = 200


@dataclass(frozen=True)
class Row:
    """One way to calibrate at one target, over all splits; shares in [0, 1].

    Attributes:
        risk: What is bounded.
        method: Of the calibrator.
        target: Of the risk.
        certified: Splits in which a threshold could be certified.
        exceeded: Splits whose observed risk on the fresh half was above the target.
        contradicted: Splits in which the exact test rejects the target on the fresh half, at 5 %.
        exits: Share of questions that exited in the fresh half, mean and 5 % and 95 % quantiles over splits.
        fresh_risk: Mean risk on the fresh half.
        control_exceeded: ``exceeded`` of the threshold with the observed risk within the target.
        control_exits: Its share of exits.
    """

    risk: Risk
    method: Method
    target: float
    certified: float
    exceeded: float
    contradicted: float
    exits: tuple[float, float, float]
    fresh_risk: float
    control_exceeded: float
    control_exits: float


@dataclass(frozen=True)
class _Fresh:
    """A threshold on the half that nobody has seen."""

    exits: float
    errors: int
    records: int

    @classmethod
    def count(
        cls, probabilities: Sequence[float], harmful: Sequence[bool], threshold: float | None
    ) -> _Fresh:
        exits = np.asarray(probabilities) >= (np.inf if threshold is None else threshold)
        return cls(float(exits.mean()), int((exits & np.asarray(harmful)).sum()), len(exits))


def measure(records: Sequence[Record], promise: Promise) -> list[Row]:
    """All splits, for each target."""
    found: dict[float, list[tuple[bool, _Fresh, _Fresh]]] = {target: [] for target in promise.targets}
    for seed in track(range(SPLITS), description=f"{promise.risk}, {promise.method}"):
        used, fresh = halves(records, seed)
        fitting, certifying = halves(used, seed + SPLITS)
        fitted = fit_half(fitting, promise)
        probabilities, harmful = fitted.probabilities(certifying), promise.harmful(certifying)
        fresh_probabilities, fresh_harmful = fitted.probabilities(fresh), promise.harmful(fresh)
        for target, outcomes in found.items():
            point = certify(
                probabilities,
                harmful,
                fitted.thresholds,
                target_risk=target,
                confidence_level=promise.confidence_level,
            )
            control = empirical_threshold(probabilities, harmful, fitted.thresholds, target_risk=target)
            outcomes.append(
                (
                    point.threshold is not None,
                    _Fresh.count(fresh_probabilities, fresh_harmful, point.threshold),
                    _Fresh.count(fresh_probabilities, fresh_harmful, control),
                )
            )
    return [_row(promise, target, outcomes) for target, outcomes in found.items()]


def _row(promise: Promise, target: float, outcomes: Sequence[tuple[bool, _Fresh, _Fresh]]) -> Row:
    ours, control = [each[1] for each in outcomes], [each[2] for each in outcomes]
    exits = [each.exits for each in ours]
    low, high = np.quantile(exits, [0.05, 0.95])
    return Row(
        risk=promise.risk,
        method=promise.method,
        target=target,
        certified=fmean(each[0] for each in outcomes),
        exceeded=fmean(each.errors > target * each.records for each in ours),
        contradicted=fmean(binom.sf(each.errors - 1, each.records, target) <= 0.05 for each in ours),
        exits=(fmean(exits), float(low), float(high)),
        fresh_risk=fmean(each.errors / each.records for each in ours),
        control_exceeded=fmean(each.errors > target * each.records for each in control),
        control_exits=fmean(each.exits for each in control),
    )


def table(rows: Sequence[Row], records: int) -> Table:
    """What was measured."""
    found = Table(
        title=f"{SPLITS} random splits of {records} records: half calibrates, half is fresh; all in %"
    )
    for name in (
        "risk, calibrator",
        "target",
        "certified",
        "above target on the fresh half",
        "contradicted",
        "exits (5-95)",
        "fresh risk",
        "control: above",
        "control: exits",
    ):
        found.add_column(name, justify="left" if name.startswith("risk") else "right")
    for row in rows:
        mean, low, high = (100 * share for share in row.exits)
        found.add_row(
            f"{row.risk}, {row.method}",
            f"{100 * row.target:g}",
            f"{100 * row.certified:.0f}",
            f"{100 * row.exceeded:.1f}",
            f"{100 * row.contradicted:.1f}",
            f"{mean:.1f} ({low:.1f}-{high:.1f})",
            f"{100 * row.fresh_risk:.2f}",
            f"{100 * row.control_exceeded:.1f}",
            f"{100 * row.control_exits:.1f}",
        )
    return found


def main() -> None:
    """Collect, split, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--records", type=Path, default=Path("runs/heldout.records.jsonl"))
    parser.add_argument("--json", type=Path, help="also write every row here")
    options = parser.parse_args()
    data = generated(options.questions, options.start)
    outcomes = Collector(demo_engine()).collect(data, options.records)
    for _ in track(outcomes, description="questions", total=data.count):
        pass
    _, records, failures = read_records(options.records)
    rows = [
        row
        for risk in get_args(Risk)
        for method in get_args(Method)
        for row in measure(records, Promise(targets=TARGETS, risk=risk, method=method))
    ]
    console = Console(width=150)
    console.print(table(rows, len(records)), f"{len(failures)} rows without a record")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"records": len(records), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
