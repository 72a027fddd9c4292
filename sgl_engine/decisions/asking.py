"""One question about a state -> the request for it, or why there is none. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sgl_engine import DeadlineError, Message, Request, RequestCancelledError, RequestError
from sgl_engine.decisions.answers import RefusedAnswer
from sgl_engine.decisions.forms import PutQuestion


def refused(error: Exception) -> tuple[RefusedAnswer, None]:
    """The answer to a question that could not be put.

    Raises:
        Exception: ``error``, where it says nothing about the question: it came too late, is not wanted any
            more, or the engine cannot take it.
    """
    if not isinstance(error, RequestError) or isinstance(error, (DeadlineError, RequestCancelledError)):
        raise error
    return RefusedAnswer(str(error), error), None


def ask_about(request: Request, put: PutQuestion) -> Request:
    """The request for one question: its content after the state."""
    [state] = request.messages
    between = ("\n\n",) if any(isinstance(part, str) and part.strip() for part in state.content) else ()
    content = (*state.content, *between, *put.content)
    return replace(request, messages=(Message("user", _joined_texts(content)),))


def _joined_texts(content: Sequence[Any]) -> tuple[Any, ...]:
    """Texts that follow each other as one: templates may put something between two."""
    joined: list[Any] = []
    for part in content:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)
