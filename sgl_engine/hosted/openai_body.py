"""OpenAI's chat completions: ``HostedCall`` -> body of a request, chunks of a stream -> answer. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_engine.chat.text_stream import ReasoningDelta, TextDelta
from sgl_engine.chat.tool_calls import check_call, dump, function_schema, new_id
from sgl_engine.chat.tool_stream import Delta, ToolCallDelta
from sgl_engine.errors import HostedAnswerError
from sgl_engine.hosted.model import HostedAnswer, HostedCall, HostedUsage
from sgl_engine.prompt.signatures import mime_type_of
from sgl_engine.request import ImagePart, InvalidToolCall, Message, Request, ToolCall

if TYPE_CHECKING:
    from sgl_engine.decoding.answer import FinishReason, TokenLogprob

_PLAIN = "temperature top_p seed presence_penalty frequency_penalty top_k min_p repetition_penalty".split()
"""Options that are called there what they are called here. The last three are vLLM's and its like's."""
_FINISH: dict[str, FinishReason] = {"length": "length", "content_filter": "content_filter"}


def request_body(call: HostedCall, model: str, *, limit_name: str, detail: str | None) -> dict[str, Any]:
    """Writes the body; what the request leaves open is left to the server.

    Args:
        call: What is asked.
        model: As the server calls it.
        limit_name: What the server calls the limit of answer tokens.
        detail: OpenAI's wish for pictures; None is left out.
    """
    request = call.request
    pictures = iter(call.pictures)
    messages = [_message(message, pictures, detail) for message in request.messages]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    body["stream_options"] = {"include_usage": True}
    for name in _PLAIN:
        if getattr(request, name):
            body[name] = getattr(request, name)
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.seed is not None:
        body["seed"] = int(request.seed)
    if request.max_new_tokens is not None:
        body[limit_name] = request.max_new_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in request.logit_bias.items()}
    if request.logprobs:
        body |= {"logprobs": True, **({"top_logprobs": request.top_logprobs} if request.top_logprobs else {})}
    return body | _tools(request) | _form(request)


def _tools(request: Request) -> dict[str, Any]:
    if not request.tools:
        return {}
    choice: Any = {"any": "required"}.get(request.tool_choice, request.tool_choice)
    if request.tool_name is not None and request.tool_choice != "none":
        choice = {"type": "function", "function": {"name": request.tool_name}}
    found: dict[str, Any] = {"tools": [function_schema(tool) for tool in request.tools]}
    if choice != "auto":
        found["tool_choice"] = choice
    if not request.parallel_tool_calls:
        found["parallel_tool_calls"] = False
    return found


def _form(request: Request) -> dict[str, Any]:
    schema = request.response_schema
    if schema is None:
        return {}
    if dict(schema) == {"type": "object"}:
        return {"response_format": {"type": "json_object"}}
    named = {"name": str(schema.get("title") or "answer"), "schema": dict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _message(message: Message, pictures: Iterable[tuple[bytes, ...]], detail: str | None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, ImagePart):
            parts += [_picture(data, detail) for data in next(iter(pictures))]
        else:
            parts.append({"type": "text", "text": part})
    written: dict[str, Any] = {"role": message.role}
    only_text = len(parts) == 1 and parts[0]["type"] == "text"
    written["content"] = parts[0]["text"] if only_text else parts or None if message.tool_calls else parts
    if only_text:
        written["content"] = parts[0]["text"]
    if message.tool_calls:
        written["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    return written


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": dump(dict(call.arguments))}
    return {"id": call.id, "type": "function", "function": function}


def _picture(data: bytes, detail: str | None) -> dict[str, Any]:
    url: dict[str, Any] = {
        "url": f"data:{mime_type_of(data)};base64,{base64.b64encode(data).decode('ascii')}"
    }
    return {"type": "image_url", "image_url": url | ({} if detail is None else {"detail": detail})}


@dataclass
class _Call:
    """A tool call that is coming.

    Attributes:
        index: The server's, which may be that of several calls.
        given: The server's id; empty where it gave none.
        id: The same, or one of ours.
        name: Of the tool.
        arguments: As far as they have come.
    """

    index: int
    given: str
    id: str
    name: str
    arguments: str = ""

    def is_another(self, given: str) -> bool:
        """Whether a piece that brings a name, and this id, begins another call than this one.

        Servers that number no calls, or all of them 0, tell them apart by their ids, or send each whole.
        """
        if given and self.given:
            return given != self.given
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            return False
        return True


_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading raises where a list stands in an object's place, or the like."""


@contextmanager
def _understanding(data: str) -> Iterator[None]:
    try:
        yield
    except _MALFORMED as error:
        raise HostedAnswerError(
            f"The answer holds {data[:80]!r}, which is not put together as this interface says "
            f"({type(error).__name__}: {error!s:.120}).",
            remedy="Check that the address is that of an OpenAI-compatible server.",
        ) from error


