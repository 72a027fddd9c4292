"""How many machines a cascade takes: measured service times, a simulation, and what a real run says of it.

python -m benchmarks.fleet measure     # service times here -> benchmarks/fleet.json (minutes)
python -m benchmarks.fleet real        # two processes here, beside the simulation -> the same file
python -m benchmarks.fleet sweep       # the cheapest fleets, 1 to 1,000 machines, as a table
python -m benchmarks.fleet figure      # docs/scaling.png
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fleet_model import Draws, Fleet, Measured, cheapest

FILE = Path(__file__).with_name("fleet.json")
FIGURE = Path(__file__).parents[1] / "docs" / "scaling.png"
RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIZES = (1, 3, 10, 30, 100, 300, 1000)
"""Machines' worth of work for the large model alone."""
SMALL_PRICE = 0.25
TARGET = 3.0
"""The 95th percentile, in mean times of the large model alone."""


def read_measured(path: Path = FILE) -> Measured:
    """The service times that were measured."""
    found = json.loads(path.read_text())["measured"]
    lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    return Measured(**found | lists)


def fleets(
    measured: Measured, draws: Draws, size: int, escalation_rate: float, *, target: float = TARGET
) -> dict[str, Any]:
    """The cheapest fleet of each kind for so much work."""
    alone_s = measured.mean("alone")
    options: dict[str, Any] = {
        "rate": size / alone_s,
        "escalation_rate": escalation_rate,
        "target_s": target * alone_s,
    }
    found: dict[str, Fleet | None] = {
        "alone": cheapest("alone", measured, draws, **options),
        "both": cheapest("both", measured, draws, **options),
        "split": cheapest("split", measured, draws, **options),
        "split, cheap small": cheapest("split", measured, draws, small_price=SMALL_PRICE, **options),
    }
    return {"size": size, "escalation_rate": escalation_rate, "fleets": found}


def price(row: dict[str, Any], name: str) -> float:
    """Of a fleet, in machines that can hold the large model; nan where there is none."""
    fleet: Fleet | None = row["fleets"][name]
    return float("nan") if fleet is None else fleet.price(SMALL_PRICE if "cheap" in name else 1.0)


def main() -> None:
    """Does what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("measure", "real", "sweep", "figure"))
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--load", type=float, default=0.6, help="real: of the busier process")
    parser.add_argument("--requests", type=int, default=20_000, help="of each simulation")
    parser.add_argument("--batch", type=int, default=1, help="requests that a machine takes at once")
    parser.add_argument("--target", type=float, default=TARGET, help="p95, in times of the large model alone")
    options = parser.parse_args()
    if options.what in {"measure", "real"}:
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        known["measured" if options.what == "measure" else "real"] = _new(options)
        FILE.write_text(json.dumps(known, indent=1) + "\n")
        return
    measured = read_measured()
    draws = Draws.of(measured, options.requests, batch=options.batch)
    if options.what == "figure":
        from benchmarks.fleet_figure import draw

        draw(measured, draws, FIGURE)
        return
    _print_sweep(measured, draws, options.target)


def _new(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.fleet_measured import measure, two_processes

    if options.what == "measure":
        return asdict(measure(options.questions))
    real = two_processes(options.questions, options.load, read_measured())
    print(json.dumps(real, indent=1))
    return real


def _print_sweep(measured: Measured, draws: Draws, target: float) -> None:
    small, guided, alone = (1e3 * measured.mean(kind) for kind in ("small", "guided", "alone"))
    print(f"{measured.machine}: small {small:.0f} ms, guided {guided:.0f} ms, alone {alone:.0f} ms;")
    print(f"pays below an escalation rate of {measured.break_even:.2f}; p95 within {target:g} x alone")
    print("| work | escalated | alone | both | split, small:large | split, small at 0.25 | its price |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        for escalation_rate in (0.1, 0.3, 0.5):
            row = fleets(measured, draws, size, escalation_rate, target=target)
            print("|", " | ".join(_cells(row)), "|")


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [str(row["size"]), f"{row['escalation_rate']:.0%}"]
    for name in ("alone", "both"):
        fleet = row["fleets"][name]
        cells.append("-" if fleet is None else str(fleet.small))
    for name in ("split", "split, cheap small"):
        fleet = row["fleets"][name]
        cells.append("-" if fleet is None else f"{fleet.small}:{fleet.large}")
    return [*cells, f"{price(row, 'split, cheap small'):.4g}"]


if __name__ == "__main__":
    main()
