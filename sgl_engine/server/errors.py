"""Every error of this package -> one HTTP status, and OpenAI's body."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sgl_engine import (
    BudgetSpentError,
    ConfigError,
    DeadlineError,
    EngineClosedError,
    HostedError,
    HostedLimitError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    RequestCancelledError,
    RequestError,
    SGLError,
)

CLIENT_GONE: Final = 499
FAILED: Final = 500
UNFORESEEN: Final = "internal_error"
RETRY_AFTER_S: Final = 1

_STATUS: Final[tuple[tuple[type[SGLError], int], ...]] = (
    (DeadlineError, 408),
    (RequestCancelledError, CLIENT_GONE),
    (RequestError, 400),
    (ConfigError, 400),
    (OverloadedError, 429),
    (BudgetSpentError, 429),
    (HostedLimitError, 429),
    (HostedError, 502),
    (EngineClosedError, 503),
    (SGLError, FAILED),
)
"""The first row that fits counts."""
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    CLIENT_GONE: "client_closed_request",
    502: "bad_gateway",
    503: "service_unavailable",
}
_CODES: Final[dict[type[SGLError], str]] = {
    PromptTooLongError: "context_length_exceeded",
    InvalidRequestError: "invalid_value",
    OverloadedError: "rate_limit_exceeded",
}
"""OpenAI's, where it has one; else the error's name is the code."""
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


class HTTPError(Exception):
    """What is wrong with a request as HTTP: its key, path, body or model."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def status_of(error: Exception) -> int:
    """The status of an answer that is this error; 500 for what nobody foresaw."""
    if isinstance(error, HTTPError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), FAILED)


def code_of(error: Exception) -> str:
    """A word for programs: ``corrupt_image``."""
    if isinstance(error, HTTPError):
        return error.code
    if not isinstance(error, SGLError):
        return UNFORESEEN
    name = type(error).__name__.removesuffix("Error")
    return _CODES.get(type(error), _WORDS.sub("_", name).lower())


def body_of(error: Exception) -> dict[str, Any]:
    """OpenAI's body. Of errors that nobody foresaw it says nothing: their texts may hold anything."""
    known = isinstance(error, HTTPError | SGLError)
    status = status_of(error)
    return {
        "error": {
            "message": str(error) if known else "The server failed; its log says why.",
            "type": _TYPES.get(status, "server_error"),
            "param": getattr(error, "param", None),
            "code": code_of(error),
        }
    }


def headers_of(status: int) -> dict[str, str]:
    """What goes with a status: when to try again, and how to say who one is."""
    if status in {429, 503}:
        return {"retry-after": str(RETRY_AFTER_S)}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


def first_fault(faults: Sequence[Mapping[str, Any]], body: Any) -> HTTPError:
    """What pydantic finds wrong with a body as OpenAI's 400: the first thing, by its path in the body.

    Args:
        faults: ``ValidationError.errors()``.
        body: What was read.
    """
    wrong = faults[0]
    is_a_name = wrong["type"] in {"missing", "extra_forbidden"}
    where = _place(wrong["loc"], body, names_last=is_a_name) or None
    if wrong["type"] == "extra_forbidden":
        return HTTPError(
            400,
            f"Unrecognized request argument supplied: {where}",
            code="unknown_parameter",
            param=where,
        )
    return HTTPError(
        400,
        f"The body cannot be read at {where or 'its top'}: {wrong['msg']}.",
        code="invalid_value",
        param=where,
    )


def _place(steps: Sequence[Any], body: Any, *, names_last: bool) -> str:
    """The path to what is wrong, ``questions.2.choices``; which kinds were tried there is left out.

    Args:
        steps: Names, numbers, and kinds.
        body: What the client sent.
        names_last: Whether the last step is a field's name though the body has no such field.
    """
    place: list[str] = []
    for number, step in enumerate(steps, start=1):
        inside = isinstance(body, dict) and step in body
        inside = inside or (isinstance(body, list) and isinstance(step, int) and step < len(body))
        # A field that is missing is named by the last step, after which there is nothing.
        if inside or (names_last and number == len(steps) and isinstance(body, dict)):
            place.append(str(step))
        if inside:
            body = body[step]
    return ".".join(place)
