"""The outlines of a scene's shapes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sgl_engine.demo.glyphs import Canvas


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
