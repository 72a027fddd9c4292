"""Rows as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgl_engine.cli import output
from sgl_engine.cli.decide.rows import Row

MOST_ROWS = 200
"""More are left to the file."""


def print_table(rows: Sequence[Row], names: Iterable[str]) -> None:
    """Prints a line for each picture and a column for each question."""
    table, names = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0)), list(names)
    for name in ("picture", *names):
        table.add_column(Text(output.printable(name)), overflow="fold")
    for row in rows[:MOST_ROWS]:
        cells = [said(row.answers[name]) if name in row.answers else "" for name in names]
        if row.error is not None:
            cells = [row.error.type, *[""] * (len(names) - 1)]  # what it says was told while it happened
        table.add_row(*(Text(output.printable(cell)) for cell in (row.picture, *cells)))
    console = Console(highlight=False)
    console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"... and {len(rows) - MOST_ROWS} more")


def said(answer: dict[str, Any]) -> str:
    """An answer in a few characters."""
    kind = answer["type"]
    if kind == "yes_no":
        probability = answer["probability"]
        return f"yes {probability:.2f}" if probability >= 0.5 else f"no {1 - probability:.2f}"
    if kind == "choice":
        return f"{answer['choice']} {answer['probabilities'][answer['choice']]:.2f}"
    if kind == "score":
        return f"{answer['score']:.2f} of 0 to {len(answer['probabilities']) - 1}"
    if kind == "box":
        left, top, right, bottom = (answer["box"][side] for side in ("left", "top", "right", "bottom"))
        return f"{left:.2f} to {right:.2f}, {top:.2f} to {bottom:.2f} ({answer['confidence']:.2f})"
    return "refused"
