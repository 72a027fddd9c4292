"""Do better maps give more right answers? The large model alone, pruned by each; nothing is timed.

    python -m benchmarks.answers --questions 200 --start 70000 --rankers small-guided beyond-neutral

Held-out pages, the bundled pair; rankers that choose the same tokens share a pass, so that a question takes a
fraction of what it takes ``sgl bench``, and any seed can begin. Differences are from the first ranker.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import heldout
from sgl_engine import PRESETS, Request
from sgl_engine.demo import demo_engine
from sgl_engine.evaluation.dataset import HeldOut
from sgl_engine.evaluation.systems import Systems, answer_by, plans_by
from sgl_engine.rankers import DEFAULT_RANKER, RANKERS, RankingCase

POINTS = ("64%", "35%", "9%")


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument(
        "--rankers", nargs="+", choices=[*RANKERS], default=[DEFAULT_RANKER, "beyond-neutral"]
    )
    options = parser.parse_args()
    systems = Systems(points={name: PRESETS[name] for name in POINTS}, rankers=tuple(options.rankers))
    engine, data = demo_engine(), HeldOut(options.questions, options.start)
    right: dict[tuple[str, str], list[float]] = {}
    for number in track(range(len(data)), description="questions"):
        sample = data[number]
        case = RankingCase.of(engine, Request.ask(sample.row.question, *sample.images), seed=number)
        plans = plans_by(engine, case, {name: RANKERS[name](case) for name in options.rankers}, systems)
        for name, points in answer_by(engine, case, plans, sample.row, systems).items():
            for point, answer in points.items():
                right.setdefault((name, point), []).append(answer.value)
    table = Table("ranker", *(f"{point}: right %, minus the first" for point in POINTS))
    for name in options.rankers:
        cells = []
        for point in POINTS:
            values = torch.tensor(right[name, point])
            gain = values - torch.tensor(right[options.rankers[0], point])
            error = 196 * float(gain.std()) / len(gain) ** 0.5
            share = heldout.percent(value > 0.5 for value in values.tolist())
            cells.append(f"{share}, {100 * float(gain.mean()):+.1f} +- {error:.1f}")
        table.add_row(name, *cells)
    Console(width=150).print(f"{len(data)} questions, the bundled pair", table)


if __name__ == "__main__":
    main()
