"""What a chat model is asked, made fit for LangChain, which reads it, and its cache, before any model does.

Encoding pictures and waiting for the engine both block, so asynchronous calls do them in worker threads.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Self, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from langchain_sgl.budget.caching import with_careful_cache
from langchain_sgl.chat.events import within
from langchain_sgl.chat.image_blocks import file_versions, normalize_pictures
from langchain_sgl.chat.settings import ChatSettings
from langchain_sgl.errors import as_langchain_errors

Result = TypeVar("Result")
_WORKERS = 64


@cache
def _pool() -> ThreadPoolExecutor:
    """Makes the threads; not the event loop's own pool, which is small, and for which others wait too."""
    return ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="chat-sgl")


async def in_thread(call: Callable[[], Result]) -> Result:
    """Runs ``call`` in a worker thread, with the caller's context variables."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_pool(), partial(context.run, call))


class ChatInput(ChatSettings):
    """``ChatSettings`` that read messages with pictures of every form.

    Encoding a picture takes seconds where it is large, and LangChain would have it done in the event loop; so
    asynchronous calls do it in a thread before. Done twice, it costs nothing.

    While LangChain's cache is asked and answered, the call's run is known (``current_run``), and the cache is
    told final answers alone.
    """

    @override
    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        """Reads what LangChain accepts as input, with every PIL image and all raw bytes made base64."""
        prompt = super()._convert_input(model_input)
        given = prompt.to_messages()
        with as_langchain_errors():
            encoded = normalize_pictures(given, self._limits)
        if all(new is old for new, old in zip(encoded, given, strict=True)):
            return prompt
        return ChatPromptValue(messages=encoded)

    async def _aconvert_input(self, model_input: LanguageModelInput) -> PromptValue:
        return await in_thread(partial(self._convert_input, model_input))

    @override
    async def ainvoke(
        self,
        input: LanguageModelInput,  # the base class's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answers as LangChain's ``ainvoke`` does, and reads pictures in a thread."""
        return await super().ainvoke(await self._aconvert_input(input), config, stop=stop, **kwargs)

    @override
    def astream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """Streams events as LangChain does, and reads pictures in a thread."""
        events: Any = super().astream_events
        if kwargs.get("version") != "v3":  # versions 1 and 2 call ``astream``, which uses a thread
            return events(input, config, **kwargs)

        async def begin() -> Any:
            return await events(await self._aconvert_input(input), config, **kwargs)

        return begin()

    def _careful(self, messages: list[BaseMessage], options: dict[str, Any]) -> Self:
        files = partial(file_versions, messages, self.image_root)
        return with_careful_cache(self, escalate=options.get("escalate", self.escalate), files=files)

    @override
    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        careful = self._careful(messages, kwargs)
        with within(run_manager):
            return super(ChatInput, careful)._generate_with_cache(messages, stop, run_manager, **kwargs)

    @override
    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        careful = self._careful(messages, kwargs)
        with within(run_manager):
            try:
                return await super(ChatInput, careful)._agenerate_with_cache(
                    messages, stop, run_manager, **kwargs
                )
            except asyncio.CancelledError as cancelled:
                # LangChain ends no run that is cancelled: traces and budgets would wait for it for ever.
                if run_manager is not None:
                    await run_manager.on_llm_error(cancelled, response=LLMResult(generations=[]))
                raise
