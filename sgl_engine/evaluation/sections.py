"""What a study adds to every row's record, and to the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sgl_engine.evaluation.intervals import Bootstrap
from sgl_engine.evaluation.records import BenchOutcome, Json, Scored

if TYPE_CHECKING:
    from sgl_engine.rankers import RankingCase


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the report.

    Attributes:
        title: Its heading.
        markdown: Its text and tables, without the heading.
        data: For ``results.json``.
        figures: Name of the file, without ending -> what draws the matplotlib figure.
    """

    title: str
    markdown: str
    data: Json
    figures: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


RowStudy: TypeAlias = "Callable[[RankingCase, BenchOutcome], Json]"
"""Called once per row, after every system has answered; ``BenchOutcome.study`` is empty then."""
SectionMaker: TypeAlias = Callable[[Sequence[Scored], Bootstrap], Section | None]
"""Called once per report, with the rows in order and resamples of them; None is nothing to say."""
