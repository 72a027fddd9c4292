"""What questions are about: text, pictures, messages or JSON with any of them in it -> a request. Pure."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sgl_engine import ImagePart, InvalidRequestError, Message, Request
from sgl_engine.decisions.questions import Content


def as_request(state: Any) -> Request:
    """Turns a state into the request that every question is added to: one message of the user.

    Messages that are all the user's stay as they are, joined. Any other conversation, and any JSON, becomes
    text, so that it is judged and not continued; pictures stay where they are in it.

    Args:
        state: A ``Request``, whose deadline, cancellation, cache salt and ``may_escalate`` count for every
            question; a text; a picture; a message or several; or JSON that may hold messages and
            ``ImagePart`` at any depth.

    Raises:
        InvalidRequestError: There is something in it that is none of these.
    """
    if isinstance(state, Request):
        return replace(state, messages=(Message("user", _content(list(state.messages))),))
    return Request(messages=(Message("user", _content(state)),))


def as_content(value: Any) -> Content:
    """Turns JSON with pictures anywhere in it into texts and pictures in reading order; texts stay texts.

    Raises:
        InvalidRequestError: There is something in it that is neither.
    """
    if isinstance(value, str):
        return value
    return _content(value)


def _content(state: Any) -> tuple[str | ImagePart, ...]:
    if isinstance(state, (str, ImagePart)):
        return (state,)
    if isinstance(state, Message):
        state = [state]
    each = state if _is_sequence(state) and state else (None,)
    if all(isinstance(one, Message) and one.role == "user" for one in each):
        return _joined(state)
    is_content = all(isinstance(one, (str, ImagePart)) for one in each)
    if is_content and any(isinstance(one, ImagePart) for one in each):
        return tuple(state)  # texts and pictures, as a message has them
    return _written(state)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _joined(messages: Sequence[Message]) -> tuple[str | ImagePart, ...]:
    """What several messages of the user say, as one."""
    parts: list[str | ImagePart] = []
    for number, message in enumerate(messages):
        parts += ["\n\n"] if number else []
        parts += message.content
    return tuple(parts)


def _written(value: Any) -> tuple[str | ImagePart, ...]:
    """JSON as text, cut where pictures are."""
    # Nobody can spell a picture's name in a text of theirs: it is drawn for this call.
    name, pictures = f"picture-{secrets.token_hex(16)}", list[ImagePart]()
    try:
        text = json.dumps(value, ensure_ascii=False, default=_writer(name, pictures))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"The state cannot be written as JSON ({error}).",
            remedy="Give text, pictures, messages, or lists and objects of them.",
        ) from error
    pieces = re.split(rf'"{name}-(\d+)"', text)
    return tuple(
        pictures[int(piece)] if number % 2 else piece for number, piece in enumerate(pieces) if piece
    )


def _writer(name: str, pictures: list[ImagePart]) -> Callable[[Any], Any]:
    """Makes what writes things that are no JSON."""

    def write(value: Any) -> Any:
        if isinstance(value, ImagePart):
            pictures.append(value)
            return f"{name}-{len(pictures) - 1}"
        if isinstance(value, Message):
            content = list(value.content)
            said = {"role": value.role, "content": content[0] if len(content) == 1 else content}
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in value.tool_calls]
            return {**said, **({"tool_calls": calls} if calls else {})}
        if isinstance(value, (tuple, set, frozenset)):
            return list(value)
        if hasattr(value, "keys"):
            return dict(value)
        if _is_sequence(value):
            return list(value)
        raise TypeError(f"{type(value).__name__} is neither text, a picture, a message nor JSON")

    return write
