"""A file that holds several pictures -> each of them as a picture of its own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from langchain_sgl.indexing.files import PictureInfo
from sgl_engine import CorruptImageError, ImageError, ImageLimitError, LimitsConfig, MissingImageError
from sgl_engine.prompt import mime_type_of, sniff

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class DrawnPage:
    """One page.

    Attributes:
        data: The page alone, as PNG.
        info: Its size, and the type of the file that it comes from.
    """

    data: bytes
    info: PictureInfo


def count_file_pages(data: bytes, limits: LimitsConfig, most: int) -> int:
    """Counts the pages of a file; 1 for a plain picture.

    Raises:
        ImageError: It cannot be opened, or has more pages than ``most``.
    """
    from sgl_engine.prompt import count_pages

    count = count_pages(data, limits, "The file", most + 1)
    if count > most:
        raise ImageLimitError(
            f"The file holds more than {most} pages.", remedy="Raise max_pages, or divide the file."
        )
    return count


def draw_pages(data: bytes, limits: LimitsConfig, count: int) -> Iterator[DrawnPage | Exception]:
    """Draws the first ``count`` pages, one at a time; a page that cannot be drawn comes as its error."""
    page = 0
    while page < count:
        begun = page
        for drawn in islice(_draw_from(data, limits, page), count - page):
            yield drawn
            page += 1
        # A PDF says where each page lies; elsewhere a page lies behind the one before it.
        if sniff(data) != "PDF" or page == begun:
            break
    lost = CorruptImageError("The page lies behind one that cannot be read.", remedy="Send an intact file.")
    yield from [lost] * (count - page)


def draw_page(data: bytes, limits: LimitsConfig, page: int) -> bytes:
    """Draws one page, counted from 0, as PNG.

    Raises:
        ImageError: There is no such page, or it cannot be read.
    """
    drawn = next(_draw_from(data, limits, page), None) if page >= 0 else None
    if drawn is None:
        raise MissingImageError(f"The file has no page {page}.", remedy="Pages are counted from 0.")
    if isinstance(drawn, Exception):
        raise drawn
    return drawn.data


def _draw_from(data: bytes, limits: LimitsConfig, start: int) -> Iterator[DrawnPage | Exception]:
    """Draws from ``start`` on, to the end or to the page behind which no more can be read."""
    from sgl_engine.prompt import open_pages

    everything = limits.model_copy(update={"pages": "all"})
    kind = mime_type_of(data) or ""
    try:
        for picture in open_pages(data, everything, "The file", start):
            yield _drawn(picture, limits, kind)
    except Exception as error:  # noqa: BLE001  # whatever it is, another page may be fine
        yield error


def _drawn(picture: Image.Image, limits: LimitsConfig, kind: str) -> DrawnPage | Exception:
    from sgl_engine.prompt import load_image

    try:
        pixels = load_image(picture, limits)
    except ImageError as error:
        return error
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG", compress_level=1)
    return DrawnPage(buffer.getvalue(), PictureInfo(kind, *pixels.size))
