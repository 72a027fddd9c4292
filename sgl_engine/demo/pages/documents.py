"""Receipts and notes: a heading, sometimes a date, and up to twenty lines of a label and a value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sgl_engine.demo.drawing import PATCH, Box, Question, phrase, random_typeface
from sgl_engine.demo.glyphs import CELL_WIDTH, Typeface
from sgl_engine.demo.pages.sheet import TILE, Fact, Frame, Mention, PageSheet, Part, around
from sgl_engine.demo.pages.stock import FILLERS, RECEIPTS, Stock
from sgl_engine.demo.vocabulary import NONE

LINES = 20
"""At most so many lines."""
LABEL, VALUE = 3, 2
"""Squares that the longest label and the longest value take."""
HEADING, DATE = 4, 7
"""Squares of the longest heading and of a date's line."""
PRICE = ("what is the price of {label}", "how much is the {label}", "{label} price")
FIELD = ("what is the {label}", "which {label} is it", "{label} value")
_LABEL = ("what has the value {value}", "which line says {value}", "what is {value}")
_BELOW = ("what is below {label}", "which line comes after {label}", "what is under {label}")
_DATE = ("what is the date", "which date is it", "date value")


@dataclass(frozen=True)
class PageDocument:
    """What a receipt or note says.

    Attributes:
        name: The word in its heading: one of ``RECEIPTS`` or ``NOTES``.
        lines: Label and value, from top to bottom; the second column follows the first.
        date: Day and month, or None.
        columns: 1 or 2.
    """

    name: str
    lines: tuple[tuple[str, str], ...]
    date: tuple[str, str] | None
    columns: int

    @property
    def is_receipt(self) -> bool:
        """Whether its lines are goods and prices."""
        return self.name in RECEIPTS

    @property
    def transcription(self) -> str:
        """Label and value of each line, separated by commas."""
        return ", ".join(f"{label} {value}" for label, value in self.lines)

    def below(self, index: int) -> str | None:
        """The label under that of line ``index``, or None at the foot of a column."""
        height = -(-len(self.lines) // self.columns)
        last = index + 1 == len(self.lines) or (index + 1) % height == 0
        return None if last else self.lines[index + 1][0]


def sample_document(
    stock: Stock, rng: np.random.Generator, frame: Frame, *, repeat: tuple[str, ...] = ()
) -> PageDocument | None:
    """A document that fits into the frame; None where too few words are left.

    Args:
        stock: Where words and values come from.
        rng: Source of chance.
        frame: Where it is to stand.
        repeat: Labels of another receipt on the page; some of them are this one's too.
    """
    dated = bool(rng.random() < 0.4)
    columns = 2 if frame.columns == 2 * TILE and rng.random() < 0.5 else 1
    room = min(LINES, (frame.rows - 1 - dated) * columns)
    count = int(rng.integers(3, room + 1))
    receipt = bool(repeat) or rng.random() < 0.6
    if not stock.left("receipts" if receipt else "notes"):
        return None
    (name,) = stock.words("receipts" if receipt else "notes", 1, rng)
    again = [repeat[int(i)] for i in rng.permutation(len(repeat))[: count // 2]]
    labels = [*again, *stock.words("items" if receipt else "fields", count - len(again), rng)]
    labels = [labels[int(i)] for i in rng.permutation(len(labels))]
    if len(labels) < 3:
        return None
    values = (stock.prices if receipt else stock.tags)(len(labels), rng)
    return PageDocument(
        name, tuple(zip(labels, values, strict=True)), stock.date(rng) if dated else None, columns
    )


@dataclass(frozen=True)
class _Look:
    """How a document is set: face, capitals, leader, and its columns' first squares for labels and values."""

    face: Typeface
    upper: bool
    leader: str
    labels: tuple[int, ...]
    values: tuple[int, ...]

    def case(self, text: str) -> str:
        return text.upper() if self.upper else text


def _look(document: PageDocument, frame: Frame, rng: np.random.Generator) -> _Look:
    width = frame.columns // document.columns
    need = (max(len(label) for label, _ in document.lines) + 2) // 2
    # A square stays free at the right: a page's text is shifted by up to two pixels.
    start = int(rng.integers(0, min(width - need - VALUE - 1, TILE - LABEL) + 1))
    ends = [at for at in range(start + need, width - VALUE) if at % TILE <= TILE - VALUE]
    end = ends[int(rng.integers(len(ends)))]
    firsts = [frame.column + width * column for column in range(document.columns)]
    return _Look(
        random_typeface(rng),
        bool(rng.random() < 0.6),
        (" ", " ", ".", "-")[int(rng.integers(4))],
        tuple(first + start for first in firsts),
        tuple(first + end for first in firsts),
    )


def _rows(document: PageDocument, frame: Frame, rng: np.random.Generator) -> tuple[int, list[int]]:
    """The heading's row (a date stands in the next one), and the rows of a column's lines."""
    height = -(-len(document.lines) // document.columns)
    above = 1 + (document.date is not None)
    spare = frame.rows - above - height
    first = int(rng.integers(0, spare + 1))
    if rng.random() < 0.5:  # half of them without gaps
        rows = np.arange(height)
    else:
        rows = np.sort(rng.permutation(height + spare - first)[:height])
    return frame.row + first, [frame.row + first + above + int(row) for row in rows]


def draw_document(
    document: PageDocument, frame: Frame, sheet: PageSheet, rng: np.random.Generator, *, qualified: bool
) -> Part:
    """Draw it; ``qualified`` questions name the document, as where there is another one on the page."""
    look = _look(document, frame, rng)
    top, rows = _rows(document, frame, rng)
    heading = sheet.write(2 * _inside(look.labels[0], HEADING), top, document.name.upper(), look.face)
    facts = [Fact(heading, {"label": document.name})]
    date = _draw_date(document, look, top + 1, sheet, facts)
    boxes = []
    for index, (label, value) in enumerate(document.lines):
        column, row = divmod(index, len(rows))
        start, end = look.labels[column], look.values[column]
        leader = look.leader * (2 * (end - start) - len(label) - 2)
        line = sheet.write(2 * start, rows[row], look.case(f"{label} {leader}"), look.face)
        name = (line[0], line[1], line[0] + CELL_WIDTH * len(label), line[3])
        number = sheet.write(2 * end, rows[row], look.case(value), look.face)
        boxes.append(around(line, number))
        facts += [Fact(box, {"label": label, "value": value}, (name, number)) for box in (name, number)]
        facts += [Fact(name, {"label": label}), Fact(number, {"value": value})]
        facts.append(Fact(boxes[-1], {"document": document.name}, (heading,)))
    _decorate(frame, top, rows, sheet, rng, look.face)
    suffix = f" on the {document.name}" if qualified else ""
    extra = (heading,) if qualified else ()
    questions = [*_questions(document, boxes, rng, suffix, extra)]
    if date is not None and document.date is not None:
        text = phrase(rng, _DATE) + suffix
        questions.append(Question(text, " ".join(document.date), "document date", (date, *extra)))
    mentions = tuple(Mention(label, box) for (label, _), box in zip(document.lines, boxes, strict=True))
    return Part(document.name, tuple(questions), mentions, tuple(facts), heading)


def _inside(column: int, squares: int) -> int:
    """That column, or the last one left of it from which so many squares do not leave its tile."""
    return column - max(0, column % TILE + squares - TILE)


def _draw_date(
    document: PageDocument, look: _Look, row: int, sheet: PageSheet, facts: list[Fact]
) -> Box | None:
    if document.date is None:
        return None
    day, month = document.date
    column = 2 * _inside(look.labels[0], DATE)
    # Month and day on squares of their own: the tower reads them as it reads labels and values.
    word = sheet.write(column, row, look.case("date"), look.face)
    number = sheet.write(column + 6, row, day, look.face)
    name = sheet.write(column + 10, row, look.case(month), look.face)
    facts += [Fact(word, {"label": "date", "value": day}), Fact(number, {"label": "date", "value": day})]
    facts.append(Fact(name, {"label": month}))
    return around(word, number, name)


def _decorate(
    frame: Frame, top: int, rows: list[int], sheet: PageSheet, rng: np.random.Generator, face: Typeface
) -> None:
    """A rule, and words above the heading: things that no question is about.

    Nothing is written under the last line, because what is below that is asked for.
    """
    x0, _, x1, _ = frame.box
    if rng.random() < 0.4:
        y = rows[0] * PATCH - 1
        sheet.rule((x0 + 6, y, x1 - 6, y + 1))
    if top > frame.row and rng.random() < 0.5:
        text = FILLERS[int(rng.integers(len(FILLERS)))]
        sheet.write(2 * frame.column + 2, int(rng.integers(frame.row, top)), text, face)


def _questions(
    document: PageDocument, boxes: list[Box], rng: np.random.Generator, suffix: str, extra: tuple[Box, ...]
) -> Iterator[Question]:
    for index, (label, value) in enumerate(document.lines):
        here = (boxes[index], *extra)
        templates = PRICE if document.is_receipt else FIELD
        yield Question(phrase(rng, templates, label=label) + suffix, value, "document value", here)
        yield Question(phrase(rng, _LABEL, value=value), label, "document label", (boxes[index],))
        text, below = phrase(rng, _BELOW, label=label) + suffix, document.below(index)
        if below is None:
            yield Question(text, NONE, "none")
        else:
            yield Question(text, below, "document below", (boxes[index], boxes[index + 1], *extra))
    kind = "transcribe"
    yield Question(f"transcribe the {document.name}", document.transcription, kind, tuple(boxes))
