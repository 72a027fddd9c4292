"""Chat models that ``bind``, ``with_config``, ``with_retry``, ``with_fallbacks`` wrapped: what is inside."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase

from sgl_engine import ConfigError


def models_inside(model: Runnable[Any, Any]) -> list[tuple[BaseChatModel, dict[str, Any]]]:
    """Finds the chat models that a call may reach, the first one first, each with the options bound to it.

    Raises:
        ConfigError: There is something else inside: a prompt, a parser, a function.
    """
    if isinstance(model, BaseChatModel):
        return [(model, {})]
    if isinstance(model, RunnableBindingBase):
        # What is bound further out counts more.
        return [(chat, {**options, **model.kwargs}) for chat, options in models_inside(model.bound)]
    if isinstance(model, RunnableWithFallbacks):
        return [inside for each in model.runnables for inside in models_inside(each)]
    raise ConfigError(
        f"A {type(model).__name__} is not a chat model.",
        remedy="Give a chat model, as it is or from its bind, with_config, with_retry or with_fallbacks.",
    )