def _text(value: Any) -> str:
    """A text; None is none. Raises TypeError for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{value!r:.80} stands where a text should")


def _count(value: Any) -> int:
    """A number of tokens; None is 0. Raises ValueError for a negative one."""
    count = int(value or 0)
    if count < 0:
        raise ValueError(f"{count} tokens")
    return count


class AnswerStream:
    """Reads an answer while it comes, as server-sent events or, where the server does not stream, whole."""

    def __init__(self) -> None:
        self._text = self._reasoning = ""
        self._calls: list[_Call] = []  # as they began
        self._tokens: list[TokenLogprob] = []
        self._usage: HostedUsage | None = None
        self._model: str | None = None
        self._finish: str | None = None
        self._whole = ""  # lines of an answer that is not streamed
        self.ended = False

    def push(self, line: str) -> Generator[Delta, None, None]:
        """Takes a line.

        Raises:
            HostedAnswerError: It is not what this interface says, or tells of an error.
        """
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                self.ended = True
            elif data:
                yield from self._read(data)
        elif line.strip() and not line.startswith((":", "event:", "id:", "retry:")):
            self._whole += line

    def finish(self) -> Generator[Delta, None, HostedAnswer]:
        """Ends the answer.

        Raises:
            HostedAnswerError: It breaks off.
        """
        if self._whole:
            yield from self._read(self._whole)
        if self._finish is None and not (self.ended and (self._text or self._calls)):
            count = len(self._text)
            raise HostedAnswerError(
                f"The answer broke off after {count} characters, without a reason for its end.",
                remedy="Ask again.",
            )
        read = [check_call(c.id, c.name, c.arguments or "{}", written=c.arguments) for c in self._calls]
        return HostedAnswer(
            text=self._text,
            finish_reason=_FINISH.get(self._finish or "stop", "stop"),
            tool_calls=tuple(call for call in read if isinstance(call, ToolCall)),
            invalid_tool_calls=tuple(call for call in read if isinstance(call, InvalidToolCall)),
            reasoning=self._reasoning,
            usage=self._usage,
            tokens=tuple(self._tokens),
            model=self._model,
        )

    def _read(self, data: str) -> Generator[Delta, None, None]:
        with _understanding(data):
            yield from self._take(_parse(data))

    def _take(self, chunk: Mapping[str, Any]) -> Generator[Delta, None, None]:
        if chunk.get("error"):
            raise HostedAnswerError(
                f"The answer ended in an error: {_error_text(chunk['error'])}", remedy="Ask again."
            )
        self._model = _text(chunk.get("model")) or self._model
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        choice = next(iter(chunk.get("choices") or ()), None)
        if choice is None:
            return
        self._finish = _text(choice.get("finish_reason")) or self._finish
        self._tokens += [_token(token) for token in (choice.get("logprobs") or {}).get("content") or ()]
        yield from self._piece(choice.get("delta") or choice.get("message") or {})

    def _piece(self, delta: Mapping[str, Any]) -> Generator[Delta, None, None]:
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            self._reasoning += thought
            yield ReasoningDelta(thought)
        for piece in (*_said(delta.get("content")), *_said(delta.get("refusal"))):
            if isinstance(piece, ReasoningDelta):
                self._reasoning += piece.text
            else:
                self._text += piece.text
            yield piece
        for number, call in enumerate(delta.get("tool_calls") or ()):
            index = call.get("index")
            yield self._call_piece(number if index is None else _count(index), call)

    def _call_piece(self, index: int, piece: Mapping[str, Any]) -> ToolCallDelta:
        function = piece.get("function") or {}
        arguments, given = _text(function.get("arguments")), _text(piece.get("id"))
        name = _text(function.get("name"))
        begun = [(number, known) for number, known in enumerate(self._calls) if known.index == index]
        named = [each for each in begun if given and each[1].given == given]
        for number, known in named[-1:] or begun[-1:]:
            if not (name and known.is_another(given)):
                known.arguments += arguments
                return ToolCallDelta(number, None, None, arguments)
        new = _Call(index, given, given or new_id(), name, arguments)
        self._calls.append(new)
        return ToolCallDelta(len(self._calls) - 1, new.id, new.name, arguments)


def _said(content: Any) -> Iterator[TextDelta | ReasoningDelta]:
    """What a content says: a text, or a list of parts, of which some are thoughts.

    Raises:
        HostedAnswerError: It is neither.
    """
    if isinstance(content, str) or content is None:
        if content:
            yield TextDelta(content)
        return
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise HostedAnswerError(
            f"The answer's content is {content!r:.80}, neither a text nor a list of parts.",
            remedy="Check that the address is that of an OpenAI-compatible server.",
        )
    for part in content:
        thought = _joined(part.get("thinking"))
        if thought:
            yield ReasoningDelta(thought)
        elif text := _joined(part.get("text") or part.get("refusal")):
            yield ReasoningDelta(text) if part.get("type") == "reasoning" else TextDelta(text)


def _joined(text: Any) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(text, list):
        return "".join(_joined(part.get("text")) for part in text if isinstance(part, Mapping))
    return text if isinstance(text, str) else ""


def _parse(data: str) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HostedAnswerError(
            f"The answer holds {data[:80]!r}, which is no JSON object.",
            remedy="Check that the address is that of an OpenAI-compatible server.",
        )
    return value


def _error_text(error: Any) -> str:
    said = error.get("message") if isinstance(error, Mapping) else error
    return f"{said!s:.300}"


def _usage(usage: Mapping[str, Any]) -> HostedUsage:
    given, written = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return HostedUsage(
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(given.get("cached_tokens")),
        reasoning_tokens=_count(written.get("reasoning_tokens")),
    )


def _token(token: Mapping[str, Any]) -> TokenLogprob:
    from sgl_engine.decoding.answer import TokenLogprob

    top = token.get("top_logprobs") or ()
    others = tuple(TokenLogprob(_text(each["token"]), float(each["logprob"])) for each in top)
    return TokenLogprob(_text(token["token"]), float(token["logprob"]), others)
