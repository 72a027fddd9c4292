"""Text on numpy canvases, from an atlas of ready-rendered glyphs: no system font is needed.

The atlas holds every character of :data:`ALPHABET` in several faces and cell sizes;
``training/make_glyphs.py`` made it. Drawing a character is one blend of a small array, which is what makes
drawing fast enough to train from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Canvas = NDArray[np.float32]
"""A picture while it is drawn: float32 (height, width, 3), channels red, green, blue in 0..255."""

Color = tuple[float, float, float]
"""Red, green, blue in 0..255."""

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:-#/*+="
ATLAS_PATH = Path(__file__).with_name("glyphs.npz")
FACES = 3
CELL_WIDTH = 8
CELL_HEIGHTS = (13, 15)
"""Sizes of character cells in pixels: two characters to a 16-pixel patch, and one line of text."""

_INDEX = {character: index for index, character in enumerate(ALPHABET)}


@dataclass(frozen=True)
class Typeface:
    """One face of the atlas in one cell size: ``width`` and ``height`` of a character cell in pixels."""

    face: int
    width: int
    height: int


@lru_cache(maxsize=1)
def _atlas() -> dict[str, Canvas]:
    with np.load(ATLAS_PATH) as sheets:
        return {name: (sheets[name].astype(np.float32) / 255.0)[..., None] for name in sheets.files}


def text_width(text: str, typeface: Typeface) -> int:
    """Width of ``text`` in pixels."""
    return len(text) * typeface.width


def draw_text(canvas: Canvas, x: int, y: int, text: str, typeface: Typeface, color: Color) -> None:
    """Blend ``text`` onto ``canvas`` with its top left corner at (x, y); what lies outside is cut off.

    Args:
        canvas: float32 (height, width, 3), changed in place.
        x: Left edge in pixels.
        y: Top edge in pixels.
        text: Characters of :data:`ALPHABET`; a space only moves on.
        typeface: Face and cell size.
        color: Red, green, blue in 0..255.
    """
    sheet = _atlas()[f"{typeface.face}_{typeface.width}x{typeface.height}"]
    ink = np.asarray(color, dtype=np.float32)
    height, width = canvas.shape[:2]
    for offset, character in enumerate(text):
        left = x + offset * typeface.width
        if (
            character == " "
            or left < 0
            or y < 0
            or left + typeface.width > width
            or y + typeface.height > height
        ):
            continue
        alpha = sheet[_INDEX[character]]
        cell = canvas[y : y + typeface.height, left : left + typeface.width]
        cell += alpha * (ink - cell)
