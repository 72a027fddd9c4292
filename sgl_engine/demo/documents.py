"""Receipts and notes: lines of a label and a value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sgl_engine.demo.drawing import (
    GRID,
    PATCH,
    SIZE,
    Box,
    Question,
    Region,
    Sheet,
    choose,
    line_cells,
    phrase,
    random_typeface,
)
from sgl_engine.demo.glyphs import CELL_WIDTH, Typeface
from sgl_engine.demo.vocabulary import (
    FIELDS,
    ITEMS,
    LABEL_CLASSES,
    NO_LABEL,
    NONE,
    TRANSCRIBE,
    VALUE_CHARACTERS,
    value_facts,
)

HEADS = {
    "receipt": ("receipt", "corner shop", "cafe", "market", "invoice", "city store"),
    "note": ("note", "memo", "ticket", "visitor", "delivery", "list"),
}
LINES = range(3, 8)
COLUMNS = SIZE // CELL_WIDTH
_VALUE = {
    "receipt": ("what is the price of {label}", "how much is the {label}", "{label} price"),
    "note": ("what is the {label}", "which {label} is it", "{label} value"),
}
_LABEL = ("what has the value {value}", "which line says {value}", "what is {value}")
_BELOW = ("what is below {label}", "which line comes after {label}", "what is under {label}")


@dataclass(frozen=True)
class Document:
    """What a receipt or note says: ``style`` "receipt" or "note", and (label, value) from top to bottom."""

    style: str
    lines: tuple[tuple[str, str], ...]

    @property
    def transcription(self) -> str:
        """Label and value of each line, separated by commas."""
        return ", ".join(f"{label} {value}" for label, value in self.lines)


def _price(rng: np.random.Generator) -> str:
    return f"{int(rng.integers(1, 10))}.{int(rng.integers(0, 100)):02d}"


def _tag(rng: np.random.Generator) -> str:
    letter = "abcdefghkmnprtwxy"[int(rng.integers(17))]
    digits = str(int(rng.integers(10, 1000)))
    return digits if rng.random() < 0.5 else letter + digits[:2]


def sample_document(rng: np.random.Generator) -> Document:
    """Draw a document: labels and values within it are all different."""
    style = "receipt" if rng.random() < 0.6 else "note"
    count = int(rng.integers(LINES.start, LINES.stop))
    labels = choose(rng, ITEMS if style == "receipt" else FIELDS, count)
    values: list[str] = []
    while len(values) < count:
        value = _price(rng) if style == "receipt" else _tag(rng)
        if value not in values:
            values.append(value)
    return Document(style, tuple(zip(labels, values, strict=True)))


@dataclass(frozen=True)
class _Layout:
    """Where the lines stand: half-patch columns ``left`` to ``right`` (half-open), one patch row per line."""

    face: Typeface
    left: int
    right: int
    rows: tuple[int, ...]
    upper: bool
    filler: str


def _lay_out(document: Document, rng: np.random.Generator) -> _Layout:
    # Labels and values start where a patch starts: see Sheet.write.
    narrowest = -(-max(len(label) + 1 for label, _ in document.lines) // 2) * 2 + VALUE_CHARACTERS
    span = 2 * int(rng.integers(narrowest // 2, COLUMNS // 2))
    left = 2 * int(rng.integers(0, (COLUMNS - span) // 2))
    # Lines in any of the rows but the first, which is the heading's, in order, with gaps of any size.
    rows = np.sort(rng.permutation(np.arange(1, GRID))[: len(document.lines)])
    if rng.random() < 0.5:  # half of them without gaps
        rows = np.arange(len(document.lines)) + int(rng.integers(1, GRID + 1 - len(document.lines)))
    filler = (" ", " ", ".", "-")[int(rng.integers(4))]
    upper = bool(rng.random() < 0.6)
    return _Layout(random_typeface(rng), left, left + span, tuple(int(row) for row in rows), upper, filler)


def _clutter(sheet: Sheet, document: Document, layout: _Layout, rng: np.random.Generator) -> None:
    """A heading, rules, a footer: things that no question is about."""
    head = HEADS[document.style][int(rng.integers(len(HEADS[document.style])))]
    face = random_typeface(rng)
    if rng.random() < 0.75:
        sheet.write(int(rng.integers(0, COLUMNS - len(head))), 0, head.upper(), face)
    left, right = layout.left * CELL_WIDTH, layout.right * CELL_WIDTH
    if rng.random() < 0.4:
        sheet.canvas[layout.rows[0] * PATCH - 1, left:right] = sheet.ink
    bottom = layout.rows[-1] + 1
    if bottom < GRID and rng.random() < 0.4:
        sheet.canvas[bottom * PATCH + 1, left:right] = sheet.ink
    if bottom < GRID - 1 and rng.random() < 0.4:
        footer = f"#{int(rng.integers(100, 100000))}"
        sheet.write(int(rng.integers(0, COLUMNS - len(footer))), GRID - 1, footer, face)


def draw_document(
    document: Document, sheet: Sheet, rng: np.random.Generator
) -> tuple[list[Region], list[Question]]:
    """Draw the document; return what is known about its patches, and every question about it."""
    layout = _lay_out(document, rng)
    _clutter(sheet, document, layout, rng)
    column = layout.right - layout.left - VALUE_CHARACTERS
    boxes, regions = [], []
    for index, (label, value) in enumerate(document.lines):
        leader = layout.filler * (column - len(label) - 2)
        text = f"{label} {leader} {value}" if column > len(label) + 1 else f"{label} {value}"
        box = sheet.write(
            layout.left, layout.rows[index], text.upper() if layout.upper else text, layout.face
        )
        boxes.append(box)
        below = document.lines[index + 1][0] if index + 1 < len(document.lines) else None
        facts = {"label": LABEL_CLASSES[label], "order": index + 1}
        facts["below"] = LABEL_CLASSES[below] if below else NO_LABEL
        facts |= value_facts(value)
        middle = (box[1] + box[3]) / 2
        value_start = box[2] - len(value) * CELL_WIDTH
        regions.append(Region(line_cells(box[0], box[0] + len(label) * CELL_WIDTH, middle), facts))
        regions.append(Region(line_cells(value_start, box[2], middle), facts))
    return regions, list(_questions(document, boxes, rng))


def _questions(document: Document, boxes: list[Box], rng: np.random.Generator) -> Iterator[Question]:
    labels = [label for label, _ in document.lines]
    for index, (label, value) in enumerate(document.lines):
        here = (boxes[index],)
        yield Question(phrase(rng, _VALUE[document.style], label=label), value, "document value", here)
        yield Question(phrase(rng, _LABEL, value=value), label, "document label", here)
        text = phrase(rng, _BELOW, label=label)
        if index + 1 < len(labels):
            yield Question(text, labels[index + 1], "document below", (boxes[index + 1],))
        else:
            yield Question(text, NONE, "none")
    absent = [word for word in (ITEMS if document.style == "receipt" else FIELDS) if word not in labels]
    for label in choose(rng, absent, 2):
        yield Question(phrase(rng, _VALUE[document.style], label=label), NONE, "none")
    other = _price(rng) if document.style == "receipt" else _tag(rng)
    if other not in [value for _, value in document.lines]:
        yield Question(phrase(rng, _LABEL, value=other), NONE, "none")
    yield Question(TRANSCRIBE, document.transcription, "transcribe", tuple(boxes))
