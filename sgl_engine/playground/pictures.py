"""The pictures that come with the page, those that a visitor brings, and covering parts of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from sgl_engine import InvalidRequestError, LimitsConfig
from sgl_engine.demo import PICTURES
from sgl_engine.prompt import Box, load_image

ALTERNATIVES: Final = {
    "page": "A page: a bar chart of four months, coloured shapes with numbers, and two lists",
    "receipt": "A receipt: a date, items with prices, and a total",
    "scene": "Coloured shapes on a pale ground, each with a number",
    "chart": "A bar chart of five months",
}
"""Name -> what it shows, for whoever cannot see it; in the order of the gallery."""


def questions() -> dict[str, tuple[str, ...]]:
    """What can be asked about each picture of the gallery."""
    asked = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
    return {name: tuple(asked[name]) for name in ALTERNATIVES}


def open_picture(name: str, data: str, limits: LimitsConfig) -> Image.Image:
    """The picture of that name, or the visitor's own where there is no name.

    Args:
        name: In the gallery; empty for the visitor's own.
        data: A ``data:`` URL of the visitor's own.
        limits: What it may be like.

    Raises:
        InvalidRequestError: There is no such picture, or none at all.
        ImageError: It cannot be read, or is too large.
    """
    if name in ALTERNATIVES:
        return load_image(PICTURES / f"{name}.png", limits)
    if name:
        raise InvalidRequestError(
            f"There is no picture {name!r:.60}.", remedy=f"Use one of {', '.join(ALTERNATIVES)}."
        )
    if not data.startswith("data:"):  # no URL is fetched for a visitor, and no file is opened
        raise InvalidRequestError("There is no picture.", remedy="Choose one, or one of the gallery.")
    return load_image(data, limits)


def cover(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with parts painted over in the picture's own ground: its median colour.

    Args:
        picture: RGB; it does not change.
        boxes: x0, y0, x1, y1, fractions of the picture.
    """
    ground = np.median(np.asarray(picture).reshape(-1, 3), axis=0).round().astype(int).tolist()
    covered = picture.copy()
    pen = ImageDraw.Draw(covered)
    for x0, y0, x1, y1 in boxes:
        left, top = int(x0 * picture.width), int(y0 * picture.height)
        right, bottom = round(x1 * picture.width) - 1, round(y1 * picture.height) - 1
        pen.rectangle((left, top, max(left, right), max(top, bottom)), fill=tuple(ground))
    return covered
