"""Any LangChain chat model as the large model: asked as it would have been, but for the pictures.

The call's own LangChain messages go out, with what is sent of each picture in the place of its block; so
nothing is lost that only the provider's integration understands. What it answers comes back whole, in its own
message. It runs without callbacks: its run is told of by ``ChatSGL``, beside the small model's, and tokens
that are streamed would else be heard of twice.
"""

from __future__ import annotations

import base64
import contextvars
import json
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.runnables import Runnable, RunnableParallel, RunnableSequence
from langsmith.run_helpers import tracing_context

from langchain_sgl.chat.image_blocks import is_image
from langchain_sgl.chat.messages import from_engine_messages, is_about_itself, reasoning_of
from sgl_engine import (
    HostedAnswer,
    HostedCall,
    HostedUsage,
    InvalidToolCall,
    ReasoningDelta,
    Request,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

if TYPE_CHECKING:
    from sgl_engine import FinishReason

CALL_BLOCKS = frozenset("tool_use tool_call tool_call_chunk invalid_tool_call function_call".split())
_THOUGHTS = frozenset(("thinking", "reasoning"))
_OPTIONS = {"max_new_tokens": "max_tokens"} | {
    name: name for name in "temperature top_p top_k seed presence_penalty frequency_penalty".split()
}
_FINISH: dict[str, FinishReason] = dict.fromkeys(("length", "max_tokens", "max_output_tokens"), "length")
_FINISH |= dict.fromkeys(("content_filter", "safety", "refusal", "prohibited_content"), "content_filter")


@dataclass(frozen=True)
class Origin:
    """What a request was made of: the call's messages, for a model that takes them as they are."""

    messages: tuple[BaseMessage, ...]


class LangChainModel:
    """A LangChain chat model as ``HostedModel``.

    Args:
        model: The chat model; it repeats and limits by itself, and its errors come through as they are.
        name: What reports and prices call it; None is the name that it tells LangSmith.
    """

    def __init__(self, model: BaseChatModel, name: str | None = None) -> None:
        self.model = model
        told = model._get_ls_params()  # noqa: SLF001  # LangChain's own
        self.name = name or told.get("ls_model_name") or type(model).__name__
        self.provider = told.get("ls_provider") or "openai"

    def __repr__(self) -> str:
        return f"LangChainModel({self.name!r})"  # not the model's own, which may show what it is called with

    def stream(
        self, call: HostedCall
    ) -> Generator[TextDelta | ReasoningDelta | ToolCallDelta, None, HostedAnswer]:
        """Asks, and yields the answer piece by piece; a cancelled one is left at its next piece."""
        pieces = _in_empty_context(self._asked(call))
        calls: dict[int, _Call] = defaultdict(_Call)
        whole: AIMessageChunk | None = None
        hidden: set[Any] = set()
        for chunk in pieces:
            yield from _deltas(chunk, calls, hidden)
            whole = chunk if whole is None else whole + chunk
        return _answer(AIMessageChunk(content="") if whole is None else whole, calls)

    def _asked(self, call: HostedCall) -> Iterator[AIMessageChunk]:
        """Begins to ask; runs without the caller's callbacks."""
        request = call.request
        messages = with_pictures(_messages(request), _blocks(call))
        with tracing_context(enabled=False):
            schema = request.response_schema
            if schema is not None and dict(schema) != {"type": "object"} and not request.callable_tools:
                yield self._structured(schema, messages, request)
                return
            for chunk in self._bound(request).stream(messages, {"callbacks": []}, **_options(request)):
                if not isinstance(chunk, AIMessageChunk):  # of a model that does not stream
                    chunk = AIMessageChunk(**chunk.model_dump(exclude={"type"}))  # noqa: PLW2901
                yield chunk

    def _bound(self, request: Request) -> Runnable[Any, Any]:
        """The model with the request's tools."""
        form = {} if request.response_schema is None else {"response_format": {"type": "json_object"}}
        if not request.callable_tools:
            return self.model.bind(**form) if form else self.model
        choice: Any = request.tool_name or {"auto": None}.get(request.tool_choice, request.tool_choice)
        parallel = {} if request.parallel_tool_calls else {"parallel_tool_calls": False}
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
            }
            for tool in request.callable_tools
        ]
        options: dict[str, Any] = {**({} if choice is None else {"tool_choice": choice}), **parallel, **form}
        return self.model.bind_tools(tools, **options)

    def _structured(
        self, schema: Mapping[str, Any], messages: list[BaseMessage], request: Request
    ) -> AIMessageChunk:
        """An answer in a schema, by the way that the provider's integration has for it; it comes whole."""
        named = {"title": "answer", "description": "The answer.", **schema}
        model = _with_options(self.model.with_structured_output(named, include_raw=True), _options(request))
        found: Any = model.invoke(messages, {"callbacks": []})
        raw: AIMessage = found["raw"]
        parsed = found["parsed"]
        text = str(raw.text)
        if parsed is not None:  # the provider may have called a tool instead of writing JSON
            plain = parsed.model_dump(mode="json") if hasattr(parsed, "model_dump") else parsed
            text = json.dumps(plain, ensure_ascii=False)
        return AIMessageChunk(
            content=text, usage_metadata=raw.usage_metadata, response_metadata=raw.response_metadata
        )


