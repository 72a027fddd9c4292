"""Writes what came out into docs/families.md, between two marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.coverage_families.checks import Outcome

BEGIN = "<!-- written by python -m benchmarks.coverage_families: begin -->"
END = "<!-- written by python -m benchmarks.coverage_families: end -->"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many of each verdict."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def rows(outcomes: Sequence[Outcome]) -> str:
    """The table, exact ones first."""
    import transformers

    lines = [
        BEGIN,
        "",
        f"{len(outcomes)} architectures of transformers {transformers.__version__}: {summary(outcomes)}.",
        "",
        "| `model_type` | outcome | run by | why not, or what was run |",
        "|---|---|---|---|",
    ]
    for outcome in sorted(outcomes, key=lambda each: (each.verdict != "exact", each.verdict, each.name)):
        reason = " ".join(outcome.reason.split()).replace("|", "/")
        lines.append(f"| `{outcome.name}` | {outcome.verdict} | {outcome.family} | {reason} |")
    return "\n".join([*lines, "", END])


def write(page: Path, outcomes: Sequence[Outcome]) -> None:
    """Puts the table in place of the one that is there."""
    text = page.read_text()
    head, found, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no line {BEGIN}")
    page.write_text(head + rows(outcomes) + tail)
