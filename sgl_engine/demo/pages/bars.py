"""Bar charts: one bar to a label, or several side by side or on top of each other, a colour each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sgl_engine.demo.drawing import PATCH, Box, Question, choose, phrase, random_typeface
from sgl_engine.demo.glyphs import CELL_WIDTH, Typeface, draw_text
from sgl_engine.demo.pages.sheet import TILE, Fact, Frame, Mention, PageSheet, Part, around, contrast
from sgl_engine.demo.pages.stock import Stock
from sgl_engine.demo.vocabulary import COLORS, NONE

HIGHEST = 9
LEFT = 22
"""Pixels from the frame's left edge to the axis."""
_VALUE = ("what is the value of {label}", "how high is {label}", "{label} value")
_COLOR = ("what color is {label}", "which color has the bar {label}")
_BY_COLOR = ("which bar is {color}", "what is the {color} bar")
_BY_VALUE = ("which bar has the value {value}", "which bar is {value} high")
_EXTREME = ("which bar is the {word}", "what is the {word} bar")
_COMPARE = ("is {label} higher than {other}",)
_SERIES = ("how high is {color} in {label}", "{color} in {label}", "what is {color} in {label}")
_SERIES_COMPARE = ("is {color} higher than {other} in {label}",)
_SERIES_SUM = ("what is the sum of {color} and {other} in {label}", "sum of {color} and {other} in {label}")


@dataclass(frozen=True)
class PageBar:
    """One bar or part of one: its label, its colour, its height in whole units."""

    label: str
    color: str
    value: int


@dataclass(frozen=True)
class BarChart:
    """Bars from left to right, in one group per label.

    ``style`` is "plain" (a bar and a colour to a label), "grouped" or "stacked" (the same colours for every
    label).
    """

    style: str
    groups: tuple[tuple[PageBar, ...], ...]

    @property
    def transcription(self) -> str:
        """Label, and colour and height of each of its bars, separated by commas."""
        return ", ".join(
            f"{group[0].label} {' '.join(f'{bar.color} {bar.value}' for bar in group)}"
            for group in self.groups
        )

    @property
    def bars(self) -> tuple[PageBar, ...]:
        """All of them."""
        return tuple(chain.from_iterable(self.groups))


def unique_extreme(bars: tuple[PageBar, ...], *, highest: bool) -> PageBar | None:
    """The highest (lowest) one, or None where two share that height."""
    edge = (max if highest else min)(bar.value for bar in bars)
    found = [bar for bar in bars if bar.value == edge]
    return found[0] if len(found) == 1 else None


