"""The engine's answers -> LangChain messages, whole or streamed. Pure.

Tool calls are not streamed piece by piece. LangChain repairs half a JSON wherever it merges chunks, so a call
that the token limit cuts off would become a valid one with other arguments than were meant, and an agent
would run it. So a call is sent when it is whole, and one that cannot be read as text that nobody repairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_sgl.chat.call_options import CallOptions
from langchain_sgl.chat.hosted import CALL_BLOCKS, RepeatedThought, WrittenDelta
from langchain_sgl.chat.messages import REASONING_KEY
from langchain_sgl.evidence import EVIDENCE_KEY, Evidence
from sgl_engine import ReasoningDelta, Response, RunReport, TextDelta, TokenLogprob, ToolCallDelta

NOT_A_CALL = "not a valid call: "
"""Stands before what a model wrote as arguments of a call that cannot be read, so that nobody repairs it."""


def to_chat_result(response: Response, options: CallOptions) -> ChatResult:
    """Writes the whole answer as what ``_generate`` returns.

    Args:
        response: The engine's.
        options: The call's; they say whether log-probabilities and evidence are wanted.
    """
    message = to_ai_message(response, _metadata(response, options))
    return ChatResult(generations=[ChatGeneration(message=message)])


def to_generation_chunks(
    event: ReasoningDelta | TextDelta | ToolCallDelta | Response, options: CallOptions
) -> Iterator[ChatGenerationChunk]:
    """Writes one event of a stream as what ``_stream`` yields: pieces of the answer, or its end.

    Args:
        event: Text is passed on; pieces of tool calls are not, they come whole with the response.
        options: As in ``to_chat_result``.
    """
    if isinstance(event, WrittenDelta):
        told = {} if event.provider is None else {"model_provider": event.provider}
        yield ChatGenerationChunk(message=AIMessageChunk(content=list(event.blocks), response_metadata=told))
    elif isinstance(event, TextDelta):
        yield ChatGenerationChunk(message=AIMessageChunk(content=event.text))
    elif isinstance(event, ReasoningDelta) and not isinstance(event, RepeatedThought):
        chunk = AIMessageChunk(content="", additional_kwargs={REASONING_KEY: event.text})
        yield ChatGenerationChunk(message=chunk)
    elif isinstance(event, Response):
        calls = _call_chunks(event)
        if calls:
            chunk = AIMessageChunk(content=_call_blocks(event), tool_call_chunks=calls)
            yield ChatGenerationChunk(message=chunk)
        yield ChatGenerationChunk(message=_last_chunk(event, _metadata(event, options)))


def _metadata(response: Response, options: CallOptions) -> dict[str, Any]:
    return response_metadata(response, logprobs=options.with_logprobs, evidence=options.evidence)


def to_ai_message(response: Response, metadata: dict[str, Any]) -> AIMessage:
    """Writes the whole answer as one message.

    Args:
        response: The engine's.
        metadata: ``response_metadata(...)``.
    """
    original = None if response.hosted is None else response.hosted.original
    if isinstance(original, AIMessage):  # as the provider's own integration has written it
        told = _told(original, metadata)
        usage = usage_metadata(response.report)
        return original.model_copy(
            update={"id": None, "response_metadata": told, "usage_metadata": usage, **_read_calls(response)}
        )
    return AIMessage(
        content=response.text,
        additional_kwargs={REASONING_KEY: response.reasoning} if response.reasoning else {},
        usage_metadata=usage_metadata(response.report),
        response_metadata=metadata,
        **_read_calls(response),
    )


def _told(original: AIMessage, metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata of a hosted model's message: its own, and ours; LangChain reads its blocks by its provider."""
    told = {**original.response_metadata, **metadata}
    provider = original.response_metadata.get("model_provider")
    return told if provider is None else {**told, "model_provider": provider}


def _read_calls(response: Response) -> dict[str, Any]:
    """Writes the calls of an answer as fields of a message."""
    return {
        "tool_calls": [tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in response.tool_calls],
        "invalid_tool_calls": [
            invalid_tool_call(name=c.name, args=NOT_A_CALL + c.arguments, id=c.id, error=c.error)
            for c in response.invalid_tool_calls
        ],
    }