def _with_options(model: Runnable[Any, Any], options: Mapping[str, Any]) -> Runnable[Any, Any]:
    """Binds options to the chat model that a chain begins with.

    Chains that keep the raw message begin with a ``RunnableParallel``, which hands no options on.
    """
    if isinstance(model, RunnableSequence) and isinstance(model.first, RunnableParallel):
        steps = {name: step.bind(**options) for name, step in model.first.steps__.items()}
        return model.model_copy(update={"first": RunnableParallel(steps)})
    return model.bind(**options)


def _in_empty_context(pieces: Iterator[AIMessageChunk]) -> Iterator[AIMessageChunk]:
    """Runs an iterator where no callback, budget or tracer of the caller's is attached."""
    context = contextvars.Context()
    try:
        while (piece := context.run(next, pieces, None)) is not None:
            yield piece
    finally:
        context.run(pieces.close)  # type: ignore[attr-defined]


def _messages(request: Request) -> Sequence[BaseMessage]:
    origin = request.origin
    return origin.messages if isinstance(origin, Origin) else from_engine_messages(request.messages)


def _options(request: Request) -> dict[str, Any]:
    """What the request sets, by LangChain's names; the rest is left to the model."""
    found = {ours: getattr(request, name) for name, ours in _OPTIONS.items()}
    options = {name: value for name, value in found.items() if value is not None}
    if request.stop:
        options["stop"] = list(request.stop)
    if request.logprobs:
        options["logprobs"] = True
        options |= {"top_logprobs": request.top_logprobs} if request.top_logprobs else {}
    return options


def _blocks(call: HostedCall) -> dict[int, list[dict[str, Any]]]:
    """Image blocks of what is sent, by the number of the image block whose place they take."""
    from sgl_engine.prompt import mime_type_of

    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, (part, pictures) in enumerate(zip(call.request.images, call.pictures, strict=True)):
        found[number if part.block is None else part.block] += [
            {
                "type": "image",
                "base64": base64.b64encode(data).decode("ascii"),
                "mime_type": mime_type_of(data),
            }
            for data in pictures
        ]
    return found


def with_pictures(
    messages: Sequence[BaseMessage], blocks: Mapping[int, Sequence[dict[str, Any]]]
) -> list[BaseMessage]:
    """The messages with other pictures; those without stay the objects that they are.

    Args:
        messages: A conversation.
        blocks: What takes each picture's place, by its number in the conversation, from 0.
    """
    number, changed = 0, []
    for message in messages:
        if isinstance(message.content, str):
            changed.append(message)
            continue
        content: list[Any] = []
        before = number
        for block in message.content:
            if isinstance(block, dict) and is_image(block) and not is_about_itself(message, block):
                content += blocks.get(number, ())
                number += 1
            else:
                content.append(block)
        changed.append(message if number == before else message.model_copy(update={"content": content}))
    return changed


@dataclass(frozen=True)
class WrittenDelta(TextDelta):
    """A piece as the provider's own integration has written it: thoughts with their signature, citations, ...

    Attributes:
        blocks: Content of the chunk, but for its calls, which come whole with the answer.
        provider: By whose rules LangChain reads them (``response_metadata["model_provider"]``).
    """

    blocks: tuple[Any, ...] = ()
    provider: str | None = None


