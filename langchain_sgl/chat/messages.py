"""LangChain messages -> the engine's messages, and its answers -> LangChain messages. Pure.

Text blocks stay text; every way to write an image becomes an ``ImagePart``; an assistant's ``tool_calls`` and
a tool's result keep their ids. Blocks that this package cannot pass on (audio, files, ids of somebody's file
store) are errors: a picture that is dropped in silence gives a confident wrong answer. The one exception is
what an *assistant* message of another provider says about itself (its thinking, its raw tool blocks): that is
left out, because ``tool_calls`` holds the calls already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_sgl.chat.call_options import CallOptions
from langchain_sgl.chat.image_blocks import ACCEPTED, Block, image_source, is_image, mime_type
from langchain_sgl.evidence import EVIDENCE_KEY, Evidence
from sgl_engine import (
    ImagePart,
    InvalidRequestError,
    Message,
    Response,
    Role,
    RunReport,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

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
_ABOUT_ITSELF = frozenset(
    "thinking redacted_thinking reasoning reasoning_content tool_use tool_call tool_call_chunk "
    "invalid_tool_call function_call server_tool_call server_tool_call_chunk server_tool_result".split()
)
"""Blocks of assistant messages that other fields repeat, or that nobody but their provider can read."""


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
        if isinstance(block, dict) and role == "assistant" and block.get("type") in _ABOUT_ITSELF:
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
    return Message(role, tuple(parts), tool_calls=calls, name=message.name if role == "tool" else None)


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
    if kind in {"text", "input_text", "output_text"} or (kind is None and "text" in block):
        return str(block.get("text") or "")
    if is_image(block):
        return ImagePart(image_source(block, root))
    raise InvalidRequestError(
        f"A message holds a content block of type {kind!r}"
        f"{f' ({mime_type(block)})' if mime_type(block) else ''}, which no model here can read.",
        remedy=f"Send {ACCEPTED}.",
    )


def to_chat_result(response: Response, options: CallOptions) -> ChatResult:
    """Writes the whole answer as what ``_generate`` returns.

    Args:
        response: The engine's.
        options: The call's; they say whether log-probabilities and evidence are wanted.
    """
    message = to_ai_message(response, _metadata(response, options))
    return ChatResult(generations=[ChatGeneration(message=message)])


def to_generation_chunk(
    event: TextDelta | ToolCallDelta | Response, options: CallOptions
) -> ChatGenerationChunk:
    """Writes one event of a stream as what ``_stream`` yields: a piece of the answer, or its end."""
    if isinstance(event, Response):
        return ChatGenerationChunk(message=to_last_chunk(event, _metadata(event, options)))
    return ChatGenerationChunk(message=to_chunk(event))


def _metadata(response: Response, options: CallOptions) -> dict[str, Any]:
    return response_metadata(response, logprobs=options.logprobs, evidence=options.evidence)


def to_ai_message(response: Response, metadata: dict[str, Any]) -> AIMessage:
    """Writes the whole answer as one message.

    Args:
        response: The engine's.
        metadata: ``response_metadata(...)``.
    """
    return AIMessage(
        content=response.text,
        tool_calls=[tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in response.tool_calls],
        invalid_tool_calls=[
            invalid_tool_call(name=c.name, args=c.arguments, id=c.id, error=c.error)
            for c in response.invalid_tool_calls
        ],
        usage_metadata=usage_metadata(response.report),
        response_metadata=metadata,
    )


def to_chunk(delta: TextDelta | ToolCallDelta) -> AIMessageChunk:
    """Writes a piece of a streamed answer as a chunk."""
    if isinstance(delta, TextDelta):
        return AIMessageChunk(content=delta.text)
    return AIMessageChunk(
        content="",
        tool_call_chunks=[
            tool_call_chunk(name=delta.name, args=delta.arguments, id=delta.id, index=delta.index)
        ],
    )


def to_last_chunk(response: Response, metadata: dict[str, Any]) -> AIMessageChunk:
    """Writes the end of a streamed answer: no text, and all metadata.

    No other chunk carries numbers: LangChain adds them up when it merges chunks.
    """
    return AIMessageChunk(
        content="",
        usage_metadata=usage_metadata(response.report),
        response_metadata=metadata,
        chunk_position="last",
    )


def usage_metadata(report: RunReport) -> UsageMetadata:
    """Counts tokens as other providers do: of the model that answered, its prompt once, and ints only.

    The report says what the other model did. ``input_token_details["image"]`` is the visual tokens.
    """
    large = report.route == "large"
    given = (report.large_input_tokens if large else report.small_input_tokens) or 0
    written = (report.large_output_tokens if large else report.small_output_tokens) or 0
    details: dict[str, int] = {"image": report.visual_tokens} if report.visual_tokens else {}
    return UsageMetadata(
        input_tokens=given,
        output_tokens=written,
        total_tokens=given + written,
        input_token_details=InputTokenDetails(**details),  # type: ignore[typeddict-item]  # more keys are allowed
    )


def response_metadata(response: Response, *, logprobs: bool, evidence: bool) -> dict[str, Any]:
    """Writes ``AIMessage.response_metadata``, plain JSON.

    Args:
        response: The engine's.
        logprobs: Whether the tokens' log-probabilities are wanted.
        evidence: Whether the small model's importance map is wanted.
    """
    report = response.report
    answered = report.small_model if report.route == "small" else report.large_model
    metadata: dict[str, Any] = {
        "model_name": answered.name,
        "model_provider": "sgl",
        "finish_reason": "tool_calls" if response.tool_calls else response.finish_reason,
        "sgl": report.model_dump(mode="json"),
    }
    if logprobs:
        metadata["logprobs"] = {"content": [_logprob(token) for token in response.tokens]}
    if evidence and response.importance is not None:
        metadata[EVIDENCE_KEY] = Evidence.from_importance(response.importance).to_json()
    return metadata


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}
