"""Questions that no part can ask by itself: where a thing is, whether it is there, which document says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from sgl_engine.demo.drawing import SIZE, Box, Question, choose, phrase
from sgl_engine.demo.pages.documents import FIELD, PRICE, PageDocument
from sgl_engine.demo.pages.scenes import PageScene
from sgl_engine.demo.pages.sheet import Part
from sgl_engine.demo.vocabulary import BARS, COLORS, FIELDS, ITEMS, NONE, SHAPES

_WHERE = ("where is {name}",)
_WHICH = ("which document has {name}", "which document says {name}")
_THERE = ("is there a {name}",)
_LISTED = ("is {name} on the {document}",)
_ROWS = {1: ("",), 2: ("upper", "lower"), 3: ("upper", "middle", "lower")}
_COLUMNS = {1: ("",), 2: ("left", "right"), 3: ("left", "middle", "right")}


def place_of(box: Box, rows: int, columns: int) -> str | None:
    """Name of the tile in which the box lies ("upper left"); None where it is in several, or there is one."""
    x0, y0, x1, y1 = box
    row, column = y0 // SIZE, x0 // SIZE
    if rows * columns == 1 or (y1 - 1) // SIZE != row or (x1 - 1) // SIZE != column:
        return None
    return f"{_ROWS[rows][row]} {_COLUMNS[columns][column]}".strip()


def across_parts(
    contents: Sequence[object], parts: Sequence[Part], rows: int, columns: int, rng: np.random.Generator
) -> list[Question]:
    """All of them for a page of these parts."""
    documents = [
        (content, part)
        for content, part in zip(contents, parts, strict=True)
        if isinstance(content, PageDocument)
    ]
    scenes = [content for content in contents if isinstance(content, PageScene)]
    return [
        *_where(parts, rows, columns, rng),
        *_documents(documents, rng),
        *_presence(documents, scenes, parts, rng),
        *_absent(contents, parts, documents, rng),
    ]


def _where(parts: Sequence[Part], rows: int, columns: int, rng: np.random.Generator) -> Iterator[Question]:
    counts = Counter(mention.name for part in parts for mention in part.mentions)
    found = [
        (mention.name, mention.box)
        for part in parts
        for mention in part.mentions
        if counts[mention.name] == 1
    ]
    found += [(part.name, part.heading) for part in parts if part.heading is not None]
    for name, box in found:
        place = place_of(box, rows, columns)
        if place is not None:
            named = f"the {name}" if " " in name or name not in BARS else name
            yield Question(phrase(rng, _WHERE, name=named), place, "where", (box,))


def _documents(
    documents: Sequence[tuple[PageDocument, Part]], rng: np.random.Generator
) -> Iterator[Question]:
    if len(documents) < 2:
        return
    counts = Counter(label for document, _ in documents for label, _ in document.lines)
    for document, part in documents:
        assert part.heading is not None
        for (label, value), mention in zip(document.lines, part.mentions, strict=True):
            name = label if counts[label] == 1 and rng.random() < 0.5 else value
            text = phrase(rng, _WHICH, name=name)
            yield Question(text, document.name, "which document", (part.heading, mention.box))


def _presence(
    documents: Sequence[tuple[PageDocument, Part]],
    scenes: Sequence[PageScene],
    parts: Sequence[Part],
    rng: np.random.Generator,
) -> Iterator[Question]:
    """As many questions whose answer is no as there are with yes."""
    boxes = {mention.name: mention.box for part in parts if part.name == "scene" for mention in part.mentions}
    for scene in scenes:
        absent = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in boxes]
        for thing, missing in zip(scene.things, choose(rng, absent, len(scene.things)), strict=True):
            yield Question(phrase(rng, _THERE, name=thing.name), "yes", "yes or no", (boxes[thing.name],))
            yield Question(phrase(rng, _THERE, name=missing), "no", "yes or no")
    for document, part in documents:
        labels = [label for label, _ in document.lines]
        absent = [word for word in (ITEMS if document.is_receipt else FIELDS) if word not in labels]
        others = choose(rng, absent, len(labels))
        for mention in part.mentions[: len(others)]:
            text = phrase(rng, _LISTED, name=mention.name, document=document.name)
            yield Question(text, "yes", "yes or no", (mention.box,))
        for name in others:
            yield Question(phrase(rng, _LISTED, name=name, document=document.name), "no", "yes or no")


def _absent(
    contents: Sequence[object],
    parts: Sequence[Part],
    documents: Sequence[tuple[PageDocument, Part]],
    rng: np.random.Generator,
) -> Iterator[Question]:
    """Questions about what is not on the page, also of a family of which nothing is on it."""
    said = {mention.name for part in parts for mention in part.mentions}
    for words, templates in ((ITEMS, PRICE), (FIELDS, FIELD)):
        for name in choose(rng, [word for word in words if word not in said], 2):
            yield Question(phrase(rng, templates, label=name), NONE, "none")
    months = [month for month in BARS if month not in repr(contents)]
    for month in choose(rng, months, 1):
        yield Question(f"what is the value of {month}", NONE, "none")
    names = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in said]
    for name in choose(rng, names, 2):
        yield Question(f"what number is on the {name}", NONE, "none")
    for document, part in documents:
        others = [label for other, _ in documents if other is not document for label, _ in other.lines]
        own = [label for label, _ in document.lines]
        for label in [label for label in others if label not in own and len(documents) > 1][:2]:
            templates = PRICE if document.is_receipt else FIELD
            text = phrase(rng, templates, label=label) + f" on the {part.name}"
            yield Question(text, NONE, "none")
