"""A chat model over a pair, as it may be wrapped, for scoring: its engine, its options, its retries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.retry import RunnableRetry

from langchain_sgl.chat.call_options import CallOptions
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.wrapped_models import models_inside
from sgl_engine import ConfigError, RequestCancelledError

if TYPE_CHECKING:
    from sgl_engine import AnswerScores, SGLEngine


@dataclass(frozen=True)
class ScoringModel:
    """What a chat model, wrapped or not, says about how pictures are scored.

    Attributes:
        chat: Inside.
        options: Bound to it: options of a call.
        config: Bound to it: callbacks, tags, metadata.
        retries: Around it, the outermost first.
    """

    chat: ChatSGL
    options: dict[str, Any]
    config: RunnableConfig
    retries: tuple[RunnableRetry[Any, Any], ...]

    @classmethod
    def of(cls, model: Runnable[Any, Any]) -> ScoringModel:
        """Unwraps a model.

        Raises:
            ConfigError: Something else than one ``ChatSGL`` is inside.
            InvalidRequestError: What is bound to it is no option of a call.
        """
        inside = models_inside(model)
        chat, options = inside[0]
        if len(inside) > 1 or not isinstance(chat, ChatSGL):
            raise ConfigError(
                f"Pictures are not scored by {' or '.join(type(each).__name__ for each, _ in inside)}.",
                remedy="Give one ChatSGL, as it is or from its bind, with_config or with_retry.",
            )
        CallOptions.of(**options)
        configs: list[RunnableConfig] = []
        retries = []
        while isinstance(model, RunnableBindingBase):
            configs.insert(0, model.config)
            if isinstance(model, RunnableRetry):
                retries.append(model)
            model = model.bound
        return cls(chat, options, merge_configs(*configs), tuple(retries))

    @property
    def engine(self) -> SGLEngine:
        """The engine, as the model and what is bound to it set it; loads the weights."""
        return self.chat.configured(**self.options)

    @property
    def timeout_s(self) -> float | None:
        """Seconds for scoring one picture."""
        timeout: float | None = self.options.get("timeout", self.chat.timeout)
        return timeout

    @property
    def cache_salt(self) -> str | None:
        """Whose pictures are scored."""
        salt: str | None = self.options.get("cache_salt", self.chat.cache_salt)
        return salt

    def score(self, once: Callable[[RunnableConfig], AnswerScores], config: RunnableConfig) -> AnswerScores:
        """Calls ``once``, again where it fails and the model was to be retried.

        Raises:
            Exception: What the last try raised.
        """
        config = merge_configs(self.config, config)
        if not self.retries:
            return once(config)

        def attempt(_: object, config: RunnableConfig) -> AnswerScores | RequestCancelledError:
            try:
                return once(config)
            except RequestCancelledError as error:  # nobody waits for another try
                return error

        tried: Runnable[Any, Any] = RunnableLambda(attempt)
        for retry in reversed(self.retries):
            tried = retry.model_copy(update={"bound": tried, "kwargs": {}, "config": {}})
        scores: AnswerScores | RequestCancelledError = tried.invoke({}, config)
        if isinstance(scores, RequestCancelledError):
            raise scores
        return scores
