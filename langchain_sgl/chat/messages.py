"""LangChain messages -> the engine's messages. Pure; ``answers`` goes the other way.

Text blocks stay text; every way to write an image becomes an ``ImagePart``; an assistant's ``tool_calls`` and
a tool's result keep their ids. Blocks that this package cannot pass on (audio, files, ids of somebody's file
store) are errors: a picture that is dropped in silence gives a confident wrong answer. The one exception is
what an *assistant* message of another provider says about itself (its raw tool blocks): that is left out,
because ``tool_calls`` holds the calls already. Thoughts are no part of the answer: they go along as
``Message.reasoning``, for templates that show them between calls of tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import tool_call

from langchain_sgl.chat.image_blocks import ACCEPTED, Block, image_source, is_image, mime_type
from sgl_engine import ImagePart, InvalidRequestError, Message, Role, ToolCall

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
REASONING_KEY = "reasoning_content"
"""Where LangChain looks for thoughts, among ``additional_kwargs``: ``content_blocks`` has them as a block."""
_TEXTS = frozenset("text input_text output_text refusal".split())
_MEDIA = frozenset("audio input_audio video video_url file media document".split())
"""What an assistant may have shown, and no model here can see: refused, as in the messages of others."""


def to_engine_messages(
    messages: Sequence[BaseMessage], *, image_root: Path | None = None
) -> tuple[Message, ...]:
    """Translates a conversation.

    Args:
        messages: Any mixture of roles; several images per message, in any turn, tool results included.
        image_root: The only folder that image paths may name; None refuses paths.

    Raises:
        InvalidRequestError: A block or a role that cannot be passed on.
        ImageError: A block that should hold an image does not.
    """
    return tuple(_message(message, image_root) for message in messages)


def _message(message: BaseMessage, root: Path | None) -> Message:
    """Translates one message."""
    role = _role(message)
    blocks = [message.content] if isinstance(message.content, str) else message.content
    parts = []
    for block in blocks:
        # What another provider's model has said about itself, and nobody else can read.
        if isinstance(block, dict) and is_about_itself(message, block):
            continue
        part = _part(block, root)
        if part != "":
            parts.append(part)
    calls: tuple[ToolCall, ...] = ()
    if isinstance(message, AIMessage):
        calls = tuple(
            # Calls need an id: results name it. Some providers give none.
            ToolCall(id=call["id"] or f"call_{index}", name=call["name"], arguments=call["args"])
            for index, call in enumerate(message.tool_calls)
        )
    if isinstance(message, ToolMessage):
        return Message("tool", tuple(parts), tool_call_id=message.tool_call_id, name=message.name)
    thoughts = reasoning_of(message) if role == "assistant" else None
    name = message.name if role == "tool" else None
    return Message(role, tuple(parts), tool_calls=calls, name=name, reasoning=thoughts)


def is_about_itself(message: BaseMessage, block: Block) -> bool:
    """Whether a block is what an assistant of another provider says about itself.

    Thoughts and calls, which other fields repeat; searches, code that was run, whatever its provider names so
    next: nobody else can read it, and it is no reason to refuse a conversation.
    """
    kind = block.get("type")
    told = kind is None or kind in _TEXTS or kind in _MEDIA or is_image(block)
    return _role(message) == "assistant" and not told


def from_engine_messages(messages: Sequence[Message]) -> list[BaseMessage]:
    """Translates a conversation back; each picture becomes an image block that holds no picture yet."""
    return [_back(message) for message in messages]


def _back(message: Message) -> BaseMessage:
    content: list[str | dict[str, object]] = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "base64": ""}
        for part in message.content
    ]
    if message.role == "tool":
        return ToolMessage(content, tool_call_id=message.tool_call_id or "", name=message.name)
    if message.role == "assistant":
        calls = [tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in message.tool_calls]
        return AIMessage(content, tool_calls=calls)
    return SystemMessage(content) if message.role == "system" else HumanMessage(content)


def reasoning_of(message: BaseMessage) -> str | None:
    """What an assistant thought, as far as it can be read: LangChain's blocks, or the field that streams."""
    blocks = message.content if isinstance(message.content, list) else []
    texts = [
        block.get("reasoning") or block.get("thinking")
        for block in blocks
        if isinstance(block, dict) and block.get("type") in {"reasoning", "thinking"}
    ]
    told = "".join(text for text in texts if isinstance(text, str))
    field = message.additional_kwargs.get(REASONING_KEY)
    return told or (field if isinstance(field, str) and field else None)


def _role(message: BaseMessage) -> Role:
    """Tells a message's role by its class, or else by its name."""
    for kind, role in _KINDS.items():
        if isinstance(message, kind):
            return role
    name = message.role if isinstance(message, ChatMessage) else message.type
    if name not in _ROLES:
        raise InvalidRequestError(
            f"A message has the role {name!r}.", remedy=f"Use one of {', '.join(sorted(_ROLES))}."
        )
    return _ROLES[name]


_KINDS: dict[type[BaseMessage], Role] = {
    HumanMessage: "user",
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
    FunctionMessage: "tool",
}


def _part(block: str | Block, root: Path | None) -> str | ImagePart:
    """Translates one content block; raises where it cannot be passed on."""
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind in _TEXTS or (kind is None and "text" in block):
        return str(block.get("text") or block.get("refusal") or "")
    if is_image(block):
        return ImagePart(image_source(block, root))
    raise InvalidRequestError(
        f"A message holds a content block of type {kind!r}"
        f"{f' ({mime_type(block)})' if mime_type(block) else ''}, which no model here can read.",
        remedy=f"Send {ACCEPTED}.",
    )
