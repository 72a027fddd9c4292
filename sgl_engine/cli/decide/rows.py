"""Rows that were written: one JSON line for each picture, kept so that another run goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict

from sgl_engine import ConfigError
from sgl_engine.decisions import (
    BoxAnswer,
    ChoiceAnswer,
    DecisionAnswer,
    Decisions,
    RefusedAnswer,
    ScoreAnswer,
    YesNoAnswer,
)
from sgl_engine.evaluation.json_lines import BadLine, add_line, mend_end, read_json_lines


def whole_text(text: str) -> str:
    """The text, in which what no UTF-8 can hold is escaped: bytes of a file's name that are no text."""
    return text.encode(errors="backslashreplace").decode()


Whole: TypeAlias = Annotated[str, AfterValidator(whole_text)]


_BEGINNING: Final = b'{"picture":'
"""Of every row."""


class RowError(BaseModel):
    """Why a picture has no answers: the error's type, as of this package, and what it says."""

    model_config = ConfigDict(frozen=True)

    type: str
    message: Whole


class Row(BaseModel):
    """What became of one picture.

    Attributes:
        picture: Its name.
        sha256: Of its bytes; None of a URL, and where there are none.
        asked: Stands for the questions and settings.
        answers: By the questions' names; a refused one says why.
        reports: Of each answer (``DecisionReport``).
        error: Why the picture cannot be used; None where it can.
    """

    model_config = ConfigDict(frozen=True)

    picture: Whole
    sha256: str | None
    asked: str
    answers: dict[str, dict[str, Any]] = {}
    reports: dict[str, dict[str, Any]] = {}
    error: RowError | None = None

    @property
    def is_final(self) -> bool:
        """Whether another run would say the same; what could not even be read may be there by then."""
        return self.error is None or self.sha256 is not None

    @classmethod
    def of_error(cls, picture: str, sha256: str | None, asked: str, error: Exception) -> Row:
        """The row of a picture that cannot be used."""
        said = RowError(type=type(error).__name__, message=str(error))
        return cls(picture=picture, sha256=sha256, asked=asked, error=said)

    @classmethod
    def of_decisions(cls, picture: str, sha256: str | None, asked: str, decisions: Decisions) -> Row:
        """The row of a picture that was asked about; with an error where every question was refused."""
        answers = {name: answer_row(answer) for name, answer in decisions.answers.items()}
        reports = {name: each.model_dump(mode="json") for name, each in decisions.reports.items()}
        refused = [each.error for each in decisions.answers.values() if isinstance(each, RefusedAnswer)]
        error = None
        if len(refused) == len(answers):
            error = RowError(type=type(refused[0]).__name__, message=str(refused[0]))
        return cls(picture=picture, sha256=sha256, asked=asked, answers=answers, reports=reports, error=error)


def answer_row(answer: DecisionAnswer) -> dict[str, Any]:
    """An answer as JSON."""
    row: dict[str, Any] = {"type": answer.type}
    if isinstance(answer, RefusedAnswer):
        return {**row, "reason": answer.reason}
    if isinstance(answer, YesNoAnswer):
        row["probability"] = answer.probability
    elif isinstance(answer, ChoiceAnswer):
        row |= {"choice": answer.choice, "probabilities": dict(answer.probabilities)}
    elif isinstance(answer, ScoreAnswer):
        row |= {"score": answer.score, "probabilities": list(answer.probabilities)}
    elif isinstance(answer, BoxAnswer):
        row["box"] = dict(zip(("left", "top", "right", "bottom"), answer.box, strict=True))
    return {**row, "confidence": answer.confidence}


@dataclass
class RowFile:
    """Rows of earlier runs, and where new ones are added; without a path, there are none.

    Attributes:
        path: The file.
        bad: Lines that are no rows; their pictures are asked about again.
    """

    path: Path | None
    bad: list[BadLine] = field(default_factory=list)
    _known: dict[tuple[str, str | None, str], Row] = field(default_factory=dict)

    def read(self) -> None:
        """Reads the file, where there is one, and repairs a last line that was cut off.

        Raises:
            ConfigError: It cannot be read or written, or is a file of something else.
        """
        if self.path is None:
            return
        try:
            if not self.path.is_file():  # nothing yet, or a terminal or pipe: there is nothing to read
                return
            content = self.path.read_bytes()
            good, self.bad = read_json_lines(content, Row.model_validate)
            if content.strip() and not good and not content.lstrip().startswith(_BEGINNING):
                raise ConfigError(
                    f"{self.path} holds something else than rows.", remedy="Name another file by --out."
                )
            mend_end(self.path)
            content = self.path.read_bytes()
        except OSError as error:
            raise self._unusable(error) from error
        good, self.bad = read_json_lines(content, Row.model_validate)
        self._known = {(row.picture, row.sha256, row.asked): row for _, row in good}

    def find(self, picture: str, sha256: str | None, asked: str) -> Row | None:
        """The row of an earlier run, where it would be the same again."""
        row = self._known.get((picture, sha256, asked))
        return row if row is not None and row.is_final else None

    @contextmanager
    def adding(self) -> Iterator[Callable[[Row], None]]:
        """Gives what adds a row: each is in the file before the next picture is looked at.

        Raises:
            ConfigError: The file cannot be written.
        """
        if self.path is None:
            yield lambda _: None
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._unusable(error) from error
        with file:

            def add(row: Row) -> None:
                if self._known.get((row.picture, row.sha256, row.asked)) == row:
                    return  # a picture that is still not there
                try:
                    add_line(file, row.model_dump_json().encode())
                except OSError as error:
                    raise self._unusable(error) from error

            yield add

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"The rows {self.path} cannot be used ({error.strerror}).", remedy="Name another file by --out."
        )
