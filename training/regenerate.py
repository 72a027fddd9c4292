"""Everything in the repository that depends on the bundled weights, made anew: after they were exported.

    python -m training.regenerate                                            # pictures, stored answers, pages
    python -m training.regenerate --bench runs/bench runs/large   # then tables, model card, curves of the run

The first takes a few minutes. Between the two comes the benchmark:
``sgl bench --questions 2000 --compare-on 240 --processes 2 --out runs/bench``.
``python examples/graph.py --find`` prints a number that is then written into that file by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

STORED = "tests/engine/answers_before.json"
CARD = Path("sgl_engine/demo/weights/README.md")
PAGES = ("README.md", "docs/results.md")


def commands(bench: tuple[Path, Path] | None) -> Iterator[tuple[list[str], Path | None]]:
    """Arguments for Python, and the file that takes what is printed."""
    if bench is None:
        yield ["-m", "training.make_pictures"], None
        yield ["-m", "benchmarks.same_answers", "record", STORED, "--questions", "12"], None
        yield ["examples/walkthrough.py", "--write"], None
        return
    folder, run = map(str, bench)
    yield ["-m", "training.tables", folder, *PAGES], None
    yield ["-m", "training.card", folder], CARD
    yield ["-m", "training.curves", run, "-o", "docs/training.png"], None


def main() -> None:
    """Run them, one after the other; the first that fails ends it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bench",
        nargs=2,
        type=Path,
        metavar=("BENCH", "RUN"),
        help="folder of sgl bench, and the last run: what depends on a measurement, and nothing else",
    )
    options = parser.parse_args()
    for arguments, target in commands(options.bench):
        print("python", *arguments, f"> {target}" if target else "", flush=True)
        printed = subprocess.PIPE if target else None
        done = subprocess.run([sys.executable, *arguments], check=True, stdout=printed)  # noqa: S603  # ourselves
        if target:
            target.write_bytes(done.stdout)


if __name__ == "__main__":
    main()
