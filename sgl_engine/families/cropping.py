"""Which part of an image is left after resizing its shorter edge and cropping the centre."""

from __future__ import annotations

from typing import Any

from sgl_engine.prompt.encoded import Box


def centre_crop(settings: Any, width: int, height: int) -> Box:
    """The box of a centre crop.

    Where the crop is larger than the resized image, it is padded, and the box ends at the image.

    Args:
        settings: Has do_resize, size and crop_size, as image processors do.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """
    scaled_width, scaled_height = float(width), float(height)
    if settings.do_resize and _get(settings.size, "shortest_edge"):
        scale = _get(settings.size, "shortest_edge") / min(width, height)
        scaled_width, scaled_height = width * scale, height * scale
    elif settings.do_resize:
        scaled_width, scaled_height = _get(settings.size, "width"), _get(settings.size, "height")
    x = max(0.0, (1 - _get(settings.crop_size, "width") / scaled_width) / 2)
    y = max(0.0, (1 - _get(settings.crop_size, "height") / scaled_height) / 2)
    return (x, y, 1 - x, 1 - y)


def _get(size: Any, name: str) -> Any:
    """Sizes are dictionaries, or objects that act like them."""
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)
