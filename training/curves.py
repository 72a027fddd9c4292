"""Draw the curves of one or more runs: losses and held-out exact match against minutes of training.

python -m training.curves runs/small runs/large -o docs/training.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def load(run: Path) -> list[dict[str, Any]]:
    """Every entry of a run's metrics, oldest first, without what a killed run lost."""
    with (run / "metrics.jsonl").open() as file:
        entries = [json.loads(line) for line in file]
    kept: list[dict[str, Any]] = []
    for entry in reversed(entries):
        if not kept or entry["step"] <= kept[-1]["step"]:
            kept.append(entry)
    return kept[::-1]


def draw(runs: list[Path], output: Path) -> None:
    """One row of axes per run: losses on the left, exact match per kind on the right."""
    figure, axes = plt.subplots(len(runs), 2, figsize=(13, 4.2 * len(runs)), squeeze=False)
    for (losses, matches), run in zip(axes, runs, strict=True):
        entries = load(run)
        for name, colour in (("dense", "tab:orange"), ("answer", "tab:blue")):
            points = [(e["minutes"], e[name]) for e in entries if name in e]
            losses.plot(*zip(*points, strict=True), label=f"{name} loss", color=colour, linewidth=1)
        losses.set(
            xlabel="minutes of training", ylabel="loss (nats)", title=f"{run.name}: losses", yscale="log"
        )
        scored = [e for e in entries if "dev" in e]
        for index, kind in enumerate(sorted({kind for e in scored for kind in e["dev"]})):
            style = {"color": "black", "linewidth": 2.5} if kind == "mean of kinds" else {"linewidth": 1}
            style["linestyle"] = ("-", "--", ":")[index // 10]
            points = [(e["minutes"], 100 * e["dev"][kind]) for e in scored if kind in e["dev"]]
            matches.plot(*zip(*points, strict=True), label=kind, **style)
        for entry in entries:
            if "grown" in entry:
                for axis in (losses, matches):
                    axis.axvline(entry["minutes"], color="grey", linewidth=0.8)
                matches.annotate(f" grown to {entry['grown']} layers", (entry["minutes"], 2), fontsize=8)
        matches.set(
            xlabel="minutes of training",
            ylabel="exact match, %",
            title=f"{run.name}: held-out pictures",
            ylim=(0, 101),
        )
        matches.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        losses.legend()
        for axis in (losses, matches):
            axis.grid(alpha=0.3)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    draw(options.runs, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
