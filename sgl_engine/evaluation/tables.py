"""A table that can be printed or written as Markdown, and the tables of a benchmark's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import table as rich_table
from rich.box import SIMPLE_HEAD
from rich.text import Text

from sgl_engine.evaluation.threshold_sweep import NEVER
from sgl_engine.rankers.guided import DEFAULT_RANKER

if TYPE_CHECKING:
    from sgl_engine.evaluation.summary import Summary, SystemSummary


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: As many texts as there are columns, each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> rich_table.Table:
        """Makes what rich prints on a terminal."""
        table = rich_table.Table(
            title=self.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
        )
        for number, name in enumerate(self.columns):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """Writes it as Markdown, with its title as a line above."""
        rule = ["---", *("---:" for _ in self.columns[1:])]
        lines = [self.columns, rule, *([_safe(cell) for cell in row] for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _safe(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def tables(summary: Summary) -> list[Table]:
    """Makes all tables of the report, most important first."""
    compared = summary.compared
    found = [_systems(summary), _rankers(compared)]
    if DEFAULT_RANKER in compared.rankers and len(compared.rankers) > 1:
        found.append(_differences(compared))
    if any(not math.isnan(compared.evidence(ranker, compared.point).value) for ranker in compared.rankers):
        found.append(_evidence(compared))
    found.append(_groups(summary, "kind of question", summary.kinds))
    if summary.grids:
        found.append(_groups(summary, "number of tiles", summary.grids))
    return [*found, _sweep(summary)]


def apart_table(summary: Summary) -> Table:
    """Makes the table of rows that are reported apart from all others."""
    return _groups(
        summary, "kind, of questions that need all of a part and are in no other table", summary.kinds
    )


_COST = ("TFLOPs", "ms")


def _systems(summary: Summary) -> Table:
    return Table(
        f"Systems on the same {len(summary.rows)} questions (95 % interval; costs relative to large alone)",
        ("system", "accuracy %", "minus large", *_COST, "large sees %", "escalated %"),
        [
            (
                each.name,
                each.value.percent(),
                each.versus_large.percent(sign=True),
                *_cost(each),
                "-" if each.retention is None else f"{100 * each.retention:.1f}",
                "-" if each.escalated is None else f"{100 * each.escalated.value:.1f}",
            )
            for each in summary.systems
        ],
    )


def _cost(system: SystemSummary) -> tuple[str, str]:
    return f"{system.tflops_share.value:.2f}", f"{system.ms_share.value:.2f}"


def _heading(summary: Summary, point: str) -> str:
    return f"{point} (sees {100 * summary.retention(point):.0f} %)"


def _rankers(summary: Summary) -> Table:
    rows = [
        (ranker, *(summary.draws.mean(summary.ranked(ranker, point)).percent() for point in summary.points))
        for ranker in summary.rankers
    ]
    unpruned = summary.draws.mean(summary.large).percent()
    return Table(
        f"The large model's accuracy % under each ranker, on {len(summary.rows)} questions (95 % interval)",
        ("ranker", *(_heading(summary, point) for point in summary.points)),
        [("unpruned", *([unpruned] * len(summary.points))), *rows],
    )


def _differences(summary: Summary) -> Table:
    return Table(
        f"The same, minus {DEFAULT_RANKER} on the same questions (95 % interval)",
        ("ranker", *(_heading(summary, point) for point in summary.points)),
        [
            (
                ranker,
                *(
                    summary.draws.difference(
                        summary.ranked(ranker, point), summary.ranked(DEFAULT_RANKER, point)
                    ).percent(sign=True)
                    for point in summary.points
                ),
            )
            for ranker in summary.rankers
            if ranker != DEFAULT_RANKER
        ],
    )


def _evidence(summary: Summary) -> Table:
    return Table(
        "Share of the evidence, the tokens that show what answers the question, that is kept, %",
        ("ranker", *(_heading(summary, point) for point in summary.points)),
        [
            (ranker, *(summary.evidence(ranker, point).percent() for point in summary.points))
            for ranker in summary.rankers
        ],
    )


def _groups(summary: Summary, name: str, groups: Mapping[str, Sequence[bool]]) -> Table:
    """Both models alone, guided at every point, the cascade; by group, and over all."""
    guided = {point: summary.measured(point).at(NEVER).value for point in summary.points}
    composed = summary.chosen
    systems = (summary.small, summary.large, *guided.values(), composed.value)
    groups = {**groups, "all": [True] * len(summary.rows)}
    return Table(
        f"Accuracy % by {name} (95 % interval)",
        (
            "",
            "questions",
            "small alone",
            "large alone",
            *(f"guided {point}" for point in guided),
            f"cascade {summary.point}, exits at {summary.threshold:g}",
            "escalated %",
            "AUROC",
        ),
        [
            (
                group,
                str(sum(where)),
                *(summary.draws.mean(values, where).percent() for values in systems),
                f"{100 * summary.draws.mean(composed.escalated, where).value:.1f}",
                _area(summary.auroc_where(where)),
            )
            for group, where in groups.items()
        ],
    )


def _area(area: float) -> str:
    return "-" if math.isnan(area) else f"{area:.3f}"


def _sweep(summary: Summary) -> Table:
    return Table(
        f"The cascade at {summary.point}, by threshold (95 % interval; costs relative to large alone)",
        ("exits at score", "escalated %", "accuracy %", "minus large", *_COST),
        [
            (
                "never" if (each.threshold or 0) > 1 else f"{each.threshold:g}",
                each.escalated.percent() if each.escalated else "-",
                each.value.percent(),
                each.versus_large.percent(sign=True),
                *_cost(each),
            )
            for each in summary.sweep
        ],
    )