def _call_chunks(response: Response) -> list[ToolCallChunk]:
    """Writes each call of an answer as one chunk, which merges to what ``to_ai_message`` makes of it."""
    valid = [(c.name, json.dumps(dict(c.arguments)), c.id) for c in response.tool_calls]
    invalid = [(c.name, NOT_A_CALL + c.arguments, c.id) for c in response.invalid_tool_calls]
    # Behind the blocks of the answer: LangChain merges what has one index, whatever it is.
    original = None if response.hosted is None else response.hosted.original
    content = original.content if isinstance(original, AIMessage) else response.text
    blocks = [content] if isinstance(content, str) and content else content
    used = [block.get("index") for block in blocks if isinstance(block, dict)]
    first = max([len(blocks), *(index + 1 for index in used if isinstance(index, int))])
    return [
        tool_call_chunk(name=name, args=arguments, id=call_id, index=index)
        for index, (name, arguments, call_id) in enumerate([*valid, *invalid], start=first)
    ]


def _call_blocks(response: Response) -> str | list[str | dict[str, Any]]:
    """What a hosted model's content says of its calls; nothing where one of them cannot be read."""
    original = None if response.hosted is None else response.hosted.original
    if (
        not isinstance(original, AIMessage)
        or isinstance(original.content, str)
        or response.invalid_tool_calls
    ):
        return ""
    return [each for each in original.content if isinstance(each, dict) and each.get("type") in CALL_BLOCKS]


def _last_chunk(response: Response, metadata: dict[str, Any]) -> AIMessageChunk:
    """Writes the end of a streamed answer: no text, and all metadata, a hosted model's own among it.

    No other chunk carries numbers: LangChain adds them up when it merges chunks.
    """
    original = None if response.hosted is None else response.hosted.original
    told: dict[str, Any] = {}
    if isinstance(original, AIMessage):
        metadata = _told(original, metadata)
        # Thoughts and calls have been streamed.
        streamed = (REASONING_KEY, "tool_calls", "function_call")
        told = {name: value for name, value in original.additional_kwargs.items() if name not in streamed}
    return AIMessageChunk(
        content="",
        additional_kwargs=told,
        usage_metadata=usage_metadata(response.report),
        response_metadata=metadata,
        chunk_position="last",
    )


def usage_metadata(report: RunReport) -> UsageMetadata | None:
    """Counts tokens as other providers do: of the model that answered, its prompt once, and ints only.

    The report says what the other model did. ``input_token_details["image"]`` is the visual tokens.
    """
    large = report.route == "large"
    if large and report.large_hosted:
        return _hosted_usage(report)
    given = (report.large_input_tokens if large else report.small_input_tokens) or 0
    written = (report.large_output_tokens if large else report.small_output_tokens) or 0
    details: dict[str, int] = {"image": report.visual_tokens} if report.visual_tokens else {}
    thought = (report.large_reasoning_tokens if large else report.small_reasoning_tokens) or 0
    usage = UsageMetadata(
        input_tokens=given,
        output_tokens=written,
        total_tokens=given + written,
        input_token_details=InputTokenDetails(**details),  # type: ignore[typeddict-item]  # more keys are allowed
    )
    if thought:
        usage["output_token_details"] = OutputTokenDetails(reasoning=thought)
    return usage


def _hosted_usage(report: RunReport) -> UsageMetadata | None:
    """Passes on what a hosted model's provider has counted; None where it does not say."""
    given, written = report.large_input_tokens, report.large_output_tokens
    if given is None or written is None:
        return None
    details = {"cache_read": report.large_known_tokens, "reasoning": report.large_reasoning_tokens}
    usage = UsageMetadata(input_tokens=given, output_tokens=written, total_tokens=given + written)
    if details["cache_read"]:
        usage["input_token_details"] = InputTokenDetails(cache_read=details["cache_read"])
    if details["reasoning"]:
        usage["output_token_details"] = OutputTokenDetails(reasoning=details["reasoning"])
    return usage


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
        **_finish_reasons(response),
        "sgl": report.model_dump(mode="json"),
    }
    if logprobs:
        metadata["logprobs"] = {"content": [_logprob(token) for token in response.tokens]}
    if evidence and response.importance is not None:
        metadata[EVIDENCE_KEY] = Evidence.from_importance(response.importance).to_json()
    return metadata


def _finish_reasons(response: Response) -> dict[str, str]:
    """Says why the answer ends: in OpenAI's words, and in those that LangChain reads of every provider.

    An answer that was cut off ends by "length", whatever calls it holds. ``finish_state``, which LangChain
    passes on too, is not set: it defines no value of it.
    """
    if response.finish_reason == "length":
        return {"finish_reason": "length", "normalized_finish_reason": "length"}
    if response.finish_reason == "content_filter":
        return {"finish_reason": "content_filter", "normalized_finish_reason": "content_filter"}
    if response.tool_calls:
        return {"finish_reason": "tool_calls", "normalized_finish_reason": "tool_call"}
    return {"finish_reason": "stop", "normalized_finish_reason": "stop"}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    written = {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}
    return written | {"top_logprobs": [_logprob(other) for other in token.top]} if token.top else written
