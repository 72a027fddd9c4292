"""The engine's errors as LangChain knows them: each is both, so either ``except`` clause catches it.

Retry and fallback middleware reads ``is_retryable``: a bad picture stays bad, a slow or unreachable one may
not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions as core

import sgl_engine as ours

_KINDS: tuple[tuple[type[ours.SGLError], type[core.ModelError]], ...] = (
    # The first match counts, so subclasses come before their base.
    (ours.PromptTooLongError, core.ContextOverflowError),
    (ours.DeadlineError, core.ModelTimeoutError),
    (ours.ImageFetchError, core.ModelConnectionError),
    (ours.RequestError, core.ModelInvalidRequestError),
    (ours.HostedAccessError, core.ModelAuthenticationError),
    (ours.HostedLimitError, core.ModelRateLimitError),
    (ours.HostedRequestError, core.ModelInvalidRequestError),
    (ours.HostedServerError, core.ModelConnectionError),
    (ours.HostedAnswerError, core.ModelAPIError),
    (ours.HostedError, core.ModelError),
    (ours.OverloadedError, core.ModelRateLimitError),
    (ours.EngineError, core.ModelError),
    (ours.ConfigError, core.ModelInvalidRequestError),
    (ours.ModelNotFoundError, core.ModelNotFoundError),
    (ours.ModelError, core.ModelError),
)


@contextmanager
def as_langchain_errors() -> Iterator[None]:
    """Raises errors of the engine, within the context, as errors of both trees.

    ``RequestCancelledError`` stays as it is: nothing about the request or the model was wrong.
    """
    try:
        yield
    except ours.RequestCancelledError:
        raise
    except ours.SGLError as error:
        if isinstance(error, core.ModelError):  # of both trees already: contexts may be nested
            raise
        for kind, counterpart in _KINDS:
            if isinstance(error, kind):
                problem, remedy = (_in_our_words(text) for text in (error.problem, error.remedy))
                raise _both(counterpart, type(error))(problem, remedy=remedy) from error
        raise


def _in_our_words(text: str) -> str:
    """Puts the name that an option has in LangChain in place of the engine's name for it."""
    return text.replace("max_new_tokens", "max_tokens")


_made: dict[tuple[type[core.ModelError], type[ours.SGLError]], type[ours.SGLError]] = {}


def _both(counterpart: type[core.ModelError], kind: type[ours.SGLError]) -> type[ours.SGLError]:
    """Makes a class that inherits from both, under the name of the engine's; once for each pair."""

    # pickle looks classes up by module and name, and would not find one that is made here.
    def reduce(error: ours.SGLError) -> tuple[Any, ...]:
        return _rebuild, (counterpart, kind, error.problem, error.remedy)

    if (counterpart, kind) not in _made:
        namespace = {"__reduce__": reduce, "__doc__": kind.__doc__}
        _made[counterpart, kind] = type(kind.__name__, (counterpart, kind), namespace)
    return _made[counterpart, kind]


def _rebuild(
    counterpart: type[core.ModelError], kind: type[ours.SGLError], problem: str, remedy: str
) -> ours.SGLError:
    return _both(counterpart, kind)(problem, remedy=remedy)
