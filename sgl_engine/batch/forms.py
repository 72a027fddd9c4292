"""What a row is taken for: how a request is made of it, and what is written about it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sgl_engine import EngineError, Request, Response, SGLEngine, SGLError
from sgl_engine.evaluation.columns import RawRow
from sgl_engine.server.errors import HTTPError

Json: TypeAlias = dict[str, Any]
log = logging.getLogger("sgl_engine.batch")


class BadRowError(Exception):
    """A row that is none of its form."""


@dataclass(frozen=True)
class Written:
    """What is written about a row.

    Attributes:
        line: Its line of the answers, without the line feed.
        report: Its line of the reports; None where there is none.
        failed: Whether it has an error instead of an answer.
        escalated: Whether the large model answered.
    """

    line: bytes
    report: bytes | None = None
    failed: bool = False
    escalated: bool = False


class RowForm(Protocol):
    """Rows of one kind. Pure, and may be pickled."""

    @property
    def name(self) -> str:
        """How a run's description calls it."""

    def head(self, index: int, row: RawRow) -> Json:
        """What is needed of a row to write its line, as JSON; never fails."""

    def request(self, engine: SGLEngine, head: Json, row: RawRow) -> tuple[SGLEngine, Request]:
        """The request, and the engine, with the settings that the row wants.

        Raises:
            SGLError: The row cannot be asked.
        """

    def answered(self, head: Json, response: Response) -> Written:
        """Writes an answer."""

    def failed(self, head: Json, error: Exception) -> Written:
        """Writes an error."""

    def read(self, line: Mapping[str, Any]) -> tuple[int, bool]:
        """The row's number and whether it failed, of a line that was written.

        Raises:
            LookupError, TypeError, ValueError: It is no such line.
        """


def to_line(row: Json) -> bytes:
    """One line of JSON; in ASCII where it holds what UTF-8 cannot, half of a surrogate pair.

    What is no number, and what is infinite, is null, as in the JSON of reports: JSON has no word for it.
    """
    row = _finite(row)
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(row, allow_nan=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def check_row_error(error: Exception, row: str) -> Exception:
    """The error, where it is the row's own; what nobody foresaw is logged.

    Raises:
        EngineError: No other row can be answered either.
    """
    if isinstance(error, EngineError):
        raise error
    if not isinstance(error, SGLError | HTTPError | BadRowError):
        log.error("%s failed.", row, exc_info=error)
    return error
