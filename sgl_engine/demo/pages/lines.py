"""Line charts: one or two coloured lines over months, with their values printed at the points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sgl_engine.demo.drawing import PATCH, Box, Question, choose, phrase, random_typeface
from sgl_engine.demo.glyphs import Color
from sgl_engine.demo.pages.sheet import TILE, Fact, Frame, Mention, PageSheet, Part, around
from sgl_engine.demo.pages.stock import Stock
from sgl_engine.demo.vocabulary import COLORS, NONE

PITCH = 3
"""Squares from one month to the next."""
_VALUE = ("what is the value of the {color} line in {label}", "how high is the {color} line in {label}")
_EXTREME = ("where is the {color} line {word}", "in what month is the {color} line {word}")
_COMPARE = ("is the {color} line higher in {label} than in {other}",)


@dataclass(frozen=True)
class LineChart:
    """Months from left to right, and a colour and a value from 1 to 9 per month for each line."""

    labels: tuple[str, ...]
    lines: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def transcription(self) -> str:
        """Each line's colour, and its values by month."""
        return ", ".join(
            f"{color} {' '.join(f'{a} {b}' for a, b in zip(self.labels, values, strict=True))}"
            for color, values in self.lines
        )


def sample_lines(stock: Stock, rng: np.random.Generator, frame: Frame) -> LineChart | None:
    """A chart for the frame; None where too few months are left."""
    most = (frame.columns - 2) // PITCH
    labels = stock.words("months", int(rng.integers(3, min(most, 7) + 1)), rng)
    if len(labels) < 3:
        return None
    first = rng.integers(1, 10, len(labels))
    lines = [first]
    if rng.random() < 0.5:
        # Two lines keep a distance of three, so that each number stands at its own.
        step = rng.integers(3, 7, len(labels))
        lines.append(np.where(first + step <= 9, first + step, np.maximum(first - 3, 1)))
        if np.any(np.abs(lines[0] - lines[1]) < 3):
            lines.pop()
    colors = choose(rng, COLORS, len(lines))
    return LineChart(
        labels,
        tuple((color, tuple(int(v) for v in values)) for color, values in zip(colors, lines, strict=True)),
    )


def draw_lines(chart: LineChart, frame: Frame, sheet: PageSheet, rng: np.random.Generator) -> Part:
    """Draw it."""
    face, upper = random_typeface(rng), bool(rng.random() < 0.5)
    x0, _, x1, _ = frame.box
    foot = frame.row + frame.rows - 1
    base = foot * PATCH - 6
    unit = int(rng.integers(12, (frame.rows * PATCH - 3 * PATCH) // 9 + 1))
    start = frame.column + 1 + int(rng.integers(0, frame.columns - 1 - PITCH * len(chart.labels) + 1))
    squares = [start + PITCH * index for index in range(len(chart.labels))]
    squares = [square - (square % TILE == TILE - 1) for square in squares]
    sheet.rule((x0 + 8, base, x1 - 4, base + 1))
    sheet.rule((x0 + 8, base - 9 * unit, x0 + 9, base))
    labels = [
        sheet.write(2 * square, foot, label.upper() if upper else label, face)
        for square, label in zip(squares, chart.labels, strict=True)
    ]
    boxes: list[list[Box]] = []
    facts = [Fact(box, {"label": label}) for box, label in zip(labels, chart.labels, strict=True)]
    for color, values in chart.lines:
        points = [
            (square * PATCH + PATCH // 2, base - value * unit)
            for square, value in zip(squares, values, strict=True)
        ]
        _trace(points, sheet.paint(color), sheet)
        boxes.append([])
        for index, ((x, y), value) in enumerate(zip(points, values, strict=True)):
            upper_line = all(value >= other[index] for _, other in chart.lines)
            row = y // PATCH - 1 if upper_line else y // PATCH + 1
            number = sheet.write(2 * squares[index], min(row, foot - 1), str(value), face)
            mark = (x - 4, y - 4, x + 5, y + 5)
            boxes[-1].append(around(labels[index], mark, number))
            says = {"label": chart.labels[index], "color": color, "value": str(value)}
            shown = (mark, number) if len(chart.lines) > 1 else (mark, number, labels[index])
            facts += [Fact(mark, {"color": color}), Fact(number, {"value": str(value)})]
            facts += [Fact(box, says, (mark, number, labels[index])) for box in shown]
    mentions = tuple(Mention(label, box) for label, box in zip(chart.labels, labels, strict=True))
    return Part("line chart", tuple(_questions(chart, boxes, rng)), mentions, tuple(facts))


def _trace(points: list[tuple[int, int]], paint: Color, sheet: PageSheet) -> None:
    """A line two pixels thick through the points, and a square mark at each."""
    for (ax, ay), (bx, by) in pairwise(points):
        for x in range(ax, bx + 1):
            y = ay + (by - ay) * (x - ax) / (bx - ax)
            steep = int(abs(by - ay) / (bx - ax)) + 1
            sheet.rule((x, int(y) - steep // 2, x + 2, int(y) + steep // 2 + 2), color=paint)
    for x, y in points:
        sheet.rule((x - 4, y - 4, x + 5, y + 5), color=paint)


def _questions(chart: LineChart, boxes: list[list[Box]], rng: np.random.Generator) -> Iterator[Question]:
    for (color, values), places in zip(chart.lines, boxes, strict=True):
        for index, (label, value) in enumerate(zip(chart.labels, values, strict=True)):
            text = phrase(rng, _VALUE, color=color, label=label)
            yield Question(text, str(value), "line value", (places[index],))
            other = int(rng.integers(len(values)))
            if values[other] != value:
                text = phrase(rng, _COMPARE, color=color, label=label, other=chart.labels[other])
                answer = "yes" if value > values[other] else "no"
                yield Question(text, answer, "line compare", (places[index], places[other]))
        for word, edge in (("highest", max(values)), ("lowest", min(values))):
            if values.count(edge) == 1:
                at = values.index(edge)
                text = phrase(rng, _EXTREME, color=color, word=word)
                yield Question(text, chart.labels[at], "line extreme", tuple(places))
    absent = [color for color in COLORS if color not in [name for name, _ in chart.lines]]
    text = phrase(rng, _VALUE, color=choose(rng, absent, 1)[0], label=chart.labels[0])
    yield Question(text, NONE, "none")
    everything = tuple(box for line in boxes for box in line)
    yield Question("transcribe the line chart", chart.transcription, "transcribe", everything)
