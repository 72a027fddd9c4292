"""What LangChain's cache is told, and under which key.

Not provisional answers, as the next call might get a better one: a small answer that was kept because a
hosted large model failed, or because a budget that was open when the call began had nothing left when the
score was known. And a picture that is named by its path is asked about anew when the file has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration
from typing_extensions import override

from langchain_sgl.budget.gate import limitation

Model = TypeVar("Model", bound=BaseChatModel)


def is_provisional(message: BaseMessage) -> bool:
    """Tells whether a small answer was kept for want of a large one that was to be had another time.

    Args:
        message: An answer of ``ChatSGL``; those of other models are final.
    """
    report = message.response_metadata.get("sgl") or {}
    return bool(report.get("large_error"))


def with_careful_cache(model: Model, *, escalate: str | None, files: Callable[[], str]) -> Model:
    """Returns the model with a cache that is told final answers alone; itself where nothing is cached.

    Args:
        model: A chat model.
        escalate: The call's own choice of the route.
        files: Says how new the files are that the call names; asked where something is cached.
    """
    cache = model.cache if isinstance(model.cache, BaseCache) else get_llm_cache()
    if model.cache is False or cache is None:
        return model
    # The key says that the budget was open. It may be spent before the score is known.
    may_close = limitation() == "open" and escalate != "never"
    return model.model_copy(update={"cache": _CarefulCache(cache, files(), may_close=may_close)})


class _CarefulCache(BaseCache):
    def __init__(self, cache: BaseCache, files: str, *, may_close: bool) -> None:
        self._cache, self._may_close = cache, may_close
        self._files = f" files {files}" if files else ""

    def _is_final(self, answers: RETURN_VAL_TYPE) -> bool:
        messages = [answer.message for answer in answers if isinstance(answer, ChatGeneration)]
        return not any(is_provisional(message) or self._was_refused(message) for message in messages)

    def _was_refused(self, message: BaseMessage) -> bool:
        report = message.response_metadata.get("sgl") or {}
        return bool(self._may_close and report.get("forced") and not report.get("escalated"))

    @override
    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return self._cache.lookup(prompt, llm_string + self._files)

    @override
    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if self._is_final(return_val):
            self._cache.update(prompt, llm_string + self._files, return_val)

    @override
    def clear(self, **kwargs: Any) -> None:
        self._cache.clear(**kwargs)

    @override
    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        return await self._cache.alookup(prompt, llm_string + self._files)

    @override
    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        if self._is_final(return_val):
            await self._cache.aupdate(prompt, llm_string + self._files, return_val)

    @override
    async def aclear(self, **kwargs: Any) -> None:
        await self._cache.aclear(**kwargs)
