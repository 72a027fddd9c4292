"""Pictures and requests that the tests share."""

import numpy as np
from PIL import Image

from sgl_engine import Message, Request
from sgl_engine.request import ImagePart


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without two equal regions."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


REQUESTS = {
    "one image": Request.ask("What is it?", noise(40, 50)),
    "several tiles": Request.ask("And this?", noise(96, 64)),
    "images with text between": Request(
        (
            Message(
                "user",
                ("First", ImagePart(noise(32, 32)), "then this", ImagePart(noise(60, 30, 1)), "Equal?"),
            ),
        )
    ),
}
