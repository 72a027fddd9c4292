"""What a chat model is asked, made fit for LangChain, which reads it before any model does.

Encoding pictures and waiting for the engine both block, so asynchronous calls do them in worker threads.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import RunnableConfig
from typing_extensions import override

from langchain_sgl.chat.image_blocks import normalize_pictures
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