class RepeatedThought(ReasoningDelta):
    """A thought that stands in the blocks of the ``WrittenDelta`` behind it, too."""


def _answer_blocks(chunk: AIMessageChunk, hidden: set[Any]) -> Iterator[Any]:
    """Content of a chunk that is no part of a tool call; ``hidden`` are indices of blocks that are.

    What a server's own tools are given also comes as pieces of JSON, and stays.
    """
    for block in () if isinstance(chunk.content, str) else chunk.content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in CALL_BLOCKS:
            hidden.add(block.get("index"))  # type: ignore[union-attr]
        elif kind != "input_json_delta" or block.get("index") not in hidden:  # type: ignore[union-attr]
            yield block


@dataclass
class _Call:
    """A tool call that is coming."""

    id: str | None = None
    name: str = ""
    arguments: str = ""


def _deltas(
    chunk: AIMessageChunk, calls: dict[int, _Call], hidden: set[Any]
) -> Iterator[TextDelta | ReasoningDelta | ToolCallDelta]:
    """What one chunk says; its tool calls, and their blocks, are noted."""
    blocks = tuple(_answer_blocks(chunk, hidden))
    if thought := reasoning_of(chunk):
        told = any(isinstance(block, dict) and block.get("type") in _THOUGHTS for block in blocks)
        yield RepeatedThought(thought) if told else ReasoningDelta(thought)
    if blocks:
        yield WrittenDelta(chunk.text, blocks, chunk.response_metadata.get("model_provider"))
    elif chunk.text:
        yield TextDelta(chunk.text)
    for piece in chunk.tool_call_chunks:
        number = _number(piece, calls)
        call, arguments = calls[number], piece.get("args") or ""
        first = not call.name
        call.id, call.name = call.id or piece.get("id"), call.name or piece.get("name") or ""
        call.arguments += arguments
        yield ToolCallDelta(number, call.id if first else None, call.name if first else None, arguments)


def _number(piece: ToolCallChunk, calls: Mapping[int, _Call]) -> int:
    """Which call a piece belongs to: providers that stream calls whole give them no index."""
    index, name, last = piece.get("index"), piece.get("id"), max(calls, default=-1)
    if isinstance(index, int):
        return index
    begins = last + 1 if last < 0 or name or piece.get("name") else last
    return next((number for number, call in calls.items() if name and call.id == name), begins)


def _answer(whole: AIMessageChunk, calls: Mapping[int, _Call]) -> HostedAnswer:
    """The answer, taken apart; LangChain's own reading of calls repairs what was cut off, so ours counts."""
    valid, invalid = [], []
    for index in sorted(calls):
        call = calls[index]
        try:
            arguments = json.loads(call.arguments or "{}")
            assert isinstance(arguments, dict)
        except (ValueError, AssertionError):
            wrong = "The arguments are no JSON object."
            invalid.append(InvalidToolCall(call.id or f"call_{index}", call.name, call.arguments, wrong))
        else:
            valid.append(ToolCall(call.id or f"call_{index}", call.name, arguments))
    metadata = whole.response_metadata
    reason = str(metadata.get("finish_reason") or metadata.get("stop_reason") or "stop").lower()
    model = metadata.get("model_name") or metadata.get("model")
    return HostedAnswer(
        text=whole.text,
        finish_reason=_FINISH.get(reason, "stop"),
        tool_calls=tuple(valid),
        invalid_tool_calls=tuple(invalid),
        reasoning=reasoning_of(whole) or "",
        usage=_usage(whole),
        tokens=tuple(_token(each) for each in (metadata.get("logprobs") or {}).get("content") or ()),
        model=model if isinstance(model, str) else None,
        original=message_chunk_to_message(whole),
    )


def _usage(whole: AIMessageChunk) -> HostedUsage | None:
    usage = whole.usage_metadata
    if usage is None:
        return None
    return HostedUsage(
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        cached_tokens=usage.get("input_token_details", {}).get("cache_read") or 0,
        reasoning_tokens=usage.get("output_token_details", {}).get("reasoning") or 0,
    )


def _token(token: Mapping[str, Any]) -> TokenLogprob:
    top = tuple(TokenLogprob(each["token"], each["logprob"]) for each in token.get("top_logprobs") or ())
    return TokenLogprob(token["token"], token["logprob"], top)
