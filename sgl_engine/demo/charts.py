"""Bar charts: labelled, coloured bars over an axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sgl_engine.demo.drawing import (
    GRID,
    PALETTE,
    PATCH,
    SIZE,
    Box,
    Question,
    Region,
    Sheet,
    box_cells,
    choose,
    line_cells,
    phrase,
    random_typeface,
)
from sgl_engine.demo.glyphs import CELL_WIDTH, Typeface, draw_text
from sgl_engine.demo.vocabulary import (
    BARS,
    COLOR_CLASSES,
    COLORS,
    LABEL_CLASSES,
    NONE,
    TRANSCRIBE,
    value_facts,
)

COUNT = range(3, 6)
HIGHEST = 9
LEFT, RIGHT = 22, SIZE - 2

_VALUE = ("what is the value of {label}", "how high is {label}", "{label} value")
_COLOR = ("what color is {label}", "which color has the bar {label}")
_BY_COLOR = ("which bar is {color}", "what is the {color} bar")
_BY_VALUE = ("which bar has the value {value}", "which bar is {value} high")
_HIGHEST = ("which bar is the highest", "what is the highest bar")
_LOWEST = ("which bar is the lowest", "what is the lowest bar")
_COMPARE = ("is {label} higher than {other}",)


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its colour, its height in whole units."""

    label: str
    color: str
    value: int


@dataclass(frozen=True)
class Chart:
    """Bars from left to right; labels and colours are all different."""

    bars: tuple[Bar, ...]

    @property
    def transcription(self) -> str:
        """Label, colour and height of each bar, separated by commas."""
        return ", ".join(f"{bar.label} {bar.color} {bar.value}" for bar in self.bars)

    def extreme(self, *, highest: bool) -> Bar | None:
        """The highest (lowest) bar, or None where two share that height."""
        edge = (max if highest else min)(bar.value for bar in self.bars)
        found = [bar for bar in self.bars if bar.value == edge]
        return found[0] if len(found) == 1 else None


def sample_chart(rng: np.random.Generator) -> Chart:
    """Draw a chart."""
    count = int(rng.integers(COUNT.start, COUNT.stop))
    labels = choose(rng, BARS, count)
    colors = choose(rng, COLORS, count)
    values = rng.integers(1, HIGHEST + 1, count)
    return Chart(tuple(Bar(a, b, int(v)) for a, b, v in zip(labels, colors, values, strict=True)))


def draw_chart(chart: Chart, sheet: Sheet, rng: np.random.Generator) -> tuple[list[Region], list[Question]]:
    """Draw the chart; return what is known about its patches, and every question about it."""
    face = random_typeface(rng)
    unit = int(rng.integers(11, 16))
    label_row = int(rng.integers(-(-(unit * HIGHEST + PATCH) // PATCH), GRID))
    base = label_row * PATCH - 1
    _draw_axis(sheet, rng, face, unit, base)
    upper, printed = rng.random() < 0.5, rng.random() < 0.35
    slot = (RIGHT - LEFT) / len(chart.bars)
    boxes, regions = [], []
    for index, bar in enumerate(chart.bars):
        middle = int(LEFT + slot * (index + 0.5))
        half = int(rng.integers(7, max(8, int(slot / 2) - 2)))
        top = base - bar.value * unit
        paint = np.asarray(PALETTE[bar.color], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
        sheet.canvas[top:base, middle - half : middle + half] = paint
        text = bar.label.upper() if upper else bar.label
        label_box = sheet.write(2 * round((middle - 12) / PATCH), label_row, text, face)
        if printed:
            draw_text(
                sheet.canvas, middle - CELL_WIDTH // 2, top - face.height - 1, str(bar.value), face, sheet.ink
            )
        body = (middle - half, top, middle + half, base)
        box = (
            min(body[0], label_box[0]),
            top - face.height * printed,
            max(body[2], label_box[2]),
            label_box[3],
        )
        boxes.append(box)
        facts = _facts(chart, bar, index)
        regions.append(Region(box_cells(body), facts))
        written = line_cells(label_box[0], label_box[2], (label_box[1] + label_box[3]) / 2)
        regions.append(Region(written, facts | {"label": LABEL_CLASSES[bar.label]}))
    return regions, list(_questions(chart, boxes, rng))


def _facts(chart: Chart, bar: Bar, index: int) -> dict[str, int]:
    facts = {"color": COLOR_CLASSES[bar.color], "order": index + 1}
    highest, lowest = chart.extreme(highest=True) is bar, chart.extreme(highest=False) is bar
    return facts | value_facts(str(bar.value)) | {"extreme": 2 if highest else 3 if lowest else 1}


def _draw_axis(sheet: Sheet, rng: np.random.Generator, face: Typeface, unit: int, base: int) -> None:
    grid = rng.random() < 0.6
    step = int(rng.integers(1, 4))
    for value in range(0, HIGHEST + 1, step):
        y = base - value * unit
        if grid:
            sheet.canvas[y, LEFT:RIGHT] -= 35
        sheet.canvas[y, LEFT - 4 : LEFT] = sheet.ink
        if unit * step >= 13:
            draw_text(sheet.canvas, LEFT - 14, max(0, y - face.height // 2), str(value), face, sheet.ink)
    sheet.canvas[base - unit * HIGHEST : base + 1, LEFT] = sheet.ink
    sheet.canvas[base, LEFT:RIGHT] = sheet.ink


def _questions(chart: Chart, boxes: list[Box], rng: np.random.Generator) -> Iterator[Question]:
    values = [bar.value for bar in chart.bars]
    for bar, box in zip(chart.bars, boxes, strict=True):
        here = (box,)
        yield Question(phrase(rng, _VALUE, label=bar.label), str(bar.value), "chart value", here)
        yield Question(phrase(rng, _COLOR, label=bar.label), bar.color, "chart color", here)
        yield Question(phrase(rng, _BY_COLOR, color=bar.color), bar.label, "chart bar", here)
        if values.count(bar.value) == 1:
            yield Question(phrase(rng, _BY_VALUE, value=str(bar.value)), bar.label, "chart bar", here)
        other = int(rng.integers(len(chart.bars)))
        rival = chart.bars[other]
        if rival.value != bar.value:
            text = phrase(rng, _COMPARE, label=bar.label, other=rival.label)
            yield Question(
                text, "yes" if bar.value > rival.value else "no", "chart compare", (box, boxes[other])
            )
    for highest, templates in ((True, _HIGHEST), (False, _LOWEST)):
        bar_or_none = chart.extreme(highest=highest)
        if bar_or_none is not None:
            here = (boxes[chart.bars.index(bar_or_none)],)
            yield Question(phrase(rng, templates), bar_or_none.label, "chart extreme", here)
    yield from _absent(chart, rng)
    yield Question(TRANSCRIBE, chart.transcription, "transcribe", tuple(boxes))


def _absent(chart: Chart, rng: np.random.Generator) -> Iterator[Question]:
    label = choose(rng, [word for word in BARS if word not in [bar.label for bar in chart.bars]], 1)[0]
    yield Question(phrase(rng, _VALUE, label=label), NONE, "none")
    unused = [color for color in COLORS if color not in [bar.color for bar in chart.bars]]
    yield Question(phrase(rng, _BY_COLOR, color=choose(rng, unused, 1)[0]), NONE, "none")
    missing = [v for v in range(1, HIGHEST + 1) if v not in [bar.value for bar in chart.bars]]
    yield Question(phrase(rng, _BY_VALUE, value=str(missing[int(rng.integers(len(missing)))])), NONE, "none")
