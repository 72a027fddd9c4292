"""OpenAI's messages and tools -> the engine's. Pure; what cannot be passed on is an error, never dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sgl_engine import (
    CorruptImageError,
    ImagePart,
    InvalidRequestError,
    Message,
    MissingImageError,
    Role,
    ToolCall,
    ToolChoice,
    ToolSpec,
    UnsafePathError,
)
from sgl_engine.prompt import decode_base64, describe_source

_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_TEXTS: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_PICTURES: Final = frozenset({"image_url", "input_image", "image"})
_SCHEME: Final = re.compile(r"\s*([a-z][a-z0-9+.-]+):", re.IGNORECASE)
_ACCEPTED: Final = "Send parts of type text or image_url (a https: or data: URL, or base64)."


def to_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Translates a conversation.

    Raises:
        InvalidRequestError: A role, part or call that cannot be passed on.
        ImageError: A part that should hold a picture does not.
    """
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: Mapping[str, Any], where: str) -> Message:
    role = to_role(message.get("role"), where)
    content = message.get("content")
    parts = [content] if isinstance(content, str) else content or []
    if not isinstance(parts, list):
        raise InvalidRequestError(
            f"The content of {where} is of type {type(content).__name__}.",
            remedy="Send a string, or a list of parts.",
        )
    read = tuple(to_part(part, where) for part in parts)
    calls = (message.get("tool_calls") or []) if role == "assistant" else []
    if not isinstance(calls, list):
        raise InvalidRequestError(
            f"The tool_calls of {where} are of type {type(calls).__name__}.", remedy="Send a list of calls."
        )
    name = message.get("name") if role == "tool" else None
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    return Message(
        role,
        tuple(part for part in read if part != ""),
        tool_calls=tuple(_call(call, where) for call in calls),
        tool_call_id=str(message["tool_call_id"]) if role == "tool" and "tool_call_id" in message else None,
        name=name if isinstance(name, str) else None,
        reasoning=thoughts if role == "assistant" and isinstance(thoughts, str) else None,
    )


def to_role(role: object, where: str) -> Role:
    """The engine's word for OpenAI's.

    Raises:
        InvalidRequestError: There is none.
    """
    found = _ROLES.get(str(role))
    if found is None:
        raise InvalidRequestError(
            f"{where} has the role {role!r:.100}.", remedy=f"Use one of {', '.join(_ROLES)}."
        )
    return found


def to_part(part: object, where: str) -> str | ImagePart:
    """Translates a part of a message: a text or a picture.

    Args:
        part: As OpenAI writes it.
        where: What it is a part of, for messages.

    Raises:
        InvalidRequestError: It is neither.
        ImageError: It should hold a picture, and does not.
    """
    if isinstance(part, str):
        return part
    kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in _TEXTS:
        text = next((part[name] for name in ("text", "refusal") if part.get(name) is not None), "")
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"{where} holds a text of type {type(text).__name__}.", remedy="Send it as a string."
            )
        return text
    if isinstance(part, Mapping) and kind in _PICTURES:
        value = part.get("image_url", part.get("image"))
        return ImagePart(to_picture(value.get("url") if isinstance(value, Mapping) else value, where))
    raise InvalidRequestError(
        f"{where} holds a part of type {kind!r:.100}, which no model here can read.", remedy=_ACCEPTED
    )


def to_picture(value: object, where: str) -> str | bytes:
    """A URL, or the bytes of base64 that comes without one, as some clients send it.

    Raises:
        ImageError: It names no picture, or a local file.
    """
    if not isinstance(value, str) or not value.strip():
        raise MissingImageError(f"A part of {where} names no picture.", remedy=_ACCEPTED)
    scheme = _SCHEME.match(value)
    if scheme is None:
        try:
            return decode_base64(value)
        except CorruptImageError as error:
            raise CorruptImageError(
                f"A picture of {where} is neither a URL nor base64.", remedy=_ACCEPTED
            ) from error
    if scheme.group(1).lower() == "file":
        raise UnsafePathError(
            f"{where} names the local file {describe_source(value)!r}, and a server reads none.",
            remedy="Send its bytes as data:image/png;base64,...",
        )
    return value


def _call(call: object, where: str) -> ToolCall:
    """A call of an earlier answer; its arguments are JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if isinstance(call, Mapping) and isinstance(function, Mapping):
        given, arguments = (call.get("id"), function.get("name")), _json_object(function.get("arguments"))
    else:
        given, arguments = (None, None), None
    if not all(isinstance(each, str) for each in given) or arguments is None:
        raise InvalidRequestError(
            f"A tool call of {where} cannot be read: {call!r:.200}.",
            remedy='Write {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}.',
        )
    return ToolCall(id=str(given[0]), name=str(given[1]), arguments=arguments)


def _json_object(text: object) -> Mapping[str, Any] | None:
    """The object that a text is, where it is one; an empty text is the empty object."""
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def to_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """Translates tools.

    Raises:
        InvalidRequestError: A tool that is no function with a name.
    """
    return tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))


def _tool(tool: Mapping[str, Any], where: str) -> ToolSpec:
    function = tool.get("function")
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if (
        not isinstance(function, Mapping)
        or not isinstance(function.get("name"), str)
        or not isinstance(parameters or {}, Mapping)
    ):
        raise InvalidRequestError(
            f"{where} of type {tool.get('type')!r:.100} is no function with a name and a schema.",
            remedy='Write {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
        )
    return ToolSpec(
        name=function["name"],
        description=str(function.get("description") or ""),
        parameters=parameters or {"type": "object", "properties": {}},
    )


def to_tool_choice(
    choice: str | Mapping[str, Any], tools: Sequence[ToolSpec]
) -> tuple[ToolChoice, str | None]:
    """The engine's choice, and the only tool that may be called, or None.

    Raises:
        InvalidRequestError: It names no tool, or is none of OpenAI's forms.
    """
    if isinstance(choice, str):
        known: Mapping[str, ToolChoice] = {"auto": "auto", "none": "none", "required": "any", "any": "any"}
        if choice in known:
            return known[choice], None
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else choice
    names = [tool.name for tool in tools]
    if isinstance(name, str) and name in names and isinstance(choice, Mapping):
        return "any", name
    raise InvalidRequestError(
        f"The tool_choice {choice!r:.200} names no tool of the request.",
        remedy=f"Use auto, none, required, or a function of {', '.join(names) or 'tools, which is empty'}.",
    )


def to_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that an answer has to satisfy; None is any text.

    Raises:
        InvalidRequestError: It is none of OpenAI's three forms.
    """
    kind = None if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if kind == "json_schema" and isinstance(schema, Mapping):
        return schema
    raise InvalidRequestError(
        f"The response_format {dict(response_format)!r:.200} holds no schema.",
        remedy='Write {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
        '{"type": "json_object"} or {"type": "text"}.',
    )
