"""Seeded pages with questions: what the bundled pair is trained on and tested on.

What a part of a page *says* (not how it is drawn) decides to which split it belongs, so that nothing that a
held-out page says was ever seen in training, whatever the seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sgl_engine.demo.drawing import SIZE, Question, random_typeface
from sgl_engine.demo.pages.across import across_parts
from sgl_engine.demo.pages.bars import BarChart, draw_bars, sample_bars
from sgl_engine.demo.pages.documents import PageDocument, draw_document, sample_document
from sgl_engine.demo.pages.layout import SHAPES, SHARES, divide, halve
from sgl_engine.demo.pages.lines import LineChart, draw_lines, sample_lines
from sgl_engine.demo.pages.scenes import PageScene, draw_scene, sample_scene
from sgl_engine.demo.pages.sheet import TILE, Fact, Frame, PageSheet, Part
from sgl_engine.demo.pages.stock import FILLERS, Stock
from sgl_engine.demo.pages.tables import Form, PageTable, draw_form, draw_table, sample_form, sample_table
from sgl_engine.errors import SGLError

Split = Literal["train", "heldout"]
Content = PageDocument | PageTable | Form | PageScene | BarChart | LineChart
TEXTS = (PageDocument, PageTable, Form)
HELDOUT_SHARE = 1 / 16
SAMPLERS: dict[str, tuple[float, Callable[[Stock, np.random.Generator, Frame], Content | None]]] = {
    "document": (0.24, sample_document),
    "table": (0.16, sample_table),
    "form": (0.12, sample_form),
    "scene": (0.16, sample_scene),
    "bars": (0.17, sample_bars),
    "lines": (0.15, sample_lines),
}
"""What may stand on a page: how often, and what draws its words and numbers."""
TRANSCRIPTION = "transcribe"
"""Kind of the questions whose answer is all that a part says."""
EMPTY = 0.08
"""Share of the rectangles of a larger page that hold nothing that is asked about."""


@dataclass(frozen=True, eq=False)
class Page:
    """One page and all that is known about it.

    Attributes:
        seed: What it was drawn from.
        rows: Rows of tiles.
        columns: Columns of tiles.
        contents: What it says, part by part.
        pixels: uint8 (192 * rows, 192 * columns, 3).
        questions: Every question about it; their boxes are in pixels of the page.
        facts: What its boxes say.
    """

    seed: int
    rows: int
    columns: int
    contents: tuple[Content, ...]
    pixels: NDArray[np.uint8]
    questions: tuple[Question, ...]
    facts: tuple[Fact, ...]


def split_of(content: Content) -> Split:
    """The split to which a part belongs: a fixed function of what it says."""
    return "heldout" if zlib.crc32(repr(content).encode()) < HELDOUT_SHARE * 2**32 else "train"


def draw_page(
    seed: int,
    *,
    split: Split = "heldout",
    tiles: int | None = None,
    only: Sequence[str] = tuple(SAMPLERS),
) -> Page:
    """Draw a page: the same arguments always give the same one.

    Args:
        seed: Any non-negative integer.
        split: "train" or "heldout": the one that all of the page's parts belong to.
        tiles: 1, 2, 3, 4 or 6; None draws it.
        only: What may stand on it, some of the names in ``SAMPLERS``.
    """
    if tiles is not None and tiles not in SHAPES:
        raise SGLError(
            f"There is no page of {tiles} tiles.", remedy=f"Use {', '.join(map(str, SHAPES))} or None."
        )
    if not only or not set(only) <= set(SAMPLERS):
        raise SGLError(
            f"There is no page of {', '.join(only) or 'nothing'}.",
            remedy=f"Name some of {', '.join(SAMPLERS)}.",
        )
    rng = np.random.default_rng((seed, 17 if split == "heldout" else 13))
    drawn = int(rng.choice(list(SHARES), p=list(SHARES.values())))
    rows, columns = SHAPES[tiles or drawn]
    return _compose(seed, _furnish(rows, columns, _Wanted(split, tuple(only)), rng), (rows, columns), rng)


def compose_page(seed: int, placed: Sequence[tuple[Frame, Content]], *, tiles: int) -> Page:
    """Draw a page of given contents; the seed says how it looks.

    Args:
        seed: Any non-negative integer.
        placed: What stands on it, and where, in squares; frames do not overlap.
        tiles: 1, 2, 3, 4 or 6.
    """
    return _compose(seed, placed, SHAPES[tiles], np.random.default_rng((seed, 19)))


def _compose(
    seed: int, placed: Sequence[tuple[Frame, Content]], shape: tuple[int, int], rng: np.random.Generator
) -> Page:
    rows, columns = shape
    # Dark paper under text only: colours would not be told from it.
    dark = all(isinstance(content, TEXTS) for _, content in placed) and bool(rng.random() < 0.12)
    sheet = PageSheet(rng, rows, columns, clean=bool(rng.random() < 0.5), dark=dark)
    names = [content.name for _, content in placed if isinstance(content, PageDocument)]
    _fill_in(sheet, [frame for frame, _ in placed], rng)
    parts = [_draw(content, frame, sheet, rng, qualified=len(names) > 1) for frame, content in placed]
    questions = [question for part in parts for question in part.questions]
    questions += across_parts([content for _, content in placed], parts, rows, columns, rng)
    questions = [_punctuate(question, rng) for question in _unambiguous(questions)]
    contents = tuple(content for _, content in placed)
    facts = tuple(fact for part in parts for fact in part.facts)
    return Page(seed, rows, columns, contents, sheet.finish(), tuple(questions), facts)


@dataclass(frozen=True)
class _Wanted:
    """The split and the names of what may stand on a page."""

    split: Split
    names: tuple[str, ...]


def _furnish(
    rows: int, columns: int, wanted: _Wanted, rng: np.random.Generator
) -> list[tuple[Frame, Content]]:
    """Parts and their frames; at least one."""
    stock = Stock.full()
    placed: list[tuple[Frame, Content]] = []
    while not placed:
        for frame in divide(rows, columns, rng):
            if rows * columns > 1 and rng.random() < EMPTY:
                continue
            split_frame = frame.rows > TILE and rng.random() < 0.4
            for part in halve(frame, rng) if split_frame else (frame,):
                content, stock = _choose(stock, part, placed, wanted, rng, documents=split_frame)
                if content is not None:
                    placed.append((part, content))
    return placed


def _fill_in(sheet: PageSheet, taken: list[Frame], rng: np.random.Generator) -> None:
    """Write a paragraph, about which nothing is asked, into some of the tiles that are left over."""
    height, width = (size // SIZE for size in sheet.canvas.shape[:2])
    for row, column in product(range(height), range(width)):
        tile = Frame(row * TILE, column * TILE, TILE, TILE)
        if any(tile.overlaps(frame) for frame in taken) or rng.random() < 0.4:
            continue
        face, first = random_typeface(rng), int(rng.integers(0, 7))
        for line in range(int(rng.integers(2, 6))):
            text = FILLERS[int(rng.integers(len(FILLERS)))]
            sheet.write(2 * tile.column + 2, tile.row + first + line, text, face)


def _choose(
    stock: Stock,
    frame: Frame,
    placed: list[tuple[Frame, Content]],
    wanted: _Wanted,
    rng: np.random.Generator,
    *,
    documents: bool,
) -> tuple[Content | None, Stock]:
    """Something for the frame, and the stock without it; a page has one scene, and one chart of each sort."""
    single = {PageTable: "table", Form: "form", PageScene: "scene", BarChart: "bars", LineChart: "lines"}
    there = {single.get(type(content), "") for _, content in placed}
    names = [name for name in SAMPLERS if name not in there and name in wanted.names]
    names = [name for name in names if name == "document" or not documents]
    if not names:
        return None, stock
    weights = np.array([SAMPLERS[name][0] for name in names])
    name = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    repeat: dict[str, Any] = {}
    if name == "document":
        receipts = [c for _, c in placed if isinstance(c, PageDocument) and c.is_receipt]
        if len(receipts) == 1 and rng.random() < 0.5:
            repeat["repeat"] = tuple(label for label, _ in receipts[0].lines)
    for _ in range(200):
        trial = stock.copy()
        content = SAMPLERS[name][1](trial, rng, frame, **repeat)
        if content is None:
            break
        if split_of(content) == wanted.split:
            return content, trial
    return None, stock


def _draw(
    content: Content, frame: Frame, sheet: PageSheet, rng: np.random.Generator, *, qualified: bool
) -> Part:
    if isinstance(content, PageDocument):
        return draw_document(content, frame, sheet, rng, qualified=qualified)
    if isinstance(content, PageTable):
        return draw_table(content, frame, sheet, rng)
    if isinstance(content, Form):
        return draw_form(content, frame, sheet, rng)
    if isinstance(content, PageScene):
        return draw_scene(content, frame, sheet, rng)
    if isinstance(content, BarChart):
        return draw_bars(content, frame, sheet, rng)
    return draw_lines(content, frame, sheet, rng)


def _unambiguous(questions: list[Question]) -> list[Question]:
    """Without questions that are asked twice; where the same text has two answers, without either."""
    answers: dict[str, set[str]] = {}
    for question in questions:
        answers.setdefault(question.text, set()).add(question.answer)
    kept: dict[str, Question] = {}
    for question in questions:
        if len(answers[question.text]) == 1:
            kept.setdefault(question.text, question)
    return list(kept.values())


def _punctuate(question: Question, rng: np.random.Generator) -> Question:
    """Write half of the questions as a sentence: the tokenizer is uncased, the question mark is a token."""
    asked = question.text.split()[0] in ("what", "which", "how", "is", "where", "in")
    if rng.random() < 0.5 or not asked:
        return question
    return replace(question, text=question.text[0].upper() + question.text[1:] + "?")


def pick_questions(questions: Sequence[Question], rng: np.random.Generator, count: int) -> list[Question]:
    """Up to ``count`` different ones of the questions, every kind equally likely at each draw."""
    pools: dict[str, list[Question]] = {}
    for index in rng.permutation(len(questions)):
        question = questions[int(index)]
        pools.setdefault(question.kind, []).append(question)
    picked: list[Question] = []
    while pools and len(picked) < count:
        kind = list(pools)[int(rng.integers(len(pools)))]
        picked.append(pools[kind].pop())
        if not pools[kind]:
            del pools[kind]
    return picked


def heldout_pages(
    count: int, *, start: int = 0, tiles: int | None = None, transcriptions: bool = False
) -> Iterator[tuple[Page, Question]]:
    """``count`` held-out (page, question) pairs, one per page; kinds are equally likely on each page.

    Transcriptions, which need all of a part and not the little that other questions need, are asked for
    apart: only they, or all but they.
    """
    for seed in range(start, start + count):
        page = draw_page(seed, split="heldout", tiles=tiles)
        asked = [q for q in page.questions if (q.kind == TRANSCRIPTION) == transcriptions]
        yield page, pick_questions(asked, np.random.default_rng((seed, 11)), 1)[0]
