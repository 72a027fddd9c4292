"""What the three kinds of demo pictures share: canvas, paper, colours, and the records they hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgl_engine.demo.glyphs import (
    CELL_HEIGHTS,
    CELL_WIDTH,
    FACES,
    Canvas,
    Color,
    Typeface,
    draw_text,
    text_width,
)

SIZE = 192
"""Pictures are SIZE x SIZE pixels."""
PATCH = 16
"""Side of the square of pixels that becomes one visual token."""
GRID = SIZE // PATCH

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, half-open."""

PALETTE: Mapping[str, Color] = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 205, 40),
    "purple": (125, 50, 165),
    "orange": (245, 130, 25),
    "pink": (245, 140, 190),
    "black": (30, 30, 34),
}


@dataclass(frozen=True)
class Question:
    """A question about one picture.

    Attributes:
        text: The question.
        answer: Its only right answer; "none" where the picture does not hold one.
        kind: What is asked, for instance "document value"; results are broken down by it.
        evidence: Boxes of the picture from which the answer is read; empty where there is none.
    """

    text: str
    answer: str
    kind: str
    evidence: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Region:
    """Patches about which something is known: what the dense part of the training loss asks for.

    Attributes:
        cells: Indices of patches, row by row, in 0..GRID * GRID - 1.
        facts: Class per fact, 1-based (0 stands for "nothing here").
    """

    cells: tuple[int, ...]
    facts: Mapping[str, int]


@dataclass(frozen=True)
class GlyphMark:
    """One character that was drawn: its centre in pixels."""

    x: float
    y: float
    character: str


class Sheet:
    """A canvas with paper on it, that remembers which characters were written where."""

    def __init__(self, rng: np.random.Generator, *, dark: bool = False) -> None:
        """Cover the canvas with light paper (dark with light ink if ``dark``), uneven as a photograph is."""
        tint = rng.uniform(-12, 12, 3)
        level = rng.uniform(20, 60) if dark else rng.uniform(215, 250)
        self.paper = tuple(float(v) for v in np.clip(level + tint, 0, 255))
        slope = rng.uniform(-14, 14, 2)
        ramp = np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)
        shade = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
        self.canvas: Canvas = np.asarray(self.paper, np.float32) + shade[..., None].astype(np.float32)
        self.marks: list[GlyphMark] = []
        self.shift = (int(rng.integers(0, 3)), int(rng.integers(0, 4)))
        self.ink: Color = tuple(  # type: ignore[assignment]
            float(v) for v in (rng.uniform(200, 255, 3) if dark else rng.uniform(0, 80, 3))
        )

    def write(self, column: int, row: int, text: str, typeface: Typeface, color: Color | None = None) -> Box:
        """Write ``text`` in patch row ``row``, from half-patch ``column`` on; return its box.

        Two characters to a patch and one line to a row of patches, up to a jitter of a few pixels: what
        models of a few million parameters learn to read within an hour on a CPU (docs/log.md).
        """
        x = column * CELL_WIDTH + self.shift[0]
        y = row * PATCH + self.shift[1] * (PATCH - typeface.height) // 3
        draw_text(self.canvas, x, y, text, typeface, self.ink if color is None else color)
        for offset, character in enumerate(text):
            if character != " ":
                centre = x + (offset + 0.5) * typeface.width
                self.marks.append(GlyphMark(centre, y + typeface.height / 2, character))
        return (x, y, x + text_width(text, typeface), y + typeface.height)

    def finish(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Add grain and return the picture: uint8 (SIZE, SIZE, 3)."""
        grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32) * np.float32(rng.uniform(0, 7))
        picture: NDArray[np.uint8] = np.clip(self.canvas + grain[..., None], 0, 255).astype(np.uint8)
        return picture


def random_typeface(rng: np.random.Generator) -> Typeface:
    """A face and size for running text."""
    return Typeface(int(rng.integers(FACES)), CELL_WIDTH, CELL_HEIGHTS[int(rng.integers(len(CELL_HEIGHTS)))])


def line_cells(x0: int, x1: int, y: float) -> tuple[int, ...]:
    """Patches along a line of text from x0 to x1 (pixels, half-open) whose vertical centre is y."""
    row = min(GRID - 1, int(y // PATCH))
    return tuple(
        row * GRID + column for column in range(max(0, x0 // PATCH), min(GRID - 1, (x1 - 1) // PATCH) + 1)
    )


def box_cells(box: Box, *, least: float = 0.3) -> tuple[int, ...]:
    """Patches of which at least the fraction ``least`` lies in the box, and the patch of its centre."""
    x0, y0, x1, y1 = box
    start = np.arange(GRID) * PATCH
    across = np.clip(np.minimum(start + PATCH, x1) - np.maximum(start, x0), 0, None)
    down = np.clip(np.minimum(start + PATCH, y1) - np.maximum(start, y0), 0, None)
    covered = (down[:, None] * across[None, :]) / PATCH**2 >= least
    covered[centre_cell(box) // GRID, centre_cell(box) % GRID] = True
    return tuple(int(cell) for cell in np.flatnonzero(covered))


def centre_cell(box: Box) -> int:
    """The patch in which the centre of the box lies."""
    column = min(GRID - 1, (box[0] + box[2]) // 2 // PATCH)
    return min(GRID - 1, (box[1] + box[3]) // 2 // PATCH) * GRID + column


def choose(rng: np.random.Generator, options: Sequence[str], count: int) -> list[str]:
    """``count`` different options in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def phrase(rng: np.random.Generator, templates: Sequence[str], **words: str) -> str:
    """One of the templates, filled in."""
    return templates[int(rng.integers(len(templates)))].format(**words)
