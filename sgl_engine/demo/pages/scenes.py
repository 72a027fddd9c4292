"""Scenes: coloured shapes with numbers on them, in rows and columns that may run over several tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sgl_engine.demo.drawing import PATCH, Box, Question, phrase, random_typeface
from sgl_engine.demo.glyphs import Canvas
from sgl_engine.demo.pages.sheet import Fact, Frame, Mention, PageSheet, Part, contrast
from sgl_engine.demo.pages.stock import Stock
from sgl_engine.demo.vocabulary import COLORS, NONE, SHAPES, SIDES

MOST = 16
"""Objects at most."""
PITCH = 3
"""Squares from one place of the raster that they stand on to the next."""
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_NUMBER = ("what number is on the {name}", "which number has the {name}", "{name} number")
_COLOR = ("what color is the shape with number {number}", "what color has number {number}")
_SHAPE = ("what shape has number {number}", "which shape is number {number}")
_COUNT = ("how many {plural} are there", "count the {plural}")
_NEIGHBOR = ("what is {side} the {name}", "which shape is {side} the {name}")
_TWO_STEPS = (
    "what number is on the shape {side} the {name}",
    "what color is the shape {side} number {number}",
)
_SIDES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class PageThing:
    """One object: its row and column in the scene, and what it is."""

    row: int
    column: int
    shape: str
    color: str
    number: str

    @property
    def name(self) -> str:
        """Colour and shape, unique within a scene."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class PageScene:
    """Objects in reading order; no two share a name or a number."""

    things: tuple[PageThing, ...]

    @property
    def transcription(self) -> str:
        """Name and number of each object in reading order, separated by commas."""
        return ", ".join(f"{thing.name} {thing.number}" for thing in self.things)

    def neighbor(self, thing: PageThing, side: str) -> PageThing | None:
        """The nearest object on that side in the same row (left, right) or column (above, below)."""
        down, across = SIDES[side]
        ahead = [
            (abs(other.row - thing.row) + abs(other.column - thing.column), other)
            for other in self.things
            if other is not thing
            and (other.row - thing.row) * down >= (down != 0)
            and (other.column - thing.column) * across >= (across != 0)
            and (other.column == thing.column if down else other.row == thing.row)
        ]
        return min(ahead, key=lambda pair: pair[0])[1] if ahead else None


