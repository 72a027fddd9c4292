"""Images in content blocks: every form that LangChain and the providers have, and how to write one. Pure."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

from langchain_core.messages import BaseMessage

from langchain_sgl.chat.local_files import resolve_under
from sgl_engine import (
    CorruptImageError,
    ImageSource,
    InvalidRequestError,
    LimitsConfig,
    MissingImageError,
    SGLError,
    UnsafePathError,
)
from sgl_engine.prompt import decode_base64, decode_data_url, describe_source, mime_type_of

Block: TypeAlias = Mapping[str, Any]
ACCEPTED = "text, image (url, base64, path, image), image_url, input_image, file and media of type image/*"
"""What a message may hold, for error messages."""
ANY_SIZE = LimitsConfig(max_image_pixels=2**62, max_image_side=2**31)
"""For pixels that are there already: whoever is asked about them knows its own limits."""
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # not the drive of C:\file
_INLINE = frozenset(("base64", "data"))
_UNKNOWN = "application/octet-stream"
_PICTURES = frozenset("image image_url input_image".split())


def is_image(block: Block) -> bool:
    """Tells whether a block is meant to be an image."""
    kind = block.get("type")
    return kind in _PICTURES or (kind in {"file", "media"} and mime_type(block).startswith("image/"))


def mime_type(block: Block) -> str:
    """Reads which MIME type a block says that it holds; empty where it says nothing."""
    return str(block.get("mime_type") or block.get("mimeType") or "")


def image_source(block: Block, root: Path | None) -> ImageSource:
    """Finds the image of a block, in whichever form it is written; does not look at its bytes.

    Args:
        block: ``is_image`` says that it is one.
        root: The only folder that paths may name; None refuses paths.

    Raises:
        ImageError: It names no image, or one that may not be read.
        InvalidRequestError: It names an image in somebody's file store.
    """
    for name, read in _FORMS.items():
        value = block.get(name)
        if value is not None and (name != "image_url" or block["type"] != "image"):
            source: ImageSource = read(value, root)
            return source
    raise MissingImageError(
        f"A content block of type {block.get('type')!r} names no image; its keys are "
        f"{', '.join(sorted(map(str, block)))}.",
        remedy=f"Send {ACCEPTED}.",
    )


def file_versions(messages: Iterable[BaseMessage], root: Path | None) -> str:
    """Says how new the local files are that messages name: a name alone does not tell two pictures apart.

    Args:
        messages: Any.
        root: As for ``image_source``; files that may not be read are left out.

    Returns:
        Empty where they name none.
    """
    blocks = [
        block for message in messages if not isinstance(message.content, str) for block in message.content
    ]
    versions = []
    for block in blocks:
        if isinstance(block, dict) and is_image(block) and not _is_inline(block):
            with suppress(SGLError, OSError):
                source = image_source(block, root)
                if isinstance(source, Path):
                    state = source.stat()
                    versions.append(f"{state.st_mtime_ns}-{state.st_size}")
    return " ".join(versions)


def _is_inline(block: Block) -> bool:
    """Tells whether a block holds its picture as base64, which then need not be decoded: it is no file."""
    inner = block.get("source")  # Anthropic's form
    return not _INLINE.isdisjoint(block) or (isinstance(inner, Mapping) and not _INLINE.isdisjoint(inner))


def _picture(value: Any, root: Path | None) -> Any:
    """Reads a PIL image, bytes, or (as some chat templates write it) a URL or a path."""
    return _from_url(value, root) if isinstance(value, str | Path) else value


def _from_url(value: Any, root: Path | None) -> Any:
    """Reads a URL: a bare string, or in OpenAI's ``{"url": ..., "detail": ...}``; file URLs are paths."""
    url = value.get("url") if isinstance(value, Mapping) else value
    if isinstance(url, Path):  # a file all the same, so the rule for files holds
        return _from_path(url, root)
    if isinstance(url, str) and url.lstrip()[:5].lower() == "file:":
        path = unquote(url.strip()[5:].removeprefix("//"))
        return _from_path(path.removeprefix("localhost"), root)
    return url or ""


def _from_base64(value: Any, _: Path | None) -> bytes:
    if isinstance(value, bytes):
        return value
    text = str(value).strip()
    return decode_data_url(text) if text[:5].lower() == "data:" else decode_base64(text)


def _from_path(value: Any, root: Path | None) -> Path:
    if root is None:
        raise UnsafePathError(
            f"A message names the local file {describe_source(Path(str(value)))!r}, and local files are not "
            "allowed.",
            remedy="Set ChatSGL(image_root=folder), or send the file's bytes as base64.",
        )
    return resolve_under(root, str(value))


def _from_anthropic(value: Any, root: Path | None) -> Any:
    """Reads ``{"type": "base64", "media_type": ..., "data": ...}`` or ``{"type": "url", "url": ...}``."""
    if not isinstance(value, Mapping):
        return _from_url(value, root)
    if value.get("type") == "base64" or "data" in value:
        return _from_base64(value.get("data", ""), root)
    if value.get("type") == "file":
        return _from_store(value.get("file_id"), root)
    return _from_url(value, root)


