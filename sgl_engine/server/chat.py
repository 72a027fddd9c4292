"""A chat body -> the engine's request; the engine's events -> OpenAI's answer, whole or in chunks. Pure."""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sgl_engine import (
    Escalate,
    ExitDecision,
    InvalidRequestError,
    InvalidToolCall,
    ReasoningDelta,
    Request,
    Response,
    RunReport,
    SGLEngine,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from sgl_engine.server.errors import HTTPError
from sgl_engine.server.fields import Body, ChatBody, Conversation
from sgl_engine.server.messages import to_messages, to_schema, to_tool_choice, to_tools
from sgl_engine.server.settings import ServerSettings

Event = ReasoningDelta | TextDelta | ToolCallDelta | Response
JSON = dict[str, Any]
TOO_UNLIKELY = -9999.0
"""What OpenAI writes as the log-probability of a token that has none to speak of; JSON has no infinity."""


def engine_for(engine: SGLEngine, body: Body, settings: ServerSettings) -> SGLEngine:
    """The engine on the same models that the body's ``model`` and ``sgl`` want.

    Raises:
        HTTPError: There is no such model (404).
        ConfigError: There is no such preset or scorer.
        InvalidRequestError: A model is named, and another route as well.
    """
    pair, small, large = settings.models
    name = body.model or pair
    if name not in settings.models:
        raise HTTPError(
            404,
            f"There is no model {name!r:.100}. Use one of {', '.join(settings.models)}.",
            code="model_not_found",
            param="model",
        )
    routes: dict[str, Escalate] = {small: "never", large: "always"}
    route = routes.get(name)
    if route is not None and body.sgl.escalate not in {None, route}:
        raise InvalidRequestError(
            f"The model {name!r} and escalate={body.sgl.escalate!r} contradict each other.",
            remedy=f"Name the model {pair!r} to choose the route by escalate.",
        )
    changes = body.sgl.choices(route).changes(engine.config)
    return engine.with_config(engine.config.model_copy(update=changes)) if changes else engine


def bare_request(body: Conversation) -> Request:
    """The request that a conversation by itself is."""
    return Request(
        messages=to_messages(body.messages),
        tools=to_tools(body.tools),
        chat_template_kwargs=body.chat_template_kwargs,
        max_reasoning_tokens=body.sgl.max_reasoning_tokens,
        max_pixels=body.sgl.max_pixels,
        max_visual_tokens=body.sgl.max_visual_tokens,
    )


def to_request(body: ChatBody, settings: ServerSettings, *, since: float, cancel: threading.Event) -> Request:
    """Writes the engine's request.

    Args:
        body: What the client wants.
        settings: The server's; they say how long an answer may take.
        since: When the request came, a ``time.monotonic()`` value.
        cancel: Set once the client is gone.

    Raises:
        RequestError: Something of it cannot be done.
    """
    _check(body)
    tools = to_tools(body.tools)
    choice, only = to_tool_choice(body.tool_choice, tools)
    timeout_s = body.sgl.timeout_s or settings.timeout_s
    thinks = 0 if body.reasoning_effort == "none" else body.sgl.max_reasoning_tokens
    return Request(
        messages=to_messages(body.messages),
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        # OpenAI takes 0, and means the likeliest token; vLLM writes -1 for "all tokens".
        top_p=body.top_p or (None if body.top_p is None else 1e-6),
        top_k=body.top_k if (body.top_k or 0) > 0 else None,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        seed=body.seed,
        deadline=None if timeout_s is None else since + timeout_s,
        cancel=cancel,
        tools=tools,
        tool_choice=choice,
        tool_name=only,
        parallel_tool_calls=body.parallel_tool_calls,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        response_schema=to_schema(body.response_format),
        chat_template_kwargs=body.chat_template_kwargs,
        max_reasoning_tokens=thinks,
        skip_special_tokens=body.skip_special_tokens,
        max_pixels=body.sgl.max_pixels,
        max_visual_tokens=body.sgl.max_visual_tokens,
        cache_salt=body.cache_salt,
    )


def _check(body: ChatBody) -> None:
    """Raises InvalidRequestError for what contradicts itself or cannot be had."""
    if body.n != 1:
        raise InvalidRequestError(
            f"n is {body.n}, and a request gets one answer: whether it escalates is decided once.",
            remedy="Leave n out, and send the request again with another seed.",
        )
    both = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(both) > 1:
        raise InvalidRequestError(
            f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} are given.",
            remedy="Give one of them: they mean the same.",
        )
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError(
            f"top_logprobs is {body.top_logprobs} without logprobs.", remedy="Set logprobs to true as well."
        )


