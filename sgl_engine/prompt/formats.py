"""Which file formats are read: told by a file's first bytes, before a decoder runs.

"Unsupported" and "corrupt" are two errors: the first is for the sender to convert, the second to send again.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import get_args

from PIL import Image, UnidentifiedImageError

from sgl_engine.config import ImageFormat, LimitsConfig
from sgl_engine.errors import CorruptImageError, ImageLimitError, SGLError, UnsupportedImageError
from sgl_engine.prompt.signatures import sniff

_BROKEN = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    UserWarning,
)
"""What Pillow's decoders, its EXIF reader and PDFium raise over damaged bytes; warnings that are errors."""

_ADDRESS = re.compile(r"\s*<[^<>]* object at 0x[0-9a-fA-F]+>")

_EXTRAS = {"HEIF": "pillow_heif", "PDF": "pypdfium2"}
"""Formats that another package reads -> its module."""


@contextmanager
def open_picture(data: bytes, limits: LimitsConfig, label: str) -> Iterator[Image.Image]:
    """Opens an encoded picture without decoding it; what its decoder raises inside the context is typed.

    Args:
        data: The file's bytes.
        limits: Which formats may be read.
        label: What the picture is called in errors.

    Raises:
        UnsupportedImageError: It is in a format that is not read here.
        CorruptImageError: It is in none, or damaged.
        ImageLimitError: Pillow takes it for a decompression bomb.
    """
    kind = sniff(data)
    check_format(kind, limits, label)
    with (
        typed_errors(f"{label}, {len(data)} bytes,", limits),
        Image.open(io.BytesIO(data), formats=_decoders(limits)) as image,
    ):
        yield image


def check_format(kind: str | None, limits: LimitsConfig, label: str) -> None:
    """Raises UnsupportedImageError where a file says that it is something that is not read here."""
    if kind is None or (kind in limits.image_formats and _is_readable(kind)):
        return
    read = ", ".join(name for name in limits.image_formats if _is_readable(name))
    remedy = f"Convert it to one of {read}."
    if kind in _EXTRAS and kind in limits.image_formats:
        remedy = f"Install {_EXTRAS[kind].replace('_', '-')} where the model runs, or convert it to PNG."
    elif kind in get_args(ImageFormat):
        remedy = f"Convert it to one of {read}, or add {kind!r} to LimitsConfig.image_formats."
    raise UnsupportedImageError(f"{label} is {kind}, a format that is not read here.", remedy=remedy)


@contextmanager
def typed_errors(label: str, limits: LimitsConfig) -> Iterator[None]:
    """Turns what broken data raises into CorruptImageError; a PIL image may be lazy, and break here too."""
    try:
        yield
    except SGLError:  # some are an OSError as well
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageLimitError(
            f"{label} is a decompression bomb ({error}); the limit is {limits.max_image_pixels} pixels.",
            remedy="Scale the image down before sending it.",
        ) from None
    except _BROKEN as error:
        # Pillow names the buffer that it read by its address in memory, which helps nobody.
        said = "no format is recognised" if isinstance(error, UnidentifiedImageError) else str(error)
        said = _ADDRESS.sub("", said) or type(error).__name__
        raise CorruptImageError(
            f"{label} cannot be read as a picture ({said}).",
            remedy=f"Send an intact file in one of the formats {', '.join(limits.image_formats)}.",
        ) from error


def _is_readable(kind: str) -> bool:
    """Whether there is a decoder for a format: some come with another package, or a build of Pillow."""
    if kind == "PDF":
        return find_spec("pypdfium2") is not None
    if kind == "HEIF":
        _register_heif()
    if kind not in Image.OPEN:
        Image.init()
    return kind in Image.OPEN


def _decoders(limits: LimitsConfig) -> list[str]:
    """Pillow's decoders that run; the others, some of which start other programs, never see the bytes."""
    return [kind for kind in limits.image_formats if kind != "PDF" and _is_readable(kind)]


def _register_heif() -> None:
    if "HEIF" not in Image.OPEN and find_spec("pillow_heif") is not None:
        import pillow_heif  # type: ignore[import-not-found,import-untyped,unused-ignore]  # an extra

        pillow_heif.register_heif_opener()
