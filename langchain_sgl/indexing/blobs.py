"""Whatever names or holds a picture -> a LangChain blob; nothing is read or encoded before it is its turn."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from langchain_core.documents.base import Blob
from typing_extensions import override

from langchain_sgl.chat.image_blocks import ANY_SIZE, pixels_of
from sgl_engine import ConfigError
from sgl_engine.prompt import describe_source

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "bytes | bytearray | Image.Image"
PictureSource: TypeAlias = "str | PurePath | Blob | Picture | tuple[str, Picture]"
"""A path, a LangChain blob, or a picture (encoded bytes, or a PIL image), with an id or without."""

_URL = re.compile(r"\s*([a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)


class _PixelBlob(Blob):
    """A PIL image, encoded when it is read; what is wrong with it is found then, too."""

    image: Any

    @override
    def as_bytes(self) -> bytes:
        from sgl_engine.prompt import load_image

        pixels = load_image(self.image, ANY_SIZE)  # looked at like any other picture once it is encoded
        buffer = io.BytesIO()
        pixels.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def as_blob(item: object) -> Blob:
    """Makes a blob of an item of a collection.

    Raises:
        ConfigError: It neither is nor names a picture here.
    """
    if isinstance(item, Blob):
        return item
    if is_named_picture(item):
        name, picture = item
        return _of_picture(picture, name)
    if is_picture(item):
        return _of_picture(item, _hash_name(item))
    if isinstance(item, PurePath) or (isinstance(item, str) and not _URL.match(item)):
        return Blob.from_path(item, guess_type=False)
    raise ConfigError(
        f"{describe_source(item)!r} cannot be indexed.",
        remedy="Give paths, blobs, encoded bytes, PIL images, or (id, bytes or PIL image) pairs; what lies "
        "behind a URL has to be fetched first.",
    )


def is_picture(item: object) -> TypeGuard[Picture]:
    """Tells whether something is encoded bytes or, by its method, a PIL image."""
    return isinstance(item, bytes | bytearray) or hasattr(item, "convert")


def is_named_picture(item: object) -> TypeGuard[tuple[str, Picture]]:
    """Tells whether something is an id with a picture."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and is_picture(item[1])


def _of_picture(picture: Picture, name: str) -> Blob:
    metadata = {"source": name}
    if isinstance(picture, bytes | bytearray):
        return Blob.from_data(bytes(picture), metadata=metadata)
    return _PixelBlob(image=picture, data=b"", metadata=metadata)


def _hash_name(picture: Picture) -> str:
    """Names a picture by what it holds; one that cannot be read is refused later, and needs no name."""
    if isinstance(picture, bytes | bytearray):
        return f"sha256:{hashlib.sha256(picture).hexdigest()}"
    try:
        return f"sha256:{hashlib.sha256(pixels_of(picture)).hexdigest()}"
    except (OSError, SyntaxError, ValueError):
        return f"a PIL image of {picture.width} x {picture.height} pixels"
