"""The figure of docs/scaling.md: what a fleet costs, how it is divided, and how that goes with its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

from benchmarks.fleet import RATES, SIZES, SMALL_PRICE, fleets, price
from benchmarks.fleet_model import Draws, Measured

SIZE = 100
RATE = 0.3
_LOOKS = {
    "both": ("#5b7aa8", "every machine holds both"),
    "split": ("#c1743c", "small and large apart, one price"),
    "split, cheap small": ("#2a7f62", f"apart, a small machine at {SMALL_PRICE:g}"),
}


def draw(measured: Measured, draws: Draws, path: Path) -> None:
    """Runs the simulations and writes the figure."""
    by_rate = [fleets(measured, draws, SIZE, rate) for rate in RATES]
    by_size = [fleets(measured, draws, size, RATE) for size in SIZES]
    figure, (costs, division, sizes) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    _costs(costs, by_rate, measured)
    _division(division, by_rate, measured)
    _sizes(sizes, by_size)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _costs(axes: Any, rows: list[dict[str, Any]], measured: Measured) -> None:
    for name, (colour, label) in _LOOKS.items():
        costs = [price(row, name) / price(row, "alone") for row in rows]
        axes.plot(RATES, costs, "o-", color=colour, label=label)
    axes.axhline(1.0, color="#444444", linestyle="--", linewidth=1)
    small, guided, alone = (measured.mean(kind) for kind in ("small", "guided", "alone"))
    expected = [(small + rate * guided) / alone for rate in (0.0, 1.0)]
    axes.plot((0, 1), expected, ":", color="#444444", linewidth=1, label="(S + e L) / A")
    axes.set(xlabel="escalation rate e", ylabel="price / large model alone", ylim=(0, 1.35), xlim=(0, 1))
    axes.set_title(f"Price, work for {SIZE} machines alone", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")


def _division(axes: Any, rows: list[dict[str, Any]], measured: Measured) -> None:
    small, guided = measured.mean("small"), measured.mean("guided")
    axes.plot(RATES, [small / (rate * guided) for rate in RATES], "--", color="#444444", label="S / (e L)")
    for name in ("split", "split, cheap small"):
        colour, label = _LOOKS[name]
        found = [row["fleets"][name] for row in rows]
        axes.plot(
            RATES,
            [float("nan") if fleet is None else fleet.small / fleet.large for fleet in found],
            "o",
            color=colour,
            markersize=9 if name == "split" else 4,  # they often agree
            label=label,
        )
    axes.set(xlabel="escalation rate e", ylabel="small machines per large one", yscale="log", xlim=(0, 1))
    axes.set_yticks([0.5, 1, 2, 5, 10], labels=["0.5", "1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_title("The cheapest division", fontsize=10)
    axes.legend(fontsize=8)


def _sizes(axes: Any, rows: list[dict[str, Any]]) -> None:
    for name, (colour, label) in _LOOKS.items():
        costs = [price(row, name) / price(row, "alone") for row in rows]
        axes.plot(SIZES, costs, "o-", color=colour, label=label)
    axes.axhline(1.0, color="#444444", linestyle="--", linewidth=1)
    axes.set(
        xlabel="work, in machines of the large model alone",
        ylabel="price / large model alone",
        xscale="log",
        ylim=(0, 1.1),
    )
    axes.set_xticks(SIZES, labels=[f"{size:,}" for size in SIZES])
    axes.set_title(f"Fleets of all sizes, {RATE:.0%} escalated", fontsize=10)