def sample_scene(stock: Stock, rng: np.random.Generator, frame: Frame) -> PageScene | None:
    """A scene for the frame. Shapes and colours come from small sets, so that counts above one are common."""
    down, across = frame.rows // PITCH, frame.columns // PITCH
    most = 8 if down * across <= MOST else MOST
    shapes = [SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[: int(rng.integers(3, len(SHAPES) + 1))]]
    colors = [COLORS[int(i)] for i in rng.permutation(len(COLORS))[: int(rng.integers(3, len(COLORS) + 1))]]
    names = [(shape, color) for shape in shapes for color in colors]
    count = min(len(names), int(rng.integers(4, most + 1)))
    numbers = stock.numbers(count, rng)
    if len(numbers) < count:
        return None
    picked = [names[int(i)] for i in rng.permutation(len(names))[:count]]
    places = np.sort(rng.permutation(down * across)[:count])
    return PageScene(
        tuple(
            PageThing(int(place) // across, int(place) % across, shape, color, number)
            for place, (shape, color), number in zip(places, picked, numbers, strict=True)
        )
    )


@lru_cache(maxsize=256)
def stencil(shape: str, size: int) -> Canvas:
    """Coverage of a shape in a size x size box: float32 (size, size, 1) in 0..1, with soft edges."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = axis[None, :], axis[:, None]
    if shape == "circle":
        inside = 1 - np.sqrt(x**2 + y**2)
    elif shape == "square":
        inside = 0.9 - np.maximum(np.abs(x), np.abs(y)) + 0 * x
    elif shape == "triangle":
        inside = np.minimum((y + 1) / 2 - np.abs(x) + 0.05, 0.92 - y)
    elif shape == "diamond":
        inside = 1 - np.abs(x) - np.abs(y)
    elif shape == "cross":
        arm = 0.42
        inside = np.maximum(
            np.minimum(arm - np.abs(x), 0.97 - np.abs(y)), np.minimum(arm - np.abs(y), 0.97 - np.abs(x))
        )
    else:
        angle = np.arctan2(x, -y)
        wedge = np.abs((angle / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * 2
        inside = (1 - 0.5 * wedge) - np.sqrt(x**2 + y**2)
    coverage: Canvas = np.clip(inside * size / 2 + 0.5, 0, 1).astype(np.float32)[..., None]
    return coverage


def draw_scene(scene: PageScene, frame: Frame, sheet: PageSheet, rng: np.random.Generator) -> Part:
    """Draw it."""
    boxes = {thing: _draw_thing(thing, frame, sheet, rng) for thing in scene.things}
    mentions = tuple(Mention(thing.name, boxes[thing]) for thing in scene.things)
    facts = tuple(
        Fact(
            boxes[thing], {"shape": thing.shape, "color": thing.color, "value": thing.number}, (boxes[thing],)
        )
        for thing in scene.things
    )
    return Part("scene", tuple(_questions(scene, boxes, rng)), mentions, facts)


def _draw_thing(thing: PageThing, frame: Frame, sheet: PageSheet, rng: np.random.Generator) -> Box:
    size = int(rng.integers(30, 44))
    # The number fills the middle square of its place; the shape stands around it, shifted a little.
    row, column = frame.row + thing.row * PITCH + 1, frame.column + thing.column * PITCH + 1
    middle = np.array([column, row]) * PATCH + PATCH // 2 + rng.integers(-2, 3, 2)
    if thing.shape == "triangle":
        middle[1] -= 3  # its wide part holds the number
    height, width = sheet.canvas.shape[:2]
    x0 = int(np.clip(middle[0] - size // 2, 0, width - size))
    y0 = int(np.clip(middle[1] - size // 2, 0, height - size))
    paint = sheet.paint(thing.color)
    area = sheet.canvas[y0 : y0 + size, x0 : x0 + size]
    area += stencil(thing.shape, size) * (np.asarray(paint, np.float32) - area)
    sheet.write(2 * column, row, thing.number, random_typeface(rng), contrast(paint))
    return (x0, y0, x0 + size, y0 + size)


def _questions(scene: PageScene, boxes: dict[PageThing, Box], rng: np.random.Generator) -> Iterator[Question]:
    for thing in scene.things:
        here = (boxes[thing],)
        yield Question(phrase(rng, _NUMBER, name=thing.name), thing.number, "scene number", here)
        yield Question(phrase(rng, _COLOR, number=thing.number), thing.color, "scene color", here)
        yield Question(phrase(rng, _SHAPE, number=thing.number), thing.shape, "scene shape", here)
        yield from _neighbors(scene, thing, boxes, rng)
    groups = {PLURALS[shape]: [t for t in scene.things if t.shape == shape] for shape in SHAPES}
    groups |= {f"{color} shapes": [t for t in scene.things if t.color == color] for color in COLORS}
    for plural, things in groups.items():
        text, found = phrase(rng, _COUNT, plural=plural), tuple(boxes[thing] for thing in things)
        if things or rng.random() < 0.2:
            yield Question(text, str(len(things)), "scene count", found)
    everything = tuple(boxes.values())
    yield Question(phrase(rng, _COUNT, plural="shapes"), str(len(scene.things)), "scene count", everything)
    yield Question("transcribe the scene", scene.transcription, "transcribe", everything)


def _neighbors(
    scene: PageScene, thing: PageThing, boxes: dict[PageThing, Box], rng: np.random.Generator
) -> Iterator[Question]:
    for side, words in _SIDES.items():
        other = scene.neighbor(thing, side)
        text = phrase(rng, _NEIGHBOR, side=words, name=thing.name)
        if other is None:
            if rng.random() < 0.1:  # most objects lack some neighbour: ask about few of those
                yield Question(text, NONE, "none")
            continue
        here = (boxes[thing], boxes[other])
        yield Question(text, other.name, "scene neighbor", here)
        for template, answer in zip(_TWO_STEPS, (other.number, other.color), strict=True):
            text = template.format(side=words, name=thing.name, number=thing.number)
            yield Question(text, answer, "scene two-step", here)
