"""ChatSGL, the chat model: a small vision-language model answers, or shows a large one where to look.

Input: LangChain messages (text, images in every form that LangChain has, tool calls and results)
    -> ``messages.to_engine_messages`` -> ``Request`` -> ``SGLEngine.stream``.
Output: ``ExitDecision`` -> a custom event ("sgl_exit", "sgl_escalated"); text deltas become chunks;
    ``Response`` -> tool calls, usage and ``response_metadata``; streamed, a chunk of calls and a last one.

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
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from typing_extensions import override

from langchain_sgl.budget.gate import limitation, permission
from langchain_sgl.chat.answers import to_chat_result, to_generation_chunks
from langchain_sgl.chat.call_options import CallFields, CallOptions
from langchain_sgl.chat.events import AnyRun, StreamRun, aannounce, announce, current_run
from langchain_sgl.chat.fields import provider_of, with_attributes_of
from langchain_sgl.chat.hosted import Origin
from langchain_sgl.chat.image_blocks import normalize_pictures
from langchain_sgl.chat.input import ChatInput, in_thread
from langchain_sgl.chat.messages import to_engine_messages
from langchain_sgl.chat.pair import warn_of_bundled_pair
from langchain_sgl.chat.settings import ChatSettings
from langchain_sgl.errors import as_langchain_errors
from langchain_sgl.structured.output import Method, structured
from langchain_sgl.structured.schemas import convert_tools
from langchain_sgl.usage.child_runs import tell_tracers
from sgl_engine import ExitDecision, Message, Request, Response, StreamEvent

_ANY_QUESTION = Message("user", ("?",))
"""Stands for a question where tokens are counted of messages that cannot be answered by themselves."""
_RUN = "sgl_run"
"""The keyword argument in which ``stream`` tells ``_stream`` which run it belongs to."""


class ChatSGL(ChatInput):
    """Chat model over a pair of local vision-language models.

    ``ChatSGL()`` is the bundled pair; ``ChatSGL(small=..., large=...)`` any two models from folders or the
    hub; ``ChatSGL(engine=...)`` an engine that is there already. Weights load on first use, once per process.

    Every field of ``CallFields`` can be set per call too: ``chat.bind(escalate="never")`` or
    ``chat.invoke(messages, exit_threshold=0.9)``. None is the engine's own setting.
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
        """Streams as LangChain does; custom events name the stream's run."""
        if self._should_stream(async_api=False, **{**kwargs, "stream": True}):
            kwargs[_RUN], config = StreamRun.prepare(self, config)
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
        """Streams as LangChain does; custom events name the stream's run."""
        if self._should_stream(async_api=True, **{**kwargs, "stream": True}):
            kwargs[_RUN], config = StreamRun.prepare(self, config)
        prompt = await self._aconvert_input(input)
        # Declared as an iterator, but an async generator, and closed here rather than some time later.
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
                return to_chat_result(event, options)
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
                result = to_chat_result(event, options)
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
        run = kwargs.pop(_RUN, None) or run_manager or current_run()
        options, events = self._start(messages, stop, kwargs, run=run)
        for event in events:
            if isinstance(event, ExitDecision):
                announce(event, run)
                continue
            for chunk in to_generation_chunks(event, options):
                if run_manager and (chunk.text or chunk.message.additional_kwargs):
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
        run = kwargs.pop(_RUN, None) or run_manager or current_run()
        async for options, event in self._aevents(messages, stop, kwargs, run):
            if isinstance(event, ExitDecision):
                await aannounce(event, run)
                continue
            for chunk in to_generation_chunks(event, options):
                if run_manager and (chunk.text or chunk.message.additional_kwargs):
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
        """Reads one call: its options, and the engine's events, which begin when they are asked for.

        ``since`` is when the call began, a ``time.monotonic()`` value; None is now.
        """
        with as_langchain_errors():
            options = self._options(stop, **kwargs)
            if (options.tools or options.response_format) and self.is_bundled:
                warn_of_bundled_pair()
            request = options.request(
                self._to_engine(messages),
                since=since,
                cancel=cancel,
                may_escalate=permission(None if run is None else run.run_id),
                origin=Origin(tuple(messages)),
            )
            return options, self._events(options, request, run)

    def _events(self, options: CallOptions, request: Request, run: AnyRun | None) -> Iterator[StreamEvent]:
        """Streams the request through an engine that the call's options set; loads the weights here."""
        with as_langchain_errors():
            engine = options.configure(self._base_engine())
            for event in engine.stream(request):
                if isinstance(event, Response):
                    tell_tracers(run, request.origin.messages, event, provider_of(engine.hosted))
                yield event

    async def _aevents(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        kwargs: dict[str, Any],
        run: AnyRun | None,
    ) -> AsyncIterator[tuple[CallOptions, StreamEvent]]:
        """Yields the events of one call, made in threads; left or cancelled, it stops within one token."""
        cancel = threading.Event()
        options, events = await in_thread(
            partial(self._start, messages, stop, kwargs, run=run, cancel=cancel, since=time.monotonic())
        )
        try:
            while (event := await in_thread(partial(next, events, None))) is not None:
                yield options, event
        finally:
            cancel.set()
            # ValueError: a thread is inside; it finds itself cancelled before its next token, and closes.
            with suppress(ValueError):
                events.close()  # type: ignore[attr-defined]

    def _to_engine(self, messages: Sequence[BaseMessage]) -> tuple[Any, ...]:
        return to_engine_messages(messages, image_root=self.image_root)

    @override
    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Counts prompt tokens, visual ones included, as the large model reads them.

        Raises:
            RequestError: A message that cannot be read.
        """
        with as_langchain_errors():
            converted = convert_tools(tools or (), strict=None)
            options = self._options(tools=converted)
            given, engine = self._to_engine(normalize_pictures(messages, self._limits)), self._base_engine()
            if any(message.content for message in given):
                return engine.count_tokens(options.request(given))
            # trim_messages also asks about no messages, or empty ones: count what these add to a question.
            added, alone = (options.request((*part, _ANY_QUESTION)) for part in (given, ()))
            return engine.count_tokens(added) - engine.count_tokens(alone)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Cuts a plain text into tokens, as the large model does; for a hosted one, as the small one does."""
        engine = self._base_engine()
        tokenizer = (engine.small if engine.hosted else engine.large).processor.tokenizer
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
        """Returns a model that may, or must, call tools. Forced calls are valid: decoding is constrained.

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
        """Returns a model that answers in a schema; decoding is held to it by every method, in both models.

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


# What ``help`` shows is written once, where the fields are.
ChatSGL.__doc__ = with_attributes_of(ChatSGL, ChatSettings, CallFields)
