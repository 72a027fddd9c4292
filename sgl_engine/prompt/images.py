"""Images in: bytes, PIL image, URL or local path -> PIL image in RGB, upright, within the limits.

Nothing is decoded before its size is known, and nothing is read from a path that was not given as a path.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

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
from sgl_engine.prompt.urls import fetch
from sgl_engine.request import ImagePart, ImageSource, Request, check_wanted

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Decoders that run; the others of Pillow, some of which start other programs, never see the bytes."""

_BROKEN = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders and its EXIF reader raise over damaged bytes."""


def resolve_images(request: Request, limits: LimitsConfig) -> Request:
    """The same request with every image loaded: each source a PIL image, RGB, upright.

    Raises:
        ImageError: An image is missing, corrupt, too large, too many, or refused by the URL policy.
        InvalidRequestError: There is nothing to answer.
    """
    if not request.messages or not any(message.content for message in request.messages):
        raise InvalidRequestError(
            f"The request holds {len(request.messages)} messages and nothing to answer.",
            remedy="Give it at least one message with a text or an image.",
        )
    if len(request.images) > limits.max_images:
        raise ImageLimitError(
            f"The request holds {len(request.images)} images; the limit is {limits.max_images}.",
            remedy="Send fewer images, or raise LimitsConfig.max_images.",
        )
    still_wanted = partial(check_wanted, request, "while its images were loaded")
    messages = tuple(
        dataclasses.replace(
            message,
            content=tuple(
                ImagePart(load_image(part.source, limits, still_wanted))
                if isinstance(part, ImagePart)
                else part
                for part in message.content
            ),
        )
        for message in request.messages
    )
    return dataclasses.replace(request, messages=messages)


def load_image(
    source: ImageSource, limits: LimitsConfig, still_wanted: Callable[[], None] = lambda: None
) -> Image.Image:
    """One image, RGB uint8, upright (EXIF orientation applied), transparency over white.

    Greyscale of 16 bits keeps its upper 8. Integers of 32 bits are taken as 8 bits if none is above 255, and
    as 16 if none is above 65535; wider ones, negative ones and floating-point pixels have no known white, and
    are refused as corrupt.

    Raises:
        ImageError: It is missing, corrupt, too large, or refused by the URL policy.
    """
    if isinstance(source, Image.Image):
        _check_pixels(source, limits, "The image")
        with _readable("The image"):
            return _upright_rgb(source)
    if isinstance(source, bytes | bytearray):
        data, label = bytes(source), "The image"
    elif isinstance(source, Path):
        data, label = read_file(source, limits), f"The file {source}"
    elif isinstance(source, str):
        data, label = _read_url(source, limits, still_wanted), f"The image at {_short(source)}"
    else:
        raise MissingImageError(
            f"An image is named, but its source is {type(source).__name__}.",
            remedy="Give bytes, a PIL image, a URL, or a local file as pathlib.Path.",
        )
    _check_bytes(len(data), limits, label)
    return _decode(data, limits, label)


def _decode(data: bytes, limits: LimitsConfig, label: str) -> Image.Image:
    try:
        with (
            _readable(f"{label}, {len(data)} bytes,"),
            Image.open(io.BytesIO(data), formats=FORMATS) as image,
        ):
            _check_pixels(image, limits, label)
            return _upright_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageLimitError(
            f"{label} is a decompression bomb ({error}); the limit is {limits.max_image_pixels} pixels.",
            remedy="Scale the image down before sending it.",
        ) from None


@contextmanager
def _readable(label: str) -> Iterator[None]:
    """Turns what broken data raises into CorruptImageError; a PIL image may be lazy, and break here too."""
    try:
        yield
    except _BROKEN as error:
        raise CorruptImageError(
            f"{label} cannot be read as a picture ({error}).",
            remedy=f"Send an intact file in one of the formats {', '.join(FORMATS)}.",
        ) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        upright = _eight_bits(upright)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright.convert("RGB")


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
            raise MissingImageError(f"The image file {path} {kind}.", remedy="Check the path.")
        _check_bytes(path.stat().st_size, limits, f"The file {path}")
        return path.read_bytes()
    except OSError as error:
        raise MissingImageError(
            f"The image file {path} cannot be read ({error.strerror}).",
            remedy="Check its name and permissions.",
        ) from error


def _read_url(url: str, limits: LimitsConfig, still_wanted: Callable[[], None]) -> bytes:
    scheme, colon, rest = url.partition(":")
    if not url:
        raise MissingImageError(
            "An image is named, but its URL is empty.", remedy="Give a URL, bytes or a Path."
        )
    if colon and scheme.lower() == "data":
        return _decode_data_url(rest)
    if colon and rest.startswith("//"):
        return fetch(url, limits.urls, max_bytes=limits.max_image_bytes, still_wanted=still_wanted)
    raise UnsafeUrlError(
        f"{_short(url)!r} is not a URL, and text never opens a local file.",
        remedy="Give a https: or data: URL, or wrap the file name in pathlib.Path.",
    )


def _decode_data_url(rest: str) -> bytes:
    header, comma, payload = rest.partition(",")
    if not comma or not header.endswith(";base64"):
        raise CorruptImageError(
            f"The data URL starts with {_short(header)!r} and holds no base64 data.",
            remedy="Write it as data:image/png;base64,...",
        )
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptImageError(
            f"The data URL's {len(payload)} characters are not base64 ({error}).",
            remedy="Encode the file with base64.b64encode.",
        ) from error


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
