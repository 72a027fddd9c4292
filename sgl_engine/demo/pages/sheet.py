"""The paper of a page, and what the parts of a page share: frames on a raster, evidence, what was mentioned.

The raster has squares of 16 pixels, a visual token each, and twelve of them to the side of a tile. Text
stands on it, two characters to a square; words start where a square does and no word crosses a tile's
upright border, because a vision tower that sees tile by tile could not read it. Lines, charts and scenes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgl_engine.demo.drawing import PALETTE, PATCH, SIZE, Box, Question
from sgl_engine.demo.glyphs import CELL_WIDTH, Canvas, Color, Typeface, draw_text, text_width

TILE = SIZE // PATCH
"""Squares of the raster to a tile's side."""


@dataclass(frozen=True)
class Frame:
    """A rectangle of the raster: its first row and column, and how many of each, in squares."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def box(self) -> Box:
        """The same in pixels."""
        x, y = self.column * PATCH, self.row * PATCH
        return (x, y, x + self.columns * PATCH, y + self.rows * PATCH)

    def overlaps(self, other: Frame) -> bool:
        """Whether a square is in both."""
        across = self.column < other.column + other.columns and other.column < self.column + self.columns
        return across and self.row < other.row + other.rows and other.row < self.row + self.rows


@dataclass(frozen=True)
class Mention:
    """Something that can be asked for by name ("milk", "the red star"), and the box in which it stands."""

    name: str
    box: Box


@dataclass(frozen=True)
class Fact:
    """What a box says, for the part of the training that asks the vision tower directly.

    Attributes:
        box: Where, in pixels.
        says: Word by sort: "label", "column", "color", "shape", "value"; "document", of what stands on one.
        needs: Boxes from which that follows; a tower that sees tile by tile cannot know it where one of
            them lies in another tile.
    """

    box: Box
    says: Mapping[str, str]
    needs: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Part:
    """What drawing one part of a page hands on.

    Attributes:
        name: What the part is called in questions: "receipt", "scene", "bar chart", ...
        questions: Everything that can be asked about it.
        mentions: What it holds.
        facts: What its boxes say.
        heading: Box of the word that names it; None where it has none.
    """

    name: str
    questions: tuple[Question, ...]
    mentions: tuple[Mention, ...]
    facts: tuple[Fact, ...]
    heading: Box | None = None


class PageSheet:
    """A canvas of rows x columns tiles with paper on it."""

    def __init__(self, rng: np.random.Generator, rows: int, columns: int, *, clean: bool, dark: bool) -> None:
        """Cover it with light paper (dark with light ink if ``dark``).

        Clean paper is of one colour, so that neighbouring squares are equal as in a printed file; other paper
        is uneven and grainy as a photograph is.
        """
        self.rng, self.clean = rng, clean
        height, width = rows * SIZE, columns * SIZE
        level = rng.uniform(20, 60) if dark else rng.uniform(215, 252)
        paper = np.clip(level + rng.uniform(-12, 12, 3), 0, 255)
        self.canvas: Canvas = np.broadcast_to(paper.astype(np.float32), (height, width, 3)).copy()
        if not clean:
            down, across = rng.uniform(-14, 14, 2)
            ramps = np.linspace(-0.5, 0.5, height)[:, None] * down + np.linspace(-0.5, 0.5, width) * across
            self.canvas += ramps[..., None].astype(np.float32)
        self.shift = (int(rng.integers(0, 3)), int(rng.integers(0, 4)))
        ink = rng.uniform(200, 255, 3) if dark else rng.uniform(0, 80, 3)
        self.ink: Color = (float(ink[0]), float(ink[1]), float(ink[2]))
        self.written: list[tuple[int, int, str]] = []
        """Half-square column, row and text of everything written, for whoever checks the page."""

    def write(self, column: int, row: int, text: str, face: Typeface, color: Color | None = None) -> Box:
        """Write in row ``row`` from half-square ``column`` on; return the text's box in pixels."""
        x = column * CELL_WIDTH + self.shift[0]
        y = row * PATCH + self.shift[1] * (PATCH - face.height) // 3
        box = (x, y, x + text_width(text, face), y + face.height)
        height, width = self.canvas.shape[:2]
        inside = min(x, y) >= 0 and box[2] <= width and box[3] <= height
        assert inside, f"{text!r} leaves the page: {box}"
        draw_text(self.canvas, x, y, text, face, self.ink if color is None else color)
        self.written.append((column, row, text))
        return box

    def rule(self, box: Box, *, color: Color | None = None) -> None:
        """Fill a box, one pixel high or wide for a line, with ink."""
        x0, y0, x1, y1 = box
        self.canvas[y0:y1, x0:x1] = self.ink if color is None else color

    def paint(self, name: str) -> Color:
        """The palette's colour of that name, a little different each time."""
        red, green, blue = np.asarray(PALETTE[name]) + self.rng.uniform(-12, 12, 3)
        return (float(red), float(green), float(blue))

    def finish(self) -> NDArray[np.uint8]:
        """Add grain where the paper has some; return uint8 (height, width, 3)."""
        picture = self.canvas
        if not self.clean:
            grain = self.rng.standard_normal(picture.shape[:2], dtype=np.float32)
            picture = picture + (grain * np.float32(self.rng.uniform(0, 7)))[..., None]
        done: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
        return done


def contrast(color: Color) -> Color:
    """White or near-black, whichever can be read on that colour."""
    dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 140
    return (255.0, 255.0, 255.0) if dark else (10.0, 10.0, 10.0)


def around(*boxes: Box) -> Box:
    """The smallest box that holds them all."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))