@dataclass
class Writer:
    """Writes one answer, whole or in chunks.

    Attributes:
        model: The name that the client gave.
        with_usage: Whether a chunk of its own tells the usage.
        with_logprobs: Whether the tokens' log-probabilities are wanted.
        with_metrics: Whether vLLM's ``metrics`` are.
        first_token_s: Seconds to the first piece; None before it.
        last_token_s: Seconds to the last piece so far.
    """

    model: str
    with_usage: bool = False
    with_logprobs: bool = False
    with_metrics: bool = False
    first_token_s: float | None = None
    last_token_s: float | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _started: float = field(default_factory=time.perf_counter)
    _calls: set[str] = field(default_factory=set)
    _next_call: int = 0  # behind all that were passed on: clients join what has one index

    def whole(self, response: Response) -> JSON:
        """The body of an answer that is not streamed."""
        message: JSON = {"role": "assistant", "content": response.text or None, "refusal": None}
        calls = [_call(call) for call in _calls_of(response)]
        if calls:
            message["tool_calls"] = calls
        else:
            message["content"] = response.text
        if response.reasoning:
            message["reasoning_content"] = response.reasoning
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(response),
            "finish_reason": finish_reason(response),
        }
        return self._frame("chat.completion", [choice]) | self._end(response, usage=True)

    def chunks(self, event: Event) -> Iterator[JSON]:
        """One event of a stream as chunks; the first of all is ``opening``."""
        if not isinstance(event, Response):
            self.last_token_s = time.perf_counter() - self._started
            if self.first_token_s is None:
                self.first_token_s = self.last_token_s
            yield self._chunk(self._delta(event))
            return
        # Calls that could not be read, and so were not passed on while they came.
        left = (call for call in _calls_of(event) if call.id not in self._calls)
        for index, call in enumerate(left, self._next_call):
            yield self._chunk({"tool_calls": [{"index": index, **_call(call)}]})
        last = self._chunk({}, finish=finish_reason(event), logprobs=self._logprobs(event))
        if not self.with_usage:
            yield last | self._end(event, usage=False)
            return
        yield last
        yield self._frame("chat.completion.chunk", []) | self._end(event, usage=True)

    def opening(self) -> JSON:
        """The first chunk: whose words these are."""
        return self._chunk({"role": "assistant", "content": ""})

    def _delta(self, event: ReasoningDelta | TextDelta | ToolCallDelta) -> JSON:
        if isinstance(event, ReasoningDelta):
            return {"reasoning_content": event.text}
        if isinstance(event, TextDelta):
            return {"content": event.text}
        self._next_call = max(self._next_call, event.index + 1)
        call: JSON = {"index": event.index, "function": {"arguments": event.arguments}}
        if event.id is not None:
            self._calls.add(event.id)
            call |= {"id": event.id, "type": "function"}
            call["function"]["name"] = event.name
        return {"tool_calls": [call]}

    def _chunk(self, delta: JSON, *, finish: str | None = None, logprobs: JSON | None = None) -> JSON:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[JSON]) -> JSON:
        frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**frame, "choices": choices, "system_fingerprint": None}

    def _end(self, response: Response, *, usage: bool) -> JSON:
        """What comes with the end of an answer: the report, and what was asked for."""
        end: JSON = {"sgl": json.loads(response.report.model_dump_json())}
        if usage:
            end["usage"] = usage_of(response.report)
        if self.with_metrics:
            end["metrics"] = self._metrics(response.report)
        return end

    def _metrics(self, report: RunReport) -> JSON:
        """Numbers of a request as vLLM names them, in milliseconds."""
        total, queue = report.stage_ms.get("total", 0.0), report.stage_ms.get("queue", 0.0)
        first = total if self.first_token_s is None else 1e3 * self.first_token_s
        last = total if self.last_token_s is None else 1e3 * self.last_token_s
        written = usage_of(report)["completion_tokens"]
        generation = max(0.0, total - queue)
        return {
            "time_to_first_token_ms": first,
            "generation_time_ms": generation,
            "queue_time_ms": queue,
            "mean_itl_ms": (last - first) / (written - 1) if written > 1 else None,
            "tokens_per_second": 1e3 * written / generation if generation else None,
        }

    def _logprobs(self, response: Response) -> JSON | None:
        if not self.with_logprobs:
            return None
        return {"content": [_logprob(token) for token in response.tokens], "refusal": None}


def finish_reason(response: Response) -> str:
    """OpenAI's word for why the answer ends."""
    if response.finish_reason != "stop":
        return response.finish_reason
    return "tool_calls" if response.tool_calls or response.invalid_tool_calls else "stop"


def usage_of(report: RunReport) -> JSON:
    """Tokens as OpenAI counts them: of the model that answered; ``image_tokens`` is its visual ones."""
    large = report.route == "large"
    prompt = (report.large_input_tokens if large else report.small_input_tokens) or 0
    written = (report.large_output_tokens if large else report.small_output_tokens) or 0
    thought = (report.large_reasoning_tokens if large else report.small_reasoning_tokens) or 0
    known = (report.large_known_tokens if large else report.small_known_tokens) or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": known, "image_tokens": report.visual_tokens},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def headers_of(decision: ExitDecision | RunReport) -> dict[str, str]:
    """``x-sgl-route`` and ``x-sgl-score``; with the report also ``x-sgl-saved``, a fraction of operations."""
    if isinstance(decision, RunReport):
        headers = {"x-sgl-route": decision.route, "x-sgl-score": f"{decision.score:.4f}"}
        return headers | {"x-sgl-saved": f"{decision.saved_fraction:.4f}"}
    return {
        "x-sgl-route": "small" if decision.exit else "large",
        "x-sgl-score": f"{decision.score:.4f}",
    }


def _calls_of(response: Response) -> list[ToolCall | InvalidToolCall]:
    return [*response.tool_calls, *response.invalid_tool_calls]


def _call(call: ToolCall | InvalidToolCall) -> JSON:
    """One that cannot be read has the arguments that the model wrote, as OpenAI's models have them."""
    arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(dict(call.arguments))
    return {"id": call.id, "type": "function", "function": {"name": call.name or "", "arguments": arguments}}


def _logprob(token: TokenLogprob) -> JSON:
    def written(each: TokenLogprob) -> JSON:
        number = each.logprob if math.isfinite(each.logprob) else TOO_UNLIKELY
        return {"token": each.token, "logprob": number, "bytes": _bytes(each.token)}

    return {**written(token), "top_logprobs": [written(other) for other in token.top]}


def _bytes(token: str) -> list[int] | None:
    """A token in UTF-8; None where it has none, as half a surrogate pair."""
    try:
        return list(token.encode())
    except UnicodeEncodeError:
        return None
