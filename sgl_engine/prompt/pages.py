"""Files that hold several pictures: TIFF, animations, PDF. Every page comes out as a picture of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator
from itertools import islice
from typing import Any

from PIL import Image

from sgl_engine.config import LimitsConfig
from sgl_engine.errors import CorruptImageError, ImageLimitError
from sgl_engine.prompt.formats import check_format, open_picture, typed_errors
from sgl_engine.prompt.signatures import sniff

_PAGED = frozenset({"TIFF", "GIF", "WEBP", "PNG", "AVIF"})
"""Formats whose frames are pages. Not JPEG: the second picture in a camera's file is its preview."""

_SUBFILE_TYPE, _NOT_A_PAGE = 254, 0b101  # of a TIFF: a smaller copy of another page, or a mask
_POINTS_PER_INCH = 72
_PDFIUM = threading.Lock()  # the library runs one call at a time


def open_pages(data: bytes, limits: LimitsConfig, label: str, start: int = 0) -> Generator[Image.Image]:
    """The pages of an encoded file, one after the other, not decoded yet; a page is valid until the next.

    Args:
        data: The file's bytes.
        limits: Which formats are read, and what becomes of a second page.
        label: What the file is called in errors.
        start: How many pages are passed over first; a PDF's are not drawn.

    Raises:
        ImageError: It cannot be opened, or holds a second page that ``LimitsConfig.pages`` refuses.
    """
    if sniff(data) == "PDF":
        check_format("PDF", limits, label)
        yield from _pdf_pages(data, limits, label, start)
        return
    with open_picture(data, limits, label) as image:
        if start == 0:
            yield image
        if limits.pages == "first" or image.format not in _PAGED:
            return
        passed = 1
        for index in range(1, 2**31):
            try:
                image.seek(index)
            except EOFError:
                return
            if int(getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0)) & _NOT_A_PAGE:
                continue
            _check_second(limits, label)
            if passed >= start:
                yield image
            passed += 1


def count_pages(data: bytes, limits: LimitsConfig, label: str = "The image", most: int | None = None) -> int:
    """How many pages a file holds, whatever ``LimitsConfig.pages`` says of a second one.

    Args:
        data: The file's bytes.
        limits: Which formats are read.
        label: What the file is called in errors.
        most: Where counting may stop: an animation has to be read through. None reads to the end.

    Raises:
        ImageError: It cannot be opened.
    """
    everything = limits.model_copy(update={"pages": "all"})
    if sniff(data) == "PDF":
        check_format("PDF", limits, label)
        with _PDFIUM:
            document = _open_pdf(data, label)
            try:
                return len(document)
            finally:
                document.close()
    return sum(1 for _ in islice(open_pages(data, everything, label), most))


def _check_second(limits: LimitsConfig, label: str) -> None:
    if limits.pages == "refuse":
        raise ImageLimitError(
            f"{label} holds more than one page, and an image is one picture.",
            remedy='Send one page, or set LimitsConfig(pages="all") to send every page, or "first".',
        )


def _pdf_pages(data: bytes, limits: LimitsConfig, label: str, start: int) -> Generator[Image.Image]:
    with _PDFIUM:
        document = _open_pdf(data, label)
        count = len(document)
    try:
        for index in range(start, count if limits.pages != "first" else min(count, 1)):
            if index:
                _check_second(limits, label)
            # Here too, and not only in its reader's hands: a page that others are not read with.
            with _PDFIUM, typed_errors(f"{label}, {len(data)} bytes, page {index + 1},", limits):
                page = _draw(document[index], limits, label)
            yield page
    finally:
        with _PDFIUM:
            document.close()


def _open_pdf(data: bytes, label: str) -> Any:
    import pypdfium2  # type: ignore[import-not-found,import-untyped,unused-ignore]  # an extra

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise CorruptImageError(
            f"{label}, {len(data)} bytes, cannot be read as a PDF ({error}).",
            remedy="Send an intact file without a password.",
        ) from error
    if not len(document):
        document.close()
        raise CorruptImageError(f"{label} is a PDF of 0 pages.", remedy="Send a file that holds a page.")
    return document


def _draw(page: Any, limits: LimitsConfig, label: str) -> Image.Image:
    """A page as pixels. Its size is what the file says, so it is checked before anything is drawn."""
    scale = limits.pdf_dpi / _POINTS_PER_INCH
    width, height = (max(1.0, points * scale) for points in page.get_size())
    if width * height > limits.max_image_pixels or max(width, height) > limits.max_image_side:
        raise ImageLimitError(
            f"{label} has a page of {width:.0f} x {height:.0f} pixels at {limits.pdf_dpi:g} dpi; the limit "
            f"is {limits.max_image_pixels} in all and {limits.max_image_side} a side.",
            remedy="Lower LimitsConfig.pdf_dpi, or send the page as a picture.",
        )
    drawn: Image.Image = page.render(scale=scale).to_pil()
    page.close()
    return drawn
