"""Scenes: coloured shapes with numbers on them, standing in rows and columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sgl_engine.demo.drawing import (
    PALETTE,
    PATCH,
    SIZE,
    Box,
    Question,
    Region,
    Sheet,
    box_cells,
    centre_cell,
    phrase,
    random_typeface,
)
from sgl_engine.demo.glyphs import Canvas
from sgl_engine.demo.vocabulary import (
    COLOR_CLASSES,
    COLORS,
    NO_COLOR,
    NO_SHAPE,
    NONE,
    SHAPE_CLASSES,
    SHAPES,
    SIDES,
    TRANSCRIBE,
    value_facts,
)

SIDE = 4
"""Objects stand in the cells of a SIDE x SIDE raster."""
PITCH = 3
"""Patches from one cell of the raster to the next."""
OBJECTS = range(4, 9)

_NUMBER = ("what number is on the {name}", "which number has the {name}", "{name} number")
_COLOR = ("what color is the shape with number {number}", "what color has number {number}")
_SHAPE = ("what shape has number {number}", "which shape is number {number}")
_COUNT = ("how many {plural} are there", "count the {plural}")
_NEIGHBOR = ("what is {side} the {name}", "which shape is {side} the {name}")
_TWO_STEP = {
    "number": "what number is on the shape {side} the {name}",
    "color": "what color is the shape {side} number {number}",
}
_SIDE_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_PLURALS = {"cross": "crosses"}


@dataclass(frozen=True)
class Thing:
    """One object: where it stands (row and column of the raster) and what it is."""

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
class Scene:
    """Objects in reading order; no two share a name or a number."""

    things: tuple[Thing, ...]

    @property
    def transcription(self) -> str:
        """Name and number of each object in reading order, separated by commas."""
        return ", ".join(f"{thing.name} {thing.number}" for thing in self.things)

    def neighbor(self, thing: Thing, side: str) -> Thing | None:
        """The nearest object on that side in the same row (left, right) or column (above, below)."""
        down, across = SIDES[side]
        for step in range(1, SIDE):
            place = (thing.row + down * step, thing.column + across * step)
            for other in self.things:
                if (other.row, other.column) == place:
                    return other
        return None


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene. Shapes and colours come from small random sets, so that counts above one are common."""
    count = int(rng.integers(OBJECTS.start, OBJECTS.stop))
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[: int(rng.integers(3, len(SHAPES) + 1))]]
    colors = [COLORS[i] for i in rng.permutation(len(COLORS))[: int(rng.integers(3, len(COLORS) + 1))]]
    names = [(shape, color) for shape in shapes for color in colors]
    picked = [names[i] for i in rng.permutation(len(names))[:count]]
    numbers = rng.permutation(np.arange(10, 100))[:count]
    places = np.sort(rng.permutation(SIDE * SIDE)[: len(picked)])
    return Scene(
        tuple(
            Thing(int(place) // SIDE, int(place) % SIDE, shape, color, str(int(number)))
            for place, (shape, color), number in zip(places, picked, numbers, strict=False)
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


def draw_scene(scene: Scene, sheet: Sheet, rng: np.random.Generator) -> tuple[list[Region], list[Question]]:
    """Draw the scene; return what is known about its patches, and every question about it."""
    for _ in range(int(rng.integers(0, 4))):  # thin rules as clutter
        line = int(rng.integers(0, len(sheet.canvas)))
        if rng.random() < 0.5:
            sheet.canvas[line] -= 25
        else:
            sheet.canvas[:, line] -= 25
    boxes = [_draw_thing(thing, sheet, rng) for thing in scene.things]
    regions = []
    for index, (thing, box) in enumerate(zip(scene.things, boxes, strict=True)):
        facts = {"shape": SHAPE_CLASSES[thing.shape], "color": COLOR_CLASSES[thing.color], "order": index + 1}
        facts |= value_facts(thing.number)
        for side in SIDES:
            other = scene.neighbor(thing, side)
            facts[f"{side}_shape"] = SHAPE_CLASSES[other.shape] if other else NO_SHAPE
            facts[f"{side}_color"] = COLOR_CLASSES[other.color] if other else NO_COLOR
        regions.append(Region(box_cells(box), facts))
        regions.append(Region((centre_cell(box),), {"centre": 1}))
    return regions, list(_questions(scene, boxes, rng))


def _draw_thing(thing: Thing, sheet: Sheet, rng: np.random.Generator) -> Box:
    size = int(rng.integers(30, 44))
    # The number fills the middle patch of its cell; the shape stands around it, shifted a little.
    row, column = thing.row * PITCH + 1, thing.column * PITCH + 1
    middle = np.array([column, row]) * PATCH + PATCH // 2 + rng.integers(-2, 3, 2)
    if thing.shape == "triangle":
        middle[1] -= 3  # its wide part holds the number
    x0, y0 = (int(v) for v in np.clip(middle - size // 2, 0, SIZE - size))
    paint = np.asarray(PALETTE[thing.color], np.float32) + rng.uniform(-14, 14, 3).astype(np.float32)
    part = sheet.canvas[y0 : y0 + size, x0 : x0 + size]
    part += stencil(thing.shape, size) * (paint - part)
    luminance = float(paint @ np.array([0.3, 0.59, 0.11]))
    ink = (255.0, 255.0, 255.0) if luminance < 140 else (10.0, 10.0, 10.0)
    sheet.write(2 * column, row, thing.number, random_typeface(rng), ink)
    return (x0, y0, x0 + size, y0 + size)


def _questions(scene: Scene, boxes: list[Box], rng: np.random.Generator) -> Iterator[Question]:
    where = dict(zip(scene.things, boxes, strict=True))
    for thing in scene.things:
        here = (where[thing],)
        yield Question(phrase(rng, _NUMBER, name=thing.name), thing.number, "scene number", here)
        yield Question(phrase(rng, _COLOR, number=thing.number), thing.color, "scene color", here)
        yield Question(phrase(rng, _SHAPE, number=thing.number), thing.shape, "scene shape", here)
        for side, words in _SIDE_WORDS.items():
            yield from _neighbor_questions(scene, thing, side, words, where, rng)
    for shape in SHAPES:
        yield _count_question(
            _PLURALS.get(shape, shape + "s"), [t for t in scene.things if t.shape == shape], where, rng
        )
    for color in COLORS:
        yield _count_question(f"{color} shapes", [t for t in scene.things if t.color == color], where, rng)
    yield _count_question("shapes", list(scene.things), where, rng)
    names = {thing.name for thing in scene.things}
    absent = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in names]
    yield Question(phrase(rng, _NUMBER, name=absent[int(rng.integers(len(absent)))]), NONE, "none")
    number = str(int(rng.integers(10, 100)))
    if number not in [thing.number for thing in scene.things]:
        yield Question(phrase(rng, _COLOR, number=number), NONE, "none")
    yield Question(TRANSCRIBE, scene.transcription, "transcribe", tuple(boxes))


def _count_question(
    plural: str, things: list[Thing], where: dict[Thing, Box], rng: np.random.Generator
) -> Question:
    boxes = tuple(where[thing] for thing in things)
    return Question(phrase(rng, _COUNT, plural=plural), str(len(things)), "scene count", boxes)


def _neighbor_questions(
    scene: Scene, thing: Thing, side: str, words: str, where: dict[Thing, Box], rng: np.random.Generator
) -> Iterator[Question]:
    other = scene.neighbor(thing, side)
    text = phrase(rng, _NEIGHBOR, side=words, name=thing.name)
    if other is None:
        if rng.random() < 0.15:  # most objects lack some neighbour: ask about few of those
            yield Question(text, NONE, "none")
        return
    evidence = (where[thing], where[other])
    yield Question(text, other.name, "scene neighbor", evidence)
    text = phrase(rng, (_TWO_STEP["number"],), side=words, name=thing.name)
    yield Question(text, other.number, "scene two-step", evidence)
    text = phrase(rng, (_TWO_STEP["color"],), side=words, number=thing.number)
    yield Question(text, other.color, "scene two-step", evidence)
