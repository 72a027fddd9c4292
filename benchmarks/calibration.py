"""Is the promise of a calibration kept on real records? Random splits of held-out questions.

    python -m benchmarks.calibration --questions 2000 --json runs/calibration.json

Records are collected as ``sgl calibrate`` does it (into runs/, resumed where it was cut short). Then, 200
times, half of them calibrates: a quarter to fit on, a quarter to certify on. The guarantee is about the
population that the certifying quarter was drawn from, which is all records but the fitted ones: there, the
risk may be above its target in at most 10 % of the splits. On the fresh half alone it may be above it more
often, because that half is finite, and has the errors that the certifying quarter lacks. The control takes
the threshold whose observed risk is within the target.
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

from sgl_engine.calibration.build import Promise, fit_half
from sgl_engine.calibration.certify import certify, empirical_threshold
from sgl_engine.calibration.collection import Collector
from sgl_engine.calibration.fitting import Method
from sgl_engine.calibration.records import CalibrationRecord, halves
from sgl_engine.calibration.ways import LADDER, Ways
from sgl_engine.demo import demo_engine
from sgl_engine.evaluation.dataset import HeldOut
from sgl_engine.exit.calibration_file import Risk

TARGETS = (0.02, 0.05, 0.1)
SPLITS = 200


@dataclass(frozen=True)
class CalibrationRow:
    """One way to calibrate at one target, over all splits; shares in [0, 1].

    Attributes:
        risk: What is bounded.
        method: Of the calibrator.
        target: Of the risk.
        certified: Splits in which a threshold could be certified.
        exceeded: Splits in which the risk is above the target; 1 minus this is the coverage.
        fresh_exceeded: Splits in which that of the fresh half is.
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
    fresh_exceeded: float
    exits: tuple[float, float, float]
    fresh_risk: float
    control_exceeded: float
    control_exits: float


@dataclass(frozen=True)
class _Found:
    """A threshold of one split: exits and risk on the fresh half, and risk where the guarantee holds."""

    certified: bool
    exits: float
    fresh_risk: float
    risk: float

    @classmethod
    def of(cls, threshold: float | None, certifying: Ways, fresh: Ways) -> _Found:
        """Counts on both."""
        exits = fresh.choose(threshold) == 0
        harm, fresh_harm = certifying.harmed(threshold), fresh.harmed(threshold)
        both = float(np.concatenate([harm, fresh_harm]).mean())
        return cls(threshold is not None, float(exits.mean()), float(fresh_harm.mean()), both)


def measure(
    records: Sequence[CalibrationRecord], promise: Promise, rungs: Sequence[str] = ()
) -> list[CalibrationRow]:
    """All splits, for each target."""
    found: dict[float, list[tuple[_Found, _Found]]] = {target: [] for target in promise.targets}
    for seed in track(range(SPLITS), description=f"{promise.risk}, {promise.method}"):
        used, unused = halves(records, seed)
        fitting, rest = halves(used, seed + SPLITS)
        fitted = fit_half(fitting, promise, rungs)
        certifying, fresh = fitted.ways(rest), fitted.ways(unused)
        given = (certifying.probabilities, certifying.harmful, fitted.thresholds)
        for target, outcomes in found.items():
            level = promise.confidence_level
            point = certify(*given, target_risk=target, confidence_level=level)
            control = empirical_threshold(*given, target_risk=target)
            ours, uncertified = (
                _Found.of(threshold, certifying, fresh) for threshold in (point.threshold, control)
            )
            outcomes.append((ours, uncertified))
    return [_row(promise, target, outcomes) for target, outcomes in found.items()]


def _row(promise: Promise, target: float, outcomes: Sequence[tuple[_Found, _Found]]) -> CalibrationRow:
    ours, control = [each[0] for each in outcomes], [each[1] for each in outcomes]
    exits = [each.exits for each in ours]
    low, high = np.quantile(exits, [0.05, 0.95])
    return CalibrationRow(
        risk=promise.risk,
        method=promise.method,
        target=target,
        certified=fmean(each.certified for each in ours),
        exceeded=fmean(each.risk > target for each in ours),
        fresh_exceeded=fmean(each.fresh_risk > target for each in ours),
        exits=(fmean(exits), float(low), float(high)),
        fresh_risk=fmean(each.fresh_risk for each in ours),
        control_exceeded=fmean(each.risk > target for each in control),
        control_exits=fmean(each.exits for each in control),
    )


def table(rows: Sequence[CalibrationRow], records: int) -> Table:
    """What was measured."""
    found = Table(
        title=f"{SPLITS} random splits of {records} records: half calibrates, half is fresh; all in %"
    )
    for name in (
        "risk, calibrator",
        "target",
        "certified",
        "above target",
        "above, fresh half alone",
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
            f"{100 * row.fresh_exceeded:.1f}",
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
    parser.add_argument(
        "--whole",
        action="store_true",
        help="certify exits, tiles and tokens (sgl calibrate --retention auto)",
    )
    parser.add_argument("--risks", nargs="+", choices=get_args(Risk), default=get_args(Risk))
    parser.add_argument("--json", type=Path, help="also write every row here")
    options = parser.parse_args()
    data = HeldOut(options.questions, options.start)
    rungs = LADDER if options.whole else {}
    collector = Collector(demo_engine(), rungs=rungs)
    bar = track(collector.collect(data, options.records), description="questions", total=len(data))
    records = [outcome for outcome in bar if isinstance(outcome, CalibrationRecord)]
    rows = [
        row
        for risk in options.risks
        for method in get_args(Method)
        for row in measure(records, Promise(targets=TARGETS, risk=risk, method=method), tuple(rungs))
    ]
    console = Console(width=150)
    console.print(table(rows, len(records)), f"{len(data) - len(records)} rows without a record")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"records": len(records), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
