"""What is asked: questions about pictures from a file, or drawn pages that no model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sgl_engine import ConfigError, ImageSource
from sgl_engine.demo.drawing import Box
from sgl_engine.demo.pages.generator import heldout_pages
from sgl_engine.evaluation.json_lines import BadLine, read_json_lines
from sgl_engine.evaluation.metrics import FEWEST_VQA_ANSWERS, METRICS
from sgl_engine.evaluation.records import DataRow

Filled = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class DataSample:
    """A row and its pictures.

    Attributes:
        row: What is asked.
        images: In the order in which the models see them.
        names: What the data calls each of them, wherever it lies; empty where it draws them.
        evidence: Boxes of a drawn page, in pixels, from which the answer is read; None where nobody knows.
        problem: Why its pictures cannot be read, where the data finds that out; None otherwise.
    """

    row: DataRow
    images: tuple[ImageSource, ...]
    names: tuple[str, ...] = ()
    evidence: tuple[Box, ...] | None = None
    problem: str | None = None


class Data(Protocol):
    """Gives rows by number."""

    @property
    def name(self) -> str:
        """How people call it."""

    @property
    def identity(self) -> str:
        """Equal where one run may go on with another's records, whatever the number of rows."""

    @property
    def bad(self) -> Sequence[BadLine]:
        """Lines that are no rows, and are left out."""

    def __len__(self) -> int:
        """Counts the rows."""

    def __getitem__(self, index: int) -> DataSample:
        """Returns one row; its pictures need not have been opened yet."""


PAGES_TO_A_TRANSCRIPTION = 10
"""Of so many pages, one is also asked to be written down."""


@dataclass(frozen=True)
class HeldOut:
    """Drawn pages whose contents were kept out of the bundled pair's training, one question to a page.

    Attributes:
        count: How many questions that need little of a page.
        start: The first page's seed.
        transcriptions: Whether, after every ten of them, the next question is to write down a part of the
            first of the ten pages.
    """

    count: int
    start: int = 0
    transcriptions: bool = False
    bad: Sequence[BadLine] = ()

    @property
    def name(self) -> str:
        """How people call it."""
        more = f" and {self._written} transcriptions" if self.transcriptions else ""
        later = f", from seed {self.start} on" if self.start else ""
        return f"{self.count} questions{more} about held-out pages{later}"

    @property
    def identity(self) -> str:
        """Names the first seed: a run with more rows goes on from there."""
        more = " and transcriptions" if self.transcriptions else ""
        return f"questions{more} about held-out pages from seed {self.start} on"

    @property
    def _written(self) -> int:
        return self.count // PAGES_TO_A_TRANSCRIPTION if self.transcriptions else 0

    def __len__(self) -> int:
        """Counts the rows."""
        return self.count + self._written

    def __getitem__(self, index: int) -> DataSample:
        """Draws a page and asks its question."""
        tens, within = divmod(index, PAGES_TO_A_TRANSCRIPTION + 1)
        written = self.transcriptions and within == PAGES_TO_A_TRANSCRIPTION
        seed = self.start + index - (tens + PAGES_TO_A_TRANSCRIPTION * written if self.transcriptions else 0)
        [(page, question)] = heldout_pages(1, start=seed, transcriptions=written)
        row = DataRow(
            index=index,
            id=f"seed {seed}",
            kind=question.kind,
            metric="exact",
            question=question.text,
            answers=(question.answer,),
        )
        return DataSample(row, (Image.fromarray(page.pixels),), evidence=question.evidence)


class OpenLine(BaseModel):
    """A line of a file of questions. Fields that it has beyond these are not looked at.

    Attributes:
        image: Path relative to the file, https: or data: URL; a list where a question is about several.
        question: What is asked.
        answers: What counts as right, if that is known; for "vqa_score" what each person said.
        metric: Name in ``METRICS``.
        id: Any name; the line's number by default.
        kind: Results are broken down by it; the metric by default.
    """

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    image: tuple[Filled, ...] = ()
    question: Filled
    answers: tuple[Filled, ...] = ()
    metric: str = "exact"
    id: str | None = None
    kind: str | None = None

    @field_validator("image", "answers", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _suits_its_metric(self) -> Self:
        if self.metric not in METRICS:
            raise ValueError(f"there is no metric {self.metric!r}; use one of {', '.join(METRICS)}")
        if self.metric == "vqa_score" and 0 < len(self.answers) < FEWEST_VQA_ANSWERS:
            raise ValueError(
                f"vqa_score compares with what at least {FEWEST_VQA_ANSWERS} people said, not "
                f"{len(self.answers)}; use exact or anls"
            )
        return self


class Line(OpenLine):
    """A line about at least one picture, and with an answer to compare with."""

    image: Annotated[tuple[Filled, ...], Field(min_length=1)]
    answers: Annotated[tuple[Filled, ...], Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class JsonLines:
    """Questions from a file, one JSON object a line.

    Attributes:
        path: The file.
        identity: Its contents' digest.
        rows: The good lines.
        bad: The others.
    """

    path: Path
    identity: str
    rows: tuple[tuple[DataRow, tuple[str, ...]], ...]
    bad: tuple[BadLine, ...]

    @classmethod
    def read(
        cls, path: Path, limit: int | None = None, *, answers: Literal["required", "optional"] = "required"
    ) -> JsonLines:
        """Reads and checks all lines; pictures are opened later, one row at a time.

        Args:
            path: The file.
            limit: Good lines that are taken; None is all of them.
            answers: Whether a line has to have some, and a picture, as ``Line`` has.

        Raises:
            ConfigError: It cannot be read, or not one line is good.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror or error}).",
                remedy="Name a file with one JSON object a line.",
            ) from error
        kind = Line if answers == "required" else OpenLine
        lines, bad = read_json_lines(content, kind.model_validate)
        rows = [(_row(index, number, line), line.image) for index, (number, line) in enumerate(lines)]
        if not rows:
            said = f" Line {bad[0].number}: {bad[0].problem}." if bad else ""
            known = "" if answers == "required" else "; answers may be left out"
            raise ConfigError(
                f"{path} has no row that can be used.{said}",
                remedy='A row is {"image": "page.png", "question": "...", "answers": ["..."]}' + f"{known}.",
            )
        digest = hashlib.sha256(content).hexdigest()
        return cls(path, f"{path.name}, sha256 {digest}", tuple(rows[:limit]), tuple(bad))

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{len(self.rows)} questions from {self.path.name}"

    def __len__(self) -> int:
        """Counts the rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> DataSample:
        """Returns one row, its pictures unopened."""
        row, names = self.rows[index]
        return DataSample(row, tuple(self._source(name) for name in names), names)

    def _source(self, image: str) -> ImageSource:
        if image.startswith(("https:", "http:", "data:")):
            return image
        return self.path.parent / Path(image).expanduser()


def _row(index: int, number: int, line: OpenLine) -> DataRow:
    return DataRow(
        index=index,
        id=line.id or f"line {number}",
        kind=line.kind or line.metric,
        metric=line.metric,
        question=line.question,
        answers=line.answers,
    )
