"""Tables of numbers with named rows and columns, and forms whose values stand under their labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sgl_engine.demo.drawing import PATCH, Box, Question, phrase, random_typeface
from sgl_engine.demo.pages.documents import FIELD
from sgl_engine.demo.pages.sheet import TILE, Fact, Frame, Mention, PageSheet, Part, around
from sgl_engine.demo.pages.stock import Stock

LABEL, CELL = 4, 3
"""Squares from the start of a row to its first cell, and from one cell to the next."""
_CELL = ("what is {row} in {column}", "{row} in {column}", "how much is {row} in {column}")
_ROW = ("which row has {value}", "which row says {value}")
_COLUMN = ("which column has {value}", "which column says {value}")
_SUM = ("what is the sum of {row} in {column} and {other}", "sum of {row} in {column} and {other}")
_COMPARE = ("is {row} higher than {other} in {column}",)


@dataclass(frozen=True)
class PageTable:
    """Names of rows and columns, and a number for each pair; ``small`` ones are of one digit."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    small: bool

    @property
    def transcription(self) -> str:
        """Each row's name and numbers, separated by commas."""
        return ", ".join(
            f"{row} {' '.join(values)}" for row, values in zip(self.rows, self.values, strict=True)
        )


@dataclass(frozen=True)
class Form:
    """Labels and the values under them, row by row, ``across`` to a row."""

    fields: tuple[tuple[str, str], ...]
    across: int

    @property
    def transcription(self) -> str:
        """Label and value of each field, separated by commas."""
        return ", ".join(f"{label} {value}" for label, value in self.fields)


def sample_table(stock: Stock, rng: np.random.Generator, frame: Frame) -> PageTable | None:
    """A table that fits into the frame; None where too few words are left."""
    most = (frame.columns - LABEL) // CELL
    columns = stock.words("months", int(rng.integers(2, min(most, 6) + 1)), rng)
    rows = stock.words("items", int(rng.integers(2, min(frame.rows - 1, 12) + 1)), rng)
    if len(rows) < 2 or len(columns) < 2:
        return None
    small = bool(rng.random() < 0.5)
    count = len(rows) * len(columns)
    digits = [str(int(value)) for value in rng.integers(1, 10, count)]
    values = tuple(digits) if small else stock.numbers(count, rng)
    if len(values) < count:
        return None
    width = len(columns)
    return PageTable(
        rows, columns, tuple(values[row * width : (row + 1) * width] for row in range(len(rows))), small
    )


def draw_table(table: PageTable, frame: Frame, sheet: PageSheet, rng: np.random.Generator) -> Part:
    """Draw it, with or without rules."""
    face, upper = random_typeface(rng), bool(rng.random() < 0.5)
    spare = frame.columns - LABEL - CELL * len(table.columns)
    # A label of three squares or a number of two must not cross a tile's upright border.
    left = frame.column + min(spare, int(rng.integers(0, 2)))
    top = frame.row + int(rng.integers(0, frame.rows - len(table.rows)))
    starts = [_clear(left + LABEL + CELL * index) for index in range(len(table.columns))]
    heads = [
        sheet.write(2 * start, top, name.upper() if upper else name, face)
        for start, name in zip(starts, table.columns, strict=True)
    ]
    names, cells = [], []
    for index, (name, values) in enumerate(zip(table.rows, table.values, strict=True)):
        row = top + 1 + index
        names.append(sheet.write(2 * left, row, name.upper() if upper else name, face))
        cells.append(
            [sheet.write(2 * start, row, value, face) for start, value in zip(starts, values, strict=True)]
        )
    _rules(around(*names, *heads, *cells[-1]), top, left + LABEL, sheet, rng)
    questions = tuple(_table_questions(table, heads, names, cells, rng))
    mentions = tuple(Mention(name, box) for name, box in zip(table.rows, names, strict=True))
    facts = tuple(_table_facts(table, heads, names, cells))
    return Part("table", questions, mentions, facts)


def _table_facts(
    table: PageTable, heads: list[Box], names: list[Box], cells: list[list[Box]]
) -> Iterator[Fact]:
    for box, column in zip(heads, table.columns, strict=True):
        yield Fact(box, {"label": column, "column": column})
    for name, row, values, boxes in zip(names, table.rows, table.values, cells, strict=True):
        yield Fact(name, {"label": row})
        for box, value, column, head in zip(boxes, values, table.columns, heads, strict=True):
            yield Fact(box, {"value": value})
            yield Fact(box, {"label": row}, (name,))
            yield Fact(box, {"column": column}, (head,))


