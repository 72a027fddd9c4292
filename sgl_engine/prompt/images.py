"""Images in: bytes, PIL image, URL or local path -> PIL image in RGB, upright, within the limits.

Nothing is decoded before its size is known, and nothing is read from a path that was not given as a path.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sgl_engine.config import LimitsConfig
from sgl_engine.errors import (
    CorruptImageError,
    ImageLimitError,
    InvalidRequestError,
    MissingImageError,
    UnsafeUrlError,
)
from sgl_engine.prompt.formats import typed_errors
from sgl_engine.prompt.pages import open_pages
from sgl_engine.prompt.sources import decode_data_url, describe_source
from sgl_engine.prompt.urls import fetch
from sgl_engine.request import ImagePart, ImageSource, Request, check_wanted

Shrink = Callable[[int, int], int]
"""(width, height) of a picture -> the whole factor by which it may be scaled down while it is read."""

_TURNS = tuple(threading.RLock() for _ in range(64))
"""Pillow decodes a picture that was opened when it is first used, in one thread only: each picture has one of
these while it is decoded. They are not kept by picture, as pictures cannot be hashed."""

_ORIENTATION, _LIES_ON_ITS_SIDE = 0x0112, frozenset((5, 6, 7, 8))


def _as_it_is(width: int, height: int) -> int:
    del width, height
    return 1


def resolve_images(request: Request, limits: LimitsConfig, shrink: Shrink = _as_it_is) -> Request:
    """The same request with every image loaded: each source a PIL image, RGB, upright.

    A file of several pages becomes as many images where the limits allow it. Whether the request is still
    wanted is looked at before and after each image.

    Args:
        request: What is asked.
        limits: What it may bring.
        shrink: How far a large picture may be scaled down for the models that will read it.

    Raises:
        ImageError: An image is missing, corrupt, too large, too many, or refused by the URL policy.
        InvalidRequestError: There is nothing to answer.
        DeadlineError: The deadline passed meanwhile.
        RequestCancelledError: The request was cancelled meanwhile.
    """
    if not request.messages or not any(message.content for message in request.messages):
        raise InvalidRequestError(
            f"The request holds {len(request.messages)} messages and nothing to answer.",
            remedy="Give it at least one message with a text or an image.",
        )
    _check_count(len(request.images), limits, more=False)
    reading = _Reading(limits, partial(check_wanted, request, "while its images were loaded"), shrink)
    blocks = count()
    messages = tuple(
        dataclasses.replace(
            message,
            content=tuple(
                piece
                for part in message.content
                for piece in (
                    [
                        ImagePart(page, block)
                        for block in [next(blocks)]
                        for page in reading.pages(part.source)
                    ]
                    if isinstance(part, ImagePart)
                    else [part]
                )
            ),
        )
        for message in request.messages
    )
    return dataclasses.replace(request, messages=messages)


def read_source(
    source: ImageSource, limits: LimitsConfig, still_wanted: Callable[[], None] = lambda: None
) -> bytes | Image.Image:
    """An image, undecoded: the bytes of a file or a URL; a PIL image stays one, and is no longer lazy.

    Raises:
        ImageError: It is missing, too large, or refused by the URL policy; or a PIL image that is corrupt.
    """
    if isinstance(source, Image.Image):
        with typed_errors("The image", limits):
            _check_pixels(source, limits, "The image")
            _decode(source)
        return source
    data, label = _bytes_of(source, limits, still_wanted)
    _check_bytes(len(data), limits, label)
    return data


def load_image(
    source: ImageSource,
    limits: LimitsConfig,
    still_wanted: Callable[[], None] = lambda: None,
    shrink: Shrink = _as_it_is,
) -> Image.Image:
    """One image, RGB uint8, upright (EXIF orientation applied), transparency over white.

    Greyscale of 16 bits keeps its upper 8. Integers of 32 bits are taken as 8 bits if none is above 255, and
    as 16 if none is above 65535; wider ones, negative ones and floating-point pixels have no known white, and
    are refused as corrupt. Of a PIL image with several frames the current one is taken.

    Args:
        source: Where it is.
        limits: What it may be like.
        still_wanted: Called between steps; what it raises ends them.
        shrink: How far it may be scaled down; the result is then smaller by a whole factor.

    Raises:
        ImageError: It is missing, corrupt, too large, refused by the URL policy, or holds several
            pages while ``LimitsConfig.pages`` is not "first".
    """
    if limits.pages == "all":
        limits = limits.model_copy(update={"pages": "refuse"})
    return _Reading(limits, still_wanted, shrink).pages(source)[0]


def load_pages(
    source: ImageSource, limits: LimitsConfig, still_wanted: Callable[[], None] = lambda: None
) -> list[Image.Image]:
    """``load_image`` for every page of a file, whatever ``LimitsConfig.pages`` says.

    Raises:
        ImageError: As there; also where it holds more pages than a request may hold images.
    """
    limits = limits.model_copy(update={"pages": "all"})
    return _Reading(limits, still_wanted, _as_it_is).pages(source)


class _Reading:
    """Reads the pictures of one request, and counts what they come to."""

    def __init__(self, limits: LimitsConfig, still_wanted: Callable[[], None], shrink: Shrink) -> None:
        self._limits, self._still_wanted, self._shrink = limits, still_wanted, shrink
        self._pixels = self._images = 0

    def pages(self, source: ImageSource) -> list[Image.Image]:
        """All pages of a source that are wanted, RGB and upright; see ``load_image``."""
        self._still_wanted()
        if isinstance(source, Image.Image):
            with typed_errors("The image", self._limits):
                return [self._read(source, "The image", ours=False)]
        data, label = _bytes_of(source, self._limits, self._still_wanted)
        _check_bytes(len(data), self._limits, label)
        found: list[Image.Image] = []
        pages = open_pages(data, self._limits, label)
        try:
            # Going on to the next page reads the file as well.
            with typed_errors(f"{label}, {len(data)} bytes,", self._limits):
                found.extend(self._read(page, label, ours=True) for page in pages)
        finally:
            pages.close()
        return found

    def _read(self, image: Image.Image, label: str, *, ours: bool) -> Image.Image:
        """Decodes one picture, after a look at its size.

        Args:
            image: Opened; its pixels may not have been read yet.
            label: What it is called in errors.
            ours: Whether nobody else holds it, so that it may be changed.
        """
        self._spend(image, label)
        width, height = image.size
        turned = (image.getexif() if ours else _decode(image)).get(_ORIENTATION)
        if turned in _LIES_ON_ITS_SIDE:
            width, height = height, width
        large = width * height > self._limits.exact_image_pixels
        factor = self._shrink(width, height) if large else 1
        picture = _upright_rgb(image, factor, turned=turned not in (None, 1), ours=ours)
        self._still_wanted()
        return picture

    def _spend(self, image: Image.Image, label: str) -> None:
        _check_pixels(image, self._limits, label)
        self._pixels += image.width * image.height
        self._images += 1
        _check_count(self._images, self._limits, more=True)
        if self._pixels > self._limits.max_request_pixels:
            raise ImageLimitError(
                f"The request's first {self._images} images have {self._pixels} pixels together; the limit "
                f"is {self._limits.max_request_pixels}.",
                remedy="Send fewer or smaller images, or raise LimitsConfig.max_request_pixels.",
            )


def _decode(image: Image.Image) -> Image.Exif:
    """Decodes a picture that other threads may hold as well, where nobody has; returns its EXIF."""
    with _TURNS[id(image) // 16 % len(_TURNS)]:
        exif = image.getexif()
        image.load()
        return exif


def _bytes_of(source: Any, limits: LimitsConfig, still_wanted: Callable[[], None]) -> tuple[bytes, str]:
    """The bytes, and what errors call the image."""
    if isinstance(source, bytes | bytearray):
        return bytes(source), "The image"
    if isinstance(source, Path):
        return read_file(source, limits), f"The file {describe_source(source)}"
    if isinstance(source, str):
        return _read_url(source, limits, still_wanted), f"The image at {describe_source(source)}"
    raise MissingImageError(
        f"An image is named, but its source is {type(source).__name__}.",
        remedy="Give bytes, a PIL image, a URL, or a local file as pathlib.Path.",
    )


def _check_count(images: int, limits: LimitsConfig, *, more: bool) -> None:
    if images > limits.max_images:
        raise ImageLimitError(
            f"The request holds {f'at least {images}' if more else images} images; the limit is "
            f"{limits.max_images}.",
            remedy="Send fewer images or pages, or raise LimitsConfig.max_images.",
        )


def _upright_rgb(image: Image.Image, factor: int, *, turned: bool, ours: bool) -> Image.Image:
    """Decodes, scales down by a whole factor, and turns upright; what is not ours is copied."""
    if factor > 1 and ours:
        # JPEG alone can be decoded smaller, by 2, 4 or 8; what is left of the factor is done below.
        width, height = image.size
        step = next((n for n in (8, 4, 2) if not (factor % n or width % n or height % n)), 1)
        image.draft(None, (width // step, height // step))
        factor //= width // image.width
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        upright = _eight_bits(upright)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = _reduced(upright.convert("RGBA"), factor)
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    if factor > 1 and upright.mode not in ("L", "RGB", "CMYK", "YCbCr"):
        upright = upright.convert("RGB")
    upright = _reduced(upright, factor)
    upright.load()
    return upright if upright.mode == "RGB" and upright is not image else upright.convert("RGB")


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Scaled down by a box filter; where the factor does not divide a side, a box may end inside a pixel."""
    if factor == 1 or not (image.width % factor or image.height % factor):
        return image.reduce(factor) if factor > 1 else image
    size = (-(-image.width // factor), -(-image.height // factor))
    return image.resize(size, Image.Resampling.BOX)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deep greyscale -> mode L; ``convert`` would clip all but the darkest 255 of 65,536 levels."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 0xFFFF:
        raise CorruptImageError(
            f"The image has pixels of mode {image.mode} from {low} to {high}; which one is white is unknown.",
            remedy="Scale them to 0..255 and convert the image to mode L or RGB.",
        )
    grey = values if image.mode == "I" and high <= 0xFF else values >> 8
    # A PNG can name one grey value as transparent: white, like all transparency.
    return Image.fromarray(np.where(values == image.info.get("transparency", -1), 255, grey).astype(np.uint8))


def _check_bytes(size: int, limits: LimitsConfig, label: str) -> None:
    if size > limits.max_image_bytes:
        raise ImageLimitError(
            f"{label} has {size} bytes; the limit is {limits.max_image_bytes}.",
            remedy="Compress it or scale it down, or raise LimitsConfig.max_image_bytes.",
        )


def _check_pixels(image: Image.Image, limits: LimitsConfig, label: str) -> None:
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise ImageLimitError(
            f"{label} has {width} x {height} pixels; the limit is {limits.max_image_pixels} in all.",
            remedy="Scale it down, or raise LimitsConfig.max_image_pixels.",
        )
    if max(width, height) > limits.max_image_side:
        raise ImageLimitError(
            f"{label} has {width} x {height} pixels; the limit is {limits.max_image_side} a side.",
            remedy="Cut it into parts or scale it down, or raise LimitsConfig.max_image_side.",
        )
    if width * height == 0:
        raise CorruptImageError(
            f"{label} has {width} x {height} pixels; at least one is needed.", remedy="Send a picture."
        )


def read_file(path: Path, limits: LimitsConfig) -> bytes:
    """The bytes of a local picture, undecoded.

    Raises:
        MissingImageError: There is no such file, or it cannot be read.
        ImageLimitError: It is larger than the limits allow.
    """
    try:
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "does not exist"
            raise MissingImageError(
                f"The image file {describe_source(path)} {kind}.", remedy="Check the path."
            )
        _check_bytes(path.stat().st_size, limits, f"The file {describe_source(path)}")
        return path.read_bytes()
    except OSError as error:
        raise MissingImageError(
            f"The image file {describe_source(path)} cannot be read ({error.strerror}).",
            remedy="Check its name and permissions.",
        ) from error


def _read_url(url: str, limits: LimitsConfig, still_wanted: Callable[[], None]) -> bytes:
    url = url.strip()
    if not url:
        raise MissingImageError(
            "An image is named, but its URL is empty.", remedy="Give a URL, bytes or a Path."
        )
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() == "data":
        return decode_data_url(url)
    if colon and rest.startswith("//"):
        return fetch(url, limits.urls, max_bytes=limits.max_image_bytes, still_wanted=still_wanted)
    raise UnsafeUrlError(
        f"{describe_source(url)!r} is not a URL, and text never opens a local file.",
        remedy="Give a https: or data: URL, or wrap the file name in pathlib.Path.",
    )