def _from_store(value: Any, _: Path | None) -> Any:
    raise InvalidRequestError(
        f"An image is named by the id {describe_source(value)!r} of a file store, and there is none here.",
        remedy="Send the image itself as base64, a URL, or a path under ChatSGL(image_root=...).",
    )


_FORMS: dict[str, Callable[[Any, Path | None], Any]] = {
    "base64": _from_base64,
    "data": _from_base64,
    "image": _picture,
    "source": _from_anthropic,
    "url": _from_url,
    "image_url": _from_url,
    "path": _from_path,
    "file_id": _from_store,
    "id": _from_store,
}
"""Where a block may hold its image: standard, v0 (``source_type`` says which key), OpenAI, Anthropic."""


def normalize_pictures(
    messages: Iterable[BaseMessage], limits: LimitsConfig | None = None
) -> list[BaseMessage]:
    """Makes pictures in messages fit for LangChain's cache and traces, which read them before any model.

    PIL images become base64 blocks: a ``repr`` names a memory address, which another picture may have
    tomorrow. Base64 blocks that name no MIME type get the one of their bytes. All else is passed on as it is.

    Args:
        messages: Any.
        limits: What a PIL image may be like; None is ``LimitsConfig()``.

    Raises:
        ImageError: A PIL image that is too large, or cannot be read.
    """
    return [_normalized(message, limits or LimitsConfig()) for message in messages]


def _normalized(message: BaseMessage, limits: LimitsConfig) -> BaseMessage:
    if isinstance(message.content, str):
        return message
    content = [_normalized_block(block, limits) for block in message.content]
    if all(new is old for new, old in zip(content, message.content, strict=True)):
        return message
    return message.model_copy(update={"content": content})


def _normalized_block(block: Any, limits: LimitsConfig) -> Any:
    if not isinstance(block, dict) or block.get("type") != "image":
        return block
    # A PIL image, told by its method, so that text alone never imports Pillow.
    if hasattr(block.get("image"), "convert"):
        rest = {key: value for key, value in block.items() if key != "image"}
        return rest | _encoded(_compressed(block["image"], limits))
    key = "data" if "source_type" in block else "base64"
    data = block.get(key)
    # Raw bytes, which no trace could write as JSON.
    if isinstance(data, bytes):
        return {"mime_type": mime_type_of(data) or _UNKNOWN, **block, key: base64.b64encode(data).decode()}
    # A URL or a path, or base64 that says what it is.
    if data is None or mime_type(block):
        return block
    # Base64 of no type: the first 32 characters hold the bytes that tell it.
    known = None
    if isinstance(data, str):
        with suppress(CorruptImageError):
            known = mime_type_of(decode_base64("".join(data[:64].split())[:32]))
    return {**block, "mime_type": known or _UNKNOWN}


def image_block(picture: Any) -> dict[str, Any]:
    """Writes a picture as a standard image block, ready for a message.

    Args:
        picture: Encoded bytes, a PIL image (written as PNG, or as JPEG where that would be over 20 MiB), a
            local file as ``pathlib.Path`` (read now), or a URL as ``str``.

    Raises:
        MissingImageError: There is no such file, or a text is no URL.
        ImageError: A PIL image that cannot be read.
    """
    if isinstance(picture, str):
        return {"type": "image", "url": checked_url(picture)}
    if isinstance(picture, Path):
        try:
            picture = picture.read_bytes()
        except OSError as error:
            raise MissingImageError(
                f"The image file {describe_source(picture)} cannot be read ({error.strerror}).",
                remedy="Check its name and permissions.",
            ) from error
    return _encoded(picture if isinstance(picture, bytes) else _compressed(picture, ANY_SIZE))


def pixels_of(picture: Any) -> bytes:
    """What tells a PIL image from any other: its colours, and not their numbers in a palette."""
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")
    return f"{picture.mode} {picture.size}".encode() + bytes(picture.tobytes())


def checked_url(text: str) -> str:
    """Passes a URL, and raises MissingImageError for any other text: above all, the name of a file."""
    if _URL.match(text):
        return text
    raise MissingImageError(
        f"The text {describe_source(text)!r} is no URL.",
        remedy="Write a file as pathlib.Path(...), base64 as bytes or a data: URL, a URL with its scheme.",
    )


def _encoded(data: bytes) -> dict[str, Any]:
    return {
        "type": "image",
        "base64": base64.b64encode(data).decode(),
        "mime_type": mime_type_of(data) or _UNKNOWN,
    }


def _compressed(picture: Any, limits: LimitsConfig) -> bytes:
    """Encodes the pixels that the engine would see: RGB, upright, transparency over white.

    PNG, lossless; a picture that would be over the limit of bytes like that, as large photographs are, JPEG:
    its caller brought pixels, and cannot make them fewer bytes.
    """
    from sgl_engine.prompt import load_image

    pixels = load_image(picture, limits)
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG", compress_level=1)
    if buffer.tell() > limits.max_image_bytes:
        buffer = io.BytesIO()
        pixels.save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
