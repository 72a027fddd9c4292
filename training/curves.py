"""Draw the curves of one or more runs: losses and held-out exact match against processor minutes.

python -m training.curves runs/small runs/large -o docs/training.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
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


def families(scores: dict[str, float]) -> dict[str, list[str]]:
    """Kinds of questions by what they are about: their first word."""
    found: dict[str, list[str]] = {}
    for kind in scores:
        if kind not in ("n", "all", "mean of kinds") and not kind.endswith("tiles"):
            found.setdefault(kind if kind == "yes or no" else kind.split()[0], []).append(kind)
    return found


def draw(runs: list[Path], output: Path) -> None:
    """One row of axes per run: losses on the left, exact match per family of kinds on the right."""
    figure, axes = plt.subplots(len(runs), 2, figsize=(13, 4.2 * len(runs)), squeeze=False)
    for (losses, matches), run in zip(axes, runs, strict=True):
        entries = load(run)
        for name, colour in (("dense", "tab:orange"), ("loss", "tab:blue")):  # "loss" is that of the answers
            points = [(e["minutes"], e[name]) for e in entries if name in e]
            losses.plot(
                *zip(*points, strict=True),
                label="answers" if name == "loss" else "what tokens hold",
                color=colour,
                linewidth=1,
            )
        losses.set(
            xlabel="processor minutes of training",
            ylabel="loss (nats)",
            title=f"{run.name}: losses",
            yscale="log",
        )
        scored = [e for e in entries if "dev" in e]
        for index, (family, kinds) in enumerate(families(scored[-1]["dev"]).items()):
            style: dict[str, Any] = {"linewidth": 1, "linestyle": ("-", "--")[index // 10]}
            points = [
                (e["minutes"], 100 * fmean(e["dev"][kind] for kind in kinds if kind in e["dev"]))
                for e in scored
            ]
            matches.plot(*zip(*points, strict=True), label=family, **style)
        points = [(e["minutes"], 100 * e["dev"]["all"]) for e in scored]
        matches.plot(*zip(*points, strict=True), label="all questions", color="black", linewidth=2.5)
        matches.set(
            xlabel="processor minutes of training",
            ylabel="exact match, %",
            title=f"{run.name}: held-out pages",
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
