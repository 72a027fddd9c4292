"""What the measurements share: held-out questions, exact match, intervals, progress."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from rich.progress import track

from sgl_engine import Request
from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages import heldout_pages
from sgl_engine.evaluation.intervals import share

Row = TypeVar("Row")


def parse(description: str | None, *, questions: int, json: str, **folders: str) -> argparse.Namespace:
    """The command line of a measurement: how many questions, from which seed on, and where results go.

    ``folders`` are positional arguments, each with its help.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, help_text in folders.items():
        parser.add_argument(name, type=Path, help=help_text)
    parser.add_argument("--questions", type=int, default=questions)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--json", type=Path, help=json)
    options = parser.parse_args()
    if options.json:  # before the work, not after it
        options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


def questions(count: int, start: int = 0) -> Iterator[tuple[Request, Question]]:
    """The first ``count`` held-out questions as requests, with a progress bar on a terminal."""
    for page, question in track(heldout_pages(count, start=start), description="questions", total=count):
        yield Request.ask(question.text, Image.fromarray(page.pixels)), question


def is_exact(answer: str, question: Question) -> bool:
    """Exact match, but for space around the answer."""
    return answer.strip() == question.answer


def percent(hits: Iterable[bool]) -> str:
    """A share with its 95 % interval (Wilson, 1927), for a table: "93.1 (90.2-95.2)"."""
    values = list(hits)
    found = share(sum(values), len(values))
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def by_kind(rows: Sequence[Row], kind: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Rows grouped by question kind, in alphabetical order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[kind(row)].append(row)
    return dict(sorted(groups.items()))