def _clear(column: int) -> int:
    """That square, or the next one if two squares from it on would cross a tile's border."""
    return column + 1 if column % TILE == TILE - 1 else column


def _rules(box: Box, top: int, first: int, sheet: PageSheet, rng: np.random.Generator) -> None:
    if rng.random() < 0.6:
        y, x = (top + 1) * PATCH - 1, first * PATCH - 5
        sheet.rule((box[0], y, box[2], y + 1))
        if rng.random() < 0.5:
            sheet.rule((x, box[1], x + 1, box[3]))


def _table_questions(
    table: PageTable, heads: list[Box], names: list[Box], cells: list[list[Box]], rng: np.random.Generator
) -> Iterator[Question]:
    for row, name in enumerate(table.rows):
        for column, head in enumerate(table.columns):
            value = table.values[row][column]
            here = (names[row], heads[column], cells[row][column])
            yield Question(phrase(rng, _CELL, row=name, column=head), value, "table cell", here)
            if not table.small:
                yield Question(phrase(rng, _ROW, value=value), name, "table look-up", (here[0], here[2]))
                yield Question(phrase(rng, _COLUMN, value=value), head, "table look-up", here[1:])
            other = int(rng.integers(len(table.rows)))
            rival = table.values[other][column]
            if int(rival) != int(value):
                text = phrase(rng, _COMPARE, row=name, other=table.rows[other], column=head)
                answer = "yes" if int(value) > int(rival) else "no"
                yield Question(text, answer, "table compare", (*here, names[other], cells[other][column]))
        if table.small:
            first, second = (int(i) for i in rng.permutation(len(table.columns))[:2])
            text = phrase(rng, _SUM, row=name, column=table.columns[first], other=table.columns[second])
            answer = str(int(table.values[row][first]) + int(table.values[row][second]))
            both = (names[row], *(box for i in (first, second) for box in (heads[i], cells[row][i])))
            yield Question(text, answer, "sum", both)
    boxes = (*heads, *names, *(box for row in cells for box in row))
    yield Question("transcribe the table", table.transcription, "transcribe", boxes)


def sample_form(stock: Stock, rng: np.random.Generator, frame: Frame) -> Form | None:
    """A form that fits into the frame; None where too few words are left."""
    across = int(rng.integers(2, 4)) * (frame.columns // TILE)
    count = min(across * ((frame.rows - 1) // 3), int(rng.integers(3, 11)))
    labels = stock.words("fields", count, rng)
    if len(labels) < 3:
        return None
    return Form(tuple(zip(labels, stock.tags(len(labels), rng), strict=True)), across)


def draw_form(form: Form, frame: Frame, sheet: PageSheet, rng: np.random.Generator) -> Part:
    """Draw it: a heading, and boxes with a label in the first row and its value in the second."""
    face, upper = random_typeface(rng), bool(rng.random() < 0.5)
    pitch, boxed = frame.columns // form.across, bool(rng.random() < 0.7)
    deep = -(-len(form.fields) // form.across)
    top = frame.row + int(rng.integers(0, frame.rows - 3 * deep))
    heading = sheet.write(2 * frame.column, top, "FORM", face)
    boxes, facts = [], [Fact(heading, {"label": "form"})]
    for index, (label, value) in enumerate(form.fields):
        row, column = top + 1 + index // form.across * 3, frame.column + index % form.across * pitch
        name = sheet.write(2 * column, row, label.upper() if upper else label, face)
        number = sheet.write(2 * column, row + 1, value, face)
        box = around(name, number)
        facts += [Fact(one, {"label": label, "value": value}, (name, number)) for one in (name, number)]
        boxes.append(box)
        if boxed:
            x, y = column * PATCH, (row + 2) * PATCH + 5
            sheet.rule((x, y, x + pitch * PATCH - 6, y + 1))
    questions = []
    for (label, value), box in zip(form.fields, boxes, strict=True):
        questions.append(Question(phrase(rng, FIELD, label=label), value, "form field", (box,)))
    questions.append(Question("transcribe the form", form.transcription, "transcribe", tuple(boxes)))
    mentions = tuple(Mention(label, box) for (label, _), box in zip(form.fields, boxes, strict=True))
    return Part("form", tuple(questions), mentions, tuple(facts), heading)
