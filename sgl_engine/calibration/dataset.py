"""What is asked: questions about pictures from a file, with or without answers, or the generated ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sgl_engine.demo.generator import heldout_questions
from sgl_engine.errors import ConfigError
from sgl_engine.types import ImageSource

Filled = Annotated[str, Field(min_length=1)]


def exact(answer: str, right: Sequence[str]) -> float:
    """1 where the answer equals one of the right ones, but for space around it."""
    return float(answer.strip() in {each.strip() for each in right})


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {"exact": exact}
"""Answer, what counts as right -> value in [0, 1], higher = better; an answer is right from 0.5 on."""


class Row(BaseModel):
    """A line of a file of questions. Fields that it has beyond these are not looked at.

    Attributes:
        image: Path relative to the file, https: or data: URL; a list where a question is about several.
        question: What is asked.
        answers: What counts as right; empty where it is not known.
        metric: Name in ``METRICS``.
        id: Any name; the line's number by default.
        kind: Results are broken down by it.
    """

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    image: tuple[Filled, ...] = ()
    question: Filled
    answers: tuple[Filled, ...] = ()
    metric: str = "exact"
    id: str = ""
    kind: str | None = None

    @field_validator("image", "answers", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"there is no metric {value!r}; use one of {', '.join(METRICS)}")
        return value


@dataclass(frozen=True, eq=False)
class Sample:
    """A row and its pictures, in the order in which the models see them; files are opened later."""

    row: Row
    images: tuple[ImageSource, ...]


@dataclass(frozen=True, eq=False)
class Data:
    """Rows, one after the other.

    Attributes:
        name: For people.
        count: How many.
        bad_lines: Number and problem of each line that is no row.
        rows: Starts again at every call.
    """

    name: str
    count: int
    bad_lines: tuple[tuple[int, str], ...]
    rows: Callable[[], Iterator[Sample]]


def generated(count: int, start: int = 0) -> Data:
    """Generated pictures whose contents were kept out of the bundled pair's training."""

    def rows() -> Iterator[Sample]:
        for sample, question in heldout_questions(count, start=start):
            name, right = f"seed-{sample.seed}", (question.answer,)
            row = Row(question=question.text, answers=right, id=name, kind=question.kind)
            yield Sample(row, (Image.fromarray(sample.pixels),))

    return Data(f"{count} generated held-out questions from seed {start} on", count, (), rows)


def read_rows(path: Path, limit: int | None = None) -> Data:
    """Questions from a file, one JSON object a line; pictures are opened later, one row at a time.

    Args:
        path: The file.
        limit: Good lines that are taken; None is all of them.

    Raises:
        ConfigError: It cannot be read, or not one line is good.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}).",
            remedy="Name a file with one JSON object a line.",
        ) from error
    good: list[Sample] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = Row.model_validate(json.loads(line))
        except ValueError as error:
            bad.append((number, _explain(error)))
            continue
        named = row if row.id else row.model_copy(update={"id": f"line-{number}"})
        good.append(Sample(named, tuple(_source(path, image) for image in row.image)))
    if not good:
        said = f" Line {bad[0][0]}: {bad[0][1]}." if bad else ""
        raise ConfigError(
            f"{path} has no row that can be used.{said}",
            remedy='A row is {"image": "page.png", "question": "..."}, and "answers": ["..."] where known.',
        )
    taken = good[:limit]
    return Data(path.name, len(taken), tuple(bad), lambda: iter(taken))


def _source(path: Path, image: str) -> ImageSource:
    if image.startswith(("https:", "http:", "data:")):
        return image
    return path.parent / Path(image).expanduser()


def _explain(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return f"no JSON ({error})"
    wrong = error.errors()[0]
    return f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