def sample_bars(stock: Stock, rng: np.random.Generator, frame: Frame) -> BarChart | None:
    """A chart for the frame; None where too few months are left."""
    tiles = frame.columns // TILE
    style = ("plain", "grouped", "stacked")[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    most, least = {"plain": (4 * tiles + 1, 3), "grouped": (3 * tiles, 2), "stacked": (3 * tiles, 2)}[style]
    labels = stock.words("months", int(rng.integers(least, min(most, 8) + 1)), rng)
    if len(labels) < least:
        return None
    if style == "plain":
        colors = choose(rng, COLORS, len(labels))
        values = [int(value) for value in rng.integers(1, HIGHEST + 1, len(labels))]
        return BarChart(style, tuple((PageBar(*bar),) for bar in zip(labels, colors, values, strict=True)))
    # A part of a stack is at least as high as its number.
    series, lowest = choose(rng, COLORS, 2), 3 if style == "stacked" else 1
    return BarChart(
        style,
        tuple(
            tuple(PageBar(label, color, int(rng.integers(lowest, HIGHEST + 1))) for color in series)
            for label in labels
        ),
    )


def draw_bars(chart: BarChart, frame: Frame, sheet: PageSheet, rng: np.random.Generator) -> Part:
    """Draw it. Heights are printed where an axis alone would not do: over tiles, and in several colours."""
    face = random_typeface(rng)
    total = HIGHEST * (2 if chart.style == "stacked" else 1)
    large = frame.rows > TILE or frame.columns > TILE
    printed = chart.style != "plain" or large or rng.random() < 0.35
    deepest = frame.rows * PATCH - 2 * PATCH - 1  # a number stands above the highest bar
    unit = int(rng.integers(int(0.75 * deepest / total), deepest // total + 1))
    foot = frame.row + frame.rows - 1  # the labels' row
    base = foot * PATCH - 1
    _axis(frame, sheet, rng, face, unit=unit, base=base, highest=total)
    boxes: dict[PageBar, Box] = {}
    facts = []
    upper = bool(rng.random() < 0.5)
    for index, group in enumerate(chart.groups):
        middle = _middle(frame, len(chart.groups), index)
        square = middle // PATCH - 1 + (middle % PATCH >= PATCH // 2)
        square -= square % TILE == TILE - 1  # the label must not cross a tile's border
        text = group[0].label.upper() if upper else group[0].label
        label = sheet.write(2 * square, foot, text, face)
        spans = _spans(chart.style, group, middle, unit, base, rng, frame, len(chart.groups))
        for bar, span in zip(group, spans, strict=True):
            body = _draw_bar(bar, span, chart.style, sheet, face, printed=printed)
            boxes[bar] = around(label, body)
            says = {"label": bar.label, "color": bar.color, "value": str(bar.value)}
            facts += [Fact(body, {"color": bar.color}), Fact(body, says, (body, label))]
        facts.append(Fact(label, {"label": group[0].label}))
        if len(group) == 1:
            facts.append(Fact(label, says, (body, label)))
    questions = tuple(_plain(chart, boxes, rng) if chart.style == "plain" else _series(chart, boxes, rng))
    mentions = tuple(Mention(group[0].label, boxes[group[0]]) for group in chart.groups)
    return Part("bar chart", questions, mentions, tuple(facts))


def _middle(frame: Frame, count: int, index: int) -> int:
    """Where a label's bars have their middle, in pixels from the page's left edge."""
    x0, _, x1, _ = frame.box
    slot = (x1 - 2 - x0 - LEFT) / count
    return int(x0 + LEFT + slot * (index + 0.5))


def _spans(
    style: str,
    group: tuple[PageBar, ...],
    middle: int,
    unit: int,
    base: int,
    rng: np.random.Generator,
    frame: Frame,
    count: int,
) -> list[Box]:
    """Boxes of a group's bars."""
    if style == "grouped":
        edge = middle // PATCH * PATCH  # bars of one square each, so that their numbers stand above them
        return [
            (x + 1, base - bar.value * unit, x + PATCH - 1, base)
            for x, bar in zip((edge - PATCH, edge), group, strict=True)
        ]
    widest = (frame.columns * PATCH - LEFT) // count // 2 - 2
    half = int(rng.integers(8, max(9, min(widest, 22))))
    spans, floor = [], base
    for bar in group:
        spans.append((middle - half, floor - bar.value * unit, middle + half, floor))
        floor -= bar.value * unit
    return spans


def _draw_bar(bar: PageBar, span: Box, style: str, sheet: PageSheet, face: Typeface, *, printed: bool) -> Box:
    x0, y0, x1, y1 = span
    paint = sheet.paint(bar.color)
    sheet.rule(span, color=paint)
    if not printed:
        return span
    square = (x0 + x1) // 2 // PATCH
    if style == "stacked":
        return around(
            span, sheet.write(2 * square, (y0 + y1) // 2 // PATCH, str(bar.value), face, contrast(paint))
        )
    return around(span, sheet.write(2 * square, y0 // PATCH - 1, str(bar.value), face))


def _axis(
    frame: Frame,
    sheet: PageSheet,
    rng: np.random.Generator,
    face: Typeface,
    *,
    unit: int,
    base: int,
    highest: int,
) -> None:
    x0, _, x1, _ = frame.box
    axis, grid, step = x0 + LEFT, rng.random() < 0.6, int(rng.integers(1, 4))
    for value in range(0, highest + 1, step):
        y = base - value * unit
        if grid:
            sheet.canvas[y, axis : x1 - 2] -= 35
        sheet.rule((axis - 4, y, axis, y + 1))
        if unit * step >= 13:
            text = str(value)
            left = axis - 6 - CELL_WIDTH * len(text)
            draw_text(sheet.canvas, left, y - face.height // 2, text, face, sheet.ink)
    sheet.rule((axis, base - unit * highest, axis + 1, base + 1))
    sheet.rule((axis, base, x1 - 2, base + 1))


def _plain(chart: BarChart, boxes: dict[PageBar, Box], rng: np.random.Generator) -> Iterator[Question]:
    values = [bar.value for bar in chart.bars]
    for bar in chart.bars:
        here = (boxes[bar],)
        yield Question(phrase(rng, _VALUE, label=bar.label), str(bar.value), "chart value", here)
        yield Question(phrase(rng, _COLOR, label=bar.label), bar.color, "chart color", here)
        yield Question(phrase(rng, _BY_COLOR, color=bar.color), bar.label, "chart bar", here)
        if values.count(bar.value) == 1:
            yield Question(phrase(rng, _BY_VALUE, value=str(bar.value)), bar.label, "chart bar", here)
        rival = chart.bars[int(rng.integers(len(chart.bars)))]
        if rival.value != bar.value:
            text = phrase(rng, _COMPARE, label=bar.label, other=rival.label)
            answer = "yes" if bar.value > rival.value else "no"
            yield Question(text, answer, "chart compare", (*here, boxes[rival]))
    for highest, word in ((True, "highest"), (False, "lowest")):
        found = unique_extreme(chart.bars, highest=highest)
        if found is not None:
            yield Question(
                phrase(rng, _EXTREME, word=word), found.label, "chart extreme", tuple(boxes.values())
            )
    unused = [color for color in COLORS if color not in [bar.color for bar in chart.bars]]
    if unused:
        yield Question(phrase(rng, _BY_COLOR, color=choose(rng, unused, 1)[0]), NONE, "none")
    missing = [str(value) for value in range(1, HIGHEST + 1) if value not in values]
    if missing:
        yield Question(phrase(rng, _BY_VALUE, value=choose(rng, missing, 1)[0]), NONE, "none")
    yield Question("transcribe the chart", chart.transcription, "transcribe", tuple(boxes.values()))


def _series(chart: BarChart, boxes: dict[PageBar, Box], rng: np.random.Generator) -> Iterator[Question]:
    for group in chart.groups:
        first, second = (group[int(i)] for i in rng.permutation(2))
        label, both = first.label, (boxes[first], boxes[second])
        for bar in group:
            text = phrase(rng, _SERIES, color=bar.color, label=label)
            yield Question(text, str(bar.value), "chart series", (boxes[bar],))
        words = {"color": first.color, "other": second.color, "label": label}
        if first.value != second.value:
            answer = "yes" if first.value > second.value else "no"
            yield Question(phrase(rng, _SERIES_COMPARE, **words), answer, "chart compare", both)
        yield Question(phrase(rng, _SERIES_SUM, **words), str(first.value + second.value), "sum", both)
    yield Question("transcribe the chart", chart.transcription, "transcribe", tuple(boxes.values()))
