"""What of a request's pictures is sent to a hosted model: all, crops, or a masked picture. Pure.

The map says where the small model looked (``regions``). Pictures go out as pixels alone: nothing of a file's
metadata is sent.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from PIL import Image, ImageFilter

from sgl_engine.config import SendConfig
from sgl_engine.errors import InvalidRequestError
from sgl_engine.hosted.model import HostedCall
from sgl_engine.hosted.regions import Regions, find_regions
from sgl_engine.request import Request

if TYPE_CHECKING:
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.prompt.encoded import Box

Size: TypeAlias = tuple[int, int]
_LEAST_SIDE = 32  # pixels of a crop's side: models refuse pictures that are smaller than one of their patches
_MOST_SIDE = {"WEBP": 16383, "JPEG": 65500}  # pixels: no longer picture can be written in these
_GREY = (127, 127, 127)


@dataclass(frozen=True)
class SentPicture:
    """What was sent of one picture.

    Attributes:
        mode: "full", "crop" or "mask".
        reason: Why it was that.
        boxes: What was looked at, in fractions of the picture; the crops are these.
        full_size: Width and height of the picture.
        sizes: Width and height of each picture that was sent in its place, in order; the overview first.
    """

    mode: Literal["full", "crop", "mask"]
    reason: str
    boxes: tuple[Box, ...]
    full_size: Size
    sizes: tuple[Size, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What leaves the machine.

    Attributes:
        call: What the hosted model is asked.
        sent: What was sent of each picture, in order.
    """

    call: HostedCall
    sent: tuple[SentPicture, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all pictures that are sent, encoded."""
        return sum(len(data) for pictures in self.call.pictures for data in pictures)


def gather(request: Request, importance: ImportanceMap | None, config: SendConfig) -> Evidence:
    """Chooses, cuts and encodes what is sent.

    Args:
        request: Its pictures are loaded.
        importance: The small model's map; None sends all of every picture.
        config: What may be left out.
    """
    images = [_image(part.source) for part in request.images]
    regions: Sequence[Regions | None] = [None] * len(images)
    if importance is not None and images and config.mode != "full":
        try:
            regions = find_regions(
                importance,
                len(images),
                share=config.share,
                margin=config.margin,
                max_boxes=config.max_boxes,
            )
        except InvalidRequestError:  # boxes are not known: a picture cannot be cut by them
            regions = [None] * len(images)
    everything = asks_for_everything(request, config)
    pictures, sent = [], []
    for image, found in zip(images, regions, strict=True):
        mode, reason = choose_mode(image.size, found, config, everything=everything)
        boxes = () if found is None or mode == "full" else found.boxes
        shown = show(image, boxes, mode, config)
        pictures.append(tuple(encode(each, config) for each in shown))
        sent.append(SentPicture(mode, reason, boxes, image.size, tuple(each.size for each in shown)))
    return Evidence(HostedCall(request, tuple(pictures)), tuple(sent))


def asks_for_everything(request: Request, config: SendConfig) -> bool:
    """Whether the last message with a text has one of the words that mean all of a picture."""
    texts = [" ".join(part for part in each.content if isinstance(part, str)) for each in request.messages]
    last = next((text for text in reversed(texts) if text.strip()), "").casefold()
    return any(re.search(rf"\b{re.escape(word.casefold())}\b", last) for word in config.whole_words)


def choose_mode(
    size: Size, found: Regions | None, config: SendConfig, *, everything: bool
) -> tuple[Literal["full", "crop", "mask"], str]:
    """Chooses what is sent of one picture, and says why.

    Args:
        size: Width and height of the picture.
        found: What was looked at; None where that is not known.
        config: What may be left out.
        everything: Whether the question is about all of the picture.
    """
    if config.mode == "full" or found is None:
        known = config.mode == "full"
        return "full", "as configured" if known else "where the small model looked is not known"
    if config.mode == "mask":
        return ("mask", "as configured") if found.boxes else ("full", "nothing stands out")
    for all_of_it, why in _against_cropping(size, found, config, everything=everything):
        if all_of_it:
            return "full", why
    return "crop", "as configured" if config.mode == "crop" else "the map is concentrated"


def _against_cropping(
    size: Size, found: Regions, config: SendConfig, *, everything: bool
) -> Iterator[tuple[bool, str]]:
    """What speaks for all of a picture; the later ones only where nothing is forced."""
    yield not (found.boxes or config.overview_pixels), "nothing stands out"
    pixels = sum(width * height for width, height in cropped_sizes(size, found.boxes, config))
    yield pixels >= size[0] * size[1], "crops would be no smaller"
    if config.mode == "auto":
        yield everything, "the question is about all of it"
        yield pixels > (1 - config.least_saved) * size[0] * size[1], "crops would save little"
        yield found.concentration < config.least_mass, "the map is flat"
        yield found.area > config.most_area, "most of it was looked at"


def cropped_sizes(size: Size, boxes: Sequence[Box], config: SendConfig) -> list[Size]:
    """Width and height of what "crop" sends: the overview, and each box."""
    small = _overview_size(size, config.overview_pixels)
    crops = [(right - left, low - top) for left, top, right, low in (_pixels(box, size) for box in boxes)]
    return [*([small] if small else []), *crops]


def show(image: Image.Image, boxes: Sequence[Box], mode: str, config: SendConfig) -> list[Image.Image]:
    """Makes the pictures that are sent in a picture's place."""
    if mode == "crop":
        small = _overview_size(image.size, config.overview_pixels)
        overview = [image.resize(small, Image.Resampling.LANCZOS)] if small else []
        return [*overview, *(image.crop(_pixels(box, image.size)) for box in boxes)]
    if mode == "mask":
        return [_masked(image, boxes, config)]
    return [image]


def _masked(image: Image.Image, boxes: Sequence[Box], config: SendConfig) -> Image.Image:
    """The picture with everything outside of the boxes blurred or blanked."""
    radius = max(image.size) / 40
    rest = image.filter(ImageFilter.GaussianBlur(radius)) if config.mask == "blur" else None
    masked = Image.new("RGB", image.size, _GREY) if rest is None else rest
    for box in boxes:
        left, top, right, low = _pixels(box, image.size)
        masked.paste(image.crop((left, top, right, low)), (left, top))
    return masked


def encode(image: Image.Image, config: SendConfig) -> bytes:
    """Writes a picture as a file, without metadata; as PNG where it is too long for the format."""
    file = io.BytesIO()
    kind = config.image_format if max(image.size) <= _MOST_SIDE.get(config.image_format, math.inf) else "PNG"
    image.save(file, kind, **({} if kind == "PNG" else {"quality": config.quality}))
    return file.getvalue()


def _overview_size(size: Size, most_pixels: int) -> Size | None:
    """Size of the small picture of the whole, which is never enlarged; None where there is to be none."""
    if most_pixels == 0:
        return None
    factor = min(1.0, (most_pixels / (size[0] * size[1])) ** 0.5)
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def _pixels(box: Box, size: Size) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches, at least a few of them."""
    (left, right), (top, low) = (
        _span(box[0], box[2], size[0]),
        _span(box[1], box[3], size[1]),
    )
    return left, top, right, low


def _span(start: float, end: float, pixels: int) -> tuple[int, int]:
    low, high = max(0, int(start * pixels + 1e-6)), min(pixels, math.ceil(end * pixels - 1e-6))
    missing = min(_LEAST_SIDE, pixels) - (high - low)
    if missing > 0:
        low = max(0, min(low - missing // 2, pixels - min(_LEAST_SIDE, pixels)))
        high = low + min(_LEAST_SIDE, pixels)
    return low, high


def _image(source: object) -> Image.Image:
    assert isinstance(source, Image.Image), "the request's pictures are loaded"
    return source
