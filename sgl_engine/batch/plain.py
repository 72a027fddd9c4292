"""Rows of a question and pictures -> requests; responses -> rows of an answer, its route, score and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_engine import (
    InvalidRequestError,
    MissingImageError,
    Request,
    Response,
    RunReport,
    SGLEngine,
)
from sgl_engine.batch.forms import Json, Written, to_line
from sgl_engine.evaluation.columns import RawRow

_PICTURES = 'Name it as "image": a path beside the input, an https: or data: URL, base64, or bytes.'
_MOST_DEPTH = 32
"""Lists within lists in an id that is written as it is: nobody could read, or even write, any depth."""


@dataclass(frozen=True)
class PlainForm:
    """Columns ``question``, ``image`` or ``images`` (``PICTURE_COLUMNS``), and ``id``, which may be left out.

    Attributes:
        run: Begins the ids of reports.
        question: Of rows that have none.
        max_new_tokens: Longest answers; None is the engine's own.
    """

    run: str
    question: str | None = None
    max_new_tokens: int | None = None
    name = "questions"

    def head(self, index: int, row: RawRow) -> Json:
        """Its number and id."""
        given = row.values.get("id")
        return {"row": index, "id": given if _is_json(given) else str(given)}

    def request(self, engine: SGLEngine, head: Json, row: RawRow) -> tuple[SGLEngine, Request]:
        """Asks the row's question about its pictures."""
        del head
        if row.problem is not None:
            raise InvalidRequestError(
                f"{row.name} is {row.problem}.", remedy='Write {"question": "...", "image": "page.png"}.'
            )
        question = row.values.get("question", self.question)
        question = self.question if question is None else question
        if not isinstance(question, str) or not question.strip():
            raise InvalidRequestError(
                f"The question of {row.name} is {question!r:.60}.",
                remedy="Give the row a text as its question, or all rows one by --question.",
            )
        try:
            pictures = row.pictures()
        except (ValueError, OSError) as error:
            raise MissingImageError(f"{row.name}: {error}.", remedy=_PICTURES) from error
        if not pictures:
            raise MissingImageError(f"{row.name} names no picture.", remedy=_PICTURES)
        return engine, Request.ask(question, *pictures, max_new_tokens=self.max_new_tokens)

    def answered(self, head: Json, response: Response) -> Written:
        """The answer, and its report apart, by its id."""
        report, name = response.report, self._report(head)
        line = {
            **head,
            "answer": response.text,
            "route": report.route,
            "score": report.score,
            "cost": cost_of(report),
            "report": name,
            "error": None,
        }
        told = to_line({"id": name, **report.model_dump(mode="json")})
        return Written(to_line(line), told, escalated=report.escalated)

    def _report(self, head: Json) -> str:
        return f"{self.run}-{head['row']}"

    def failed(self, head: Json, error: Exception) -> Written:
        """The same columns, empty, and the error: its type, as of this package, and what it says."""
        empty = dict.fromkeys(("answer", "route", "score", "cost", "report"))
        said = {"type": type(error).__name__, "message": str(error)}
        return Written(to_line({**head, **empty, "error": said}), failed=True)

    def read(self, line: Mapping[str, Any]) -> tuple[int, bool]:
        """The row's number, and whether it failed."""
        return int(line["row"]), line["error"] is not None


def _is_json(value: Any, depth: int = _MOST_DEPTH) -> bool:
    """Whether a value can be written as it is; tables hold others, such as dates and bytes."""
    if isinstance(value, list):
        return depth > 0 and all(_is_json(each, depth - 1) for each in value)
    if isinstance(value, dict):
        inside = all(isinstance(name, str) and _is_json(each, depth - 1) for name, each in value.items())
        return depth > 0 and inside
    return value is None or isinstance(value, str | int | float)


def cost_of(report: RunReport) -> Json:
    """Operations in 1e12, beside those of the large model alone; and money, where there are prices."""
    return {
        "tflops": report.small_tflops + report.large_tflops,
        "large_alone_tflops": report.large_alone_tflops,
        "money": None if report.cost is None else report.cost.total,
    }
