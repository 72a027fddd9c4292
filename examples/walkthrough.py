"""Runs docs/walkthrough.md block by block, as a reader would, and prints what comes out.

    python examples/walkthrough.py           # pictures go to a temporary folder
    python examples/walkthrough.py --write   # puts outputs and pictures into docs/

A block of Python that prints is followed by a block of text: its output.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "walkthrough.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?: ms)?")
TOLERANCE = 0.03
"""Of shown numbers: other processors round differently."""
CELL = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """A block of code, the output that the page shows, and the output that came."""

    code: str
    shown: str
    printed: str


def run_cells(page: str) -> Iterator[Cell]:
    """Runs all blocks, in one namespace and in the current folder."""
    names: dict[str, Any] = {"__name__": "walkthrough"}
    for number, match in enumerate(CELL.finditer(page), start=1):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(match["code"], f"{PAGE.name}, block {number}", "exec"), names)  # noqa: S102  # our own page
        yield Cell(match["code"], match["shown"] or "", printed.getvalue())


def agrees(cell: Cell) -> bool:
    """Whether the page shows what came: the same words, and numbers nearly the same; any milliseconds."""
    shown, printed = NUMBER.findall(cell.shown), NUMBER.findall(cell.printed)
    if NUMBER.sub("#", cell.shown) != NUMBER.sub("#", cell.printed):
        return False
    return all(
        _is_close(one, other) for one, other in zip(shown, printed, strict=True) if not one.endswith("ms")
    )


def _is_close(shown: str, printed: str) -> bool:
    if "." not in shown or "." not in printed:  # counts
        return shown == printed
    return abs(float(shown) - float(printed)) <= TOLERANCE


def rewrite(page: str, cells: Sequence[Cell]) -> str:
    """The page with the outputs that came."""
    left = iter(cells)

    def block(_: re.Match[str]) -> str:
        cell = next(left)
        output = f"\n```text\n{cell.printed}```\n" if cell.printed else ""
        return f"```python\n{cell.code}```\n{output}"

    return CELL.sub(block, page)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the page; 1 if an output is not the one that it shows, unless it is to be written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="update docs/")
    arguments = parser.parse_args(argv)
    logging.disable_progress_bar()

    os.environ["NO_COLOR"] = "1"  # what is printed goes into a page
    page = PAGE.read_text()
    cells = []
    folder = nullcontext(str(DOCS)) if arguments.write else tempfile.TemporaryDirectory()
    with folder as place, chdir(place):
        for cell in run_cells(page):
            print(*(f">>> {line}" for line in cell.code.splitlines()), sep="\n")
            print(cell.printed)
            cells.append(cell)
    if arguments.write:
        PAGE.write_text(rewrite(page, cells))
        return 0
    changed = [cell for cell in cells if not agrees(cell)]
    print(f"{len(cells)} blocks, {len(changed)} outputs differ from those on the page.")
    return int(bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
