"""What the parts of a page share: measures, colours, questions, and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sgl_engine.demo.glyphs import CELL_HEIGHTS, CELL_WIDTH, FACES, Color, Typeface

SIZE = 192
"""Pixels to a tile's side."""
PATCH = 16
"""Side of the square of pixels that becomes one visual token."""

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
    """A question about one page.

    Attributes:
        text: The question.
        answer: Its only right answer; "none" where the page does not hold one.
        kind: What is asked, for instance "document value"; results are broken down by it.
        evidence: Boxes of the page from which the answer is read; empty where there is none.
    """

    text: str
    answer: str
    kind: str
    evidence: tuple[Box, ...] = ()


def random_typeface(rng: np.random.Generator) -> Typeface:
    """A face and size for running text."""
    return Typeface(int(rng.integers(FACES)), CELL_WIDTH, CELL_HEIGHTS[int(rng.integers(len(CELL_HEIGHTS)))])


def choose(rng: np.random.Generator, options: Sequence[str], count: int) -> list[str]:
    """``count`` different options in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def phrase(rng: np.random.Generator, templates: Sequence[str], **words: str) -> str:
    """One of the templates, filled in."""
    return templates[int(rng.integers(len(templates)))].format(**words)
