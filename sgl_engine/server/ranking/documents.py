"""Documents and queries as clients write them -> parts of a request. Pure.

A document is a text; a picture as in a chat, or as Jina's clients write it (``{"image": ...}``); or
``{"content": [...]}`` with parts of both, as vLLM's do. A string by itself is a text, unless it is a
``data:`` URL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from sgl_engine import ImagePart, InvalidRequestError
from sgl_engine.server.messages import to_part, to_picture

Parts: TypeAlias = tuple[str | ImagePart, ...]
_ACCEPTED: Final = (
    'Send a text, {"image": "https://..."}, a part of type image_url, or {"content": [...]} with such parts.'
)


def to_document(value: object, where: str) -> Parts:
    """Translates a document: at least one part, none of them empty.

    Args:
        value: As the client wrote it.
        where: Its place in the body, for messages.

    Raises:
        InvalidRequestError: It is none of the forms, or empty.
        ImageError: It should hold a picture, and does not.
    """
    parts = tuple(part for part in _parts(value, where) if not isinstance(part, str) or part.strip())
    if not parts:
        raise InvalidRequestError(f"{where} is empty: {value!r:.100}.", remedy=_ACCEPTED)
    return parts


def _parts(value: object, where: str) -> Parts:
    if isinstance(value, str):
        is_picture = value.lstrip()[:5].lower() == "data:"
        return (ImagePart(to_picture(value, where)) if is_picture else value,)
    if isinstance(value, Mapping) and "content" in value and "type" not in value:
        content = value["content"]
        if isinstance(content, str):
            return (content,)
        if isinstance(content, Sequence):
            return tuple(to_part(part, where) for part in content)
    elif isinstance(value, Mapping) and "type" in value:
        return (to_part(value, where),)
    elif isinstance(value, Mapping):
        picture = value.get("image_url", value.get("image"))
        if picture is not None:
            return (to_part({"type": "image_url", "image_url": picture}, where),)
        if isinstance(value.get("text"), str):
            return (str(value["text"]),)
    raise InvalidRequestError(f"{where} cannot be read: {value!r:.100}.", remedy=_ACCEPTED)


def to_query(value: object, where: str) -> str:
    """Translates a query.

    Raises:
        InvalidRequestError: It is empty, or no text.
        ImageError: It should hold a picture, and does not.
    """
    parts = to_document(value, where)
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise InvalidRequestError(
            f"{where} holds a picture; a query is a text here.",
            remedy="Send what the documents are to answer as a text.",
        )
    return "\n".join(texts)


def echo(value: object, *, whole: bool) -> dict[str, Any]:
    """A document as vLLM repeats it in a result.

    Args:
        value: As the client wrote it.
        whole: Whether pictures are repeated, too.
    """
    parts = value.get("content") if isinstance(value, Mapping) and "content" in value else [value]
    if isinstance(parts, str):
        return {"text": parts, "multi_modal": None}
    if isinstance(value, str) and value.lstrip()[:5].lower() != "data:":
        return {"text": value, "multi_modal": None}
    if (
        isinstance(value, Mapping)
        and isinstance(value.get("text"), str)
        and value.get("type", "text") == "text"
    ):
        return {"text": value["text"], "multi_modal": None}
    return {"text": None, "multi_modal": parts if whole else None}
