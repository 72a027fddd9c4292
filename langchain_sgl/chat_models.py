"""ChatSGL, the chat model: a small vision-language model answers, or shows a large one where to look.

Input: LangChain messages (text, images in every form that LangChain has, tool calls and results)
    -> ``messages.to_engine_messages`` -> ``Request`` -> ``SGLEngine.stream``.
Output: ``ExitDecision`` -> a custom event ("sgl_exit", "sgl_escalated"); text and tool call deltas become
chunks;
    ``Response`` -> usage and ``response_metadata``, on the message or, streamed, on the last chunk alone.

Synchronous calls wait in the caller's thread, asynchronous ones in threads of their own, so the event loop is
never blocked. The models run in the engine's worker, for calls that come together side by side: so ``batch``
and ``abatch`` need nothing of their own. Leaving a stream or cancelling a task stops generation within one
token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from typing_extensions import override

from langchain_sgl.budget.gate import limitation, permission
from langchain_sgl.chat import messages as convert
from langchain_sgl.chat.call_options import CallOptions
from langchain_sgl.chat.events import AnyRun, Run, aannounce, announce
from langchain_sgl.chat.image_blocks import normalize_pictures
from langchain_sgl.chat.input import ChatInput, in_thread
from langchain_sgl.chat.schemas import convert_tools
from langchain_sgl.chat.structured_output import Method, structured
from langchain_sgl.errors import as_langchain_errors
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.request import Message, Request
from sgl_engine.response import Response, StreamEvent

_SOMETHING = Message("user", ("?",))
_RUN = "sgl_run"
"""The keyword argument in which ``stream`` tells ``_stream`` which run it belongs to."""


class ChatSGL(ChatInput):
    """Chat model over a pair of local vision-language models.

    ``ChatSGL()`` is the bundled pair; ``ChatSGL(small=..., large=...)`` any two models from folders or the
    hub; ``ChatSGL(engine=...)`` an engine that is there already. Weights load on first use, once per process.

    Every option from ``escalate`` on can be set per call too: ``chat.bind(escalate="never")`` or
    ``chat.invoke(messages, exit_threshold=0.9)``. None is the engine's own setting.

    The fields are described in ``ChatSettings``.
    """

    @override
    def stream(
        self,
        input: LanguageModelInput,  # the base class's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As in LangChain; custom events are this run's own."""
        if self._should_stream(async_api=False, **{**kwargs, "stream": True}):
            kwargs[_RUN], config = Run.of_stream(config)
        yield from super().stream(input, config, stop=stop, **kwargs)

    @override
    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As in LangChain; custom events are this run's own."""
        if self._should_stream(async_api=True, **{**kwargs, "stream": True}):
            kwargs[_RUN], config = Run.of_stream(config)
        prompt = await self._aconvert_input(input)
        # An async generator, which the base class declares as an iterator; closed with this one.
        stream: Any = super().astream(prompt, config, stop=stop, **kwargs)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    @override
    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        kwargs.pop(_RUN, None)  # not a parameter, and no trace should show it
        params = super()._get_invocation_params(stop=stop, **kwargs)
        limited = limitation()
        if limited is not None:
            # Part of the cache's key: an answer that a spent budget kept small must not be served elsewhere.
            params["limited"] = limited
        return params

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        options, events = self._start(messages, stop, kwargs, run=run_manager)
        for event in events:
            if isinstance(event, ExitDecision):
                announce(event, run_manager)
            elif isinstance(event, Response):
                return _result(event, options)
        raise AssertionError("a stream of the engine ends with a response")

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result = None
        async for options, event in self._aevents(messages, stop, kwargs, run_manager):
            if isinstance(event, ExitDecision):
                await aannounce(event, run_manager)
            elif isinstance(event, Response):
                result = _result(event, options)
        assert result is not None
        return result

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        run = kwargs.pop(_RUN, None) or run_manager
        options, events = self._start(messages, stop, kwargs, run=run)
        for event in events:
            if isinstance(event, ExitDecision):
                announce(event, run)
                continue
            chunk = _chunk(event, options)
            if run_manager and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        run = kwargs.pop(_RUN, None) or run_manager
        async for options, event in self._aevents(messages, stop, kwargs, run):
            if isinstance(event, ExitDecision):
                await aannounce(event, run)
                continue
            chunk = _chunk(event, options)
            if run_manager and chunk.text:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _start(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        kwargs: dict[str, Any],
        *,
        run: AnyRun | None,
        cancel: threading.Event | None = None,
        since: float | None = None,
    ) -> tuple[CallOptions, Iterator[StreamEvent]]:
        """One call: its options, and the engine's events, which begin when they are asked for.

        ``since`` is when the call began, a ``time.monotonic()`` value; None is now.
        """
        with as_langchain_errors():
            options = self._options(stop, **kwargs)
            request = options.request(
                self._to_engine(messages),
                since=since,
                cancel=cancel,
                may_escalate=permission(None if run is None else run.run_id),
            )
            return options, self._events(options, request)

    def _events(self, options: CallOptions, request: Request) -> Iterator[StreamEvent]:
        with as_langchain_errors():
            yield from options.configure(self._base_engine()).stream(request)

    async def _aevents(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        kwargs: dict[str, Any],
        run: AnyRun | None,
    ) -> AsyncIterator[tuple[CallOptions, StreamEvent]]:
        """The events of one call, made in worker threads; left or cancelled, they stop within one token."""
        cancel = threading.Event()
        options, events = await in_thread(
            partial(self._start, messages, stop, kwargs, run=run, cancel=cancel, since=time.monotonic())
        )
        try:
            while (event := await in_thread(partial(next, events, None))) is not None:
                yield options, event
        finally:
            cancel.set()
            # Closed here, unless a thread is inside: that one finds itself cancelled before its next token.
            with suppress(ValueError):
                events.close()  # type: ignore[attr-defined]

    def _to_engine(self, messages: Sequence[BaseMessage]) -> tuple[Any, ...]:
        return convert.to_engine_messages(messages, image_root=self.image_root)

    @override
    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Prompt tokens, visual ones included, as the large model reads them.

        Raises:
            RequestError: A message that cannot be read.
        """
        with as_langchain_errors():
            converted = convert_tools(tools or (), strict=None)
            options = self._options(tools=converted)
            given, engine = self._to_engine(normalize_pictures(messages, self._limits)), self._base_engine()
            if any(message.content for message in given):
                return engine.count_tokens(options.request(given))
            # Nothing that could be answered, but trim_messages asks for that, too: what it adds to something.
            added, alone = (options.request((*part, _SOMETHING)) for part in (given, ()))
            return engine.count_tokens(added) - engine.count_tokens(alone)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a plain text, as the large model's tokenizer cuts it."""
        tokenizer = self._base_engine().large.processor.tokenizer
        return list(tokenizer.encode(text, add_special_tokens=False))

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A model that may, or must, call tools. Forced calls are valid: decoding is constrained.

        Args:
            tools: LangChain tools, functions, pydantic models, or dictionaries (OpenAI's or Anthropic's
                format).
            tool_choice: "auto" (the default), "any" or "required" (at least one call), "none", a tool's name,
                or OpenAI's and Anthropic's dictionaries for these. A tool that is itself named "any" or
                "none" can be chosen by a dictionary only.
            strict: Passed to the conversion of schemas.
            parallel_tool_calls: False allows one call per answer.
            kwargs: Any option of a call.

        Raises:
            InvalidRequestError: Something that is not a tool, or a choice that names none.
        """
        with as_langchain_errors():
            converted = convert_tools(tools, strict=strict)
            bound = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls, **kwargs}
            given = {name: value for name, value in bound.items() if value is not None}
            # Checked when it is written; LangChain's own arguments are not options.
            checked = {name: value for name, value in given.items() if name in CallOptions.model_fields}
            self._options(tools=converted, **checked).request(())
        return self.bind(tools=converted, **given)

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model that answers in a schema. Every method is valid by constrained decoding, in both models.

        Args:
            schema: A pydantic model (the answer is an instance), a TypedDict or a JSON schema (a dict).
            include_raw: Return ``{"raw", "parsed", "parsing_error"}``; the message with its report is "raw".
            method: "json_schema" shows the schema and decodes in it; "function_calling" forces a call of a
                tool with it; "json_mode" decodes in it.
            strict: Passed to the conversion of the schema.
            kwargs: Any option of a call.

        Raises:
            InvalidRequestError: There is no such method, or something that is not a schema.
        """
        with as_langchain_errors():
            return structured(
                self, schema, method=method, include_raw=include_raw, strict=strict, options=kwargs
            )


def _metadata(response: Response, options: CallOptions) -> dict[str, Any]:
    return convert.response_metadata(response, logprobs=options.logprobs, evidence=options.evidence)


def _result(response: Response, options: CallOptions) -> ChatResult:
    message = convert.to_ai_message(response, _metadata(response, options))
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(event: Any, options: CallOptions) -> ChatGenerationChunk:
    if isinstance(event, Response):
        return ChatGenerationChunk(message=convert.to_last_chunk(event, _metadata(event, options)))
    return ChatGenerationChunk(message=convert.to_chunk(event))
