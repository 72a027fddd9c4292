"""OpenAI's batch files: a line for each request to ``/v1/chat/completions``, answered as the server would.

What is wrong with a body comes back as the response that the server gives, with its status. A line that is no
request at all has no response, and an ``error``; OpenAI would refuse the whole file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from sgl_engine import Request, Response, SGLEngine
from sgl_engine.batch.forms import BadRowError, Json, Written, to_line
from sgl_engine.batch.inputs import Rows
from sgl_engine.evaluation.columns import RawRow
from sgl_engine.server import chat, errors
from sgl_engine.server.fields import ChatBody
from sgl_engine.server.settings import ServerSettings

URL: Final = "/v1/chat/completions"
_LOOKED_AT = 100
_OK = 200


class EnvelopeError(BadRowError):
    """A line that is no request: what stands around the body is missing or wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_openai(rows: Rows) -> bool:
    """Whether an input is such a file: told by the first line that can be read."""
    for index in range(min(len(rows), _LOOKED_AT)):
        row = rows[index]
        if row.problem is None:
            return "custom_id" in row.values and "body" in row.values
    return False


def repeated_ids(rows: Rows) -> frozenset[int]:
    """Rows whose ``custom_id`` an earlier one has: nobody could tell their answers apart."""
    seen: set[str] = set()
    repeated = []
    for index in range(len(rows)):
        given = rows[index].values.get("custom_id")
        if isinstance(given, str):
            if given in seen:
                repeated.append(index)
            seen.add(given)
    return frozenset(repeated)


@dataclass(frozen=True)
class OpenAIForm:
    """Lines of ``custom_id``, ``method``, ``url`` and ``body``.

    Attributes:
        run: Begins the ids of answers.
        settings: The names of models that a body may give.
        repeated: Rows that are refused, as ``repeated_ids`` says.
    """

    run: str
    settings: ServerSettings
    repeated: frozenset[int] = frozenset()
    name = "openai"

    def head(self, index: int, row: RawRow) -> Json:
        """Its number and id, and what the answer's form depends on."""
        given, body = row.values.get("custom_id"), row.values.get("body")
        body = body if isinstance(body, Mapping) else {}
        model = body.get("model")
        return {
            "row": index,
            "custom_id": given if isinstance(given, str) else None,
            "model": model if isinstance(model, str) else self.settings.model,
            "logprobs": _is_true(body.get("logprobs")),
        }

    def request(self, engine: SGLEngine, head: Json, row: RawRow) -> tuple[SGLEngine, Request]:
        """Reads a line as the server reads a body."""
        if head["row"] in self.repeated:
            told = f"The custom_id {head['custom_id']!r:.100} stands on an earlier line."
            raise EnvelopeError("duplicate_custom_id", told)
        body = _body(row)
        try:
            read = ChatBody.model_validate(body)
        except ValidationError as error:
            raise errors.first_fault([dict(fault) for fault in error.errors()], body) from error
        if read.stream:
            raise errors.HTTPError(
                400, "A batch has no streams. Leave stream out.", code="invalid_value", param="stream"
            )
        chosen = chat.engine_for(engine, read, self.settings)
        request = chat.to_request(read, self.settings, since=time.monotonic(), cancel=threading.Event())
        return chosen, request

    def answered(self, head: Json, response: Response) -> Written:
        """The body that the server would answer, its report under ``sgl``."""
        writer = chat.Writer(head["model"], with_logprobs=head["logprobs"])
        line = self._line(head, self._response(head, _OK, writer.whole(response)), None)
        return Written(line, escalated=response.report.escalated)

    def failed(self, head: Json, error: Exception) -> Written:
        """The response that the server would give; of a line that is no request, an error."""
        if isinstance(error, EnvelopeError):
            told = {"code": error.code, "message": str(error)}
            return Written(self._line(head, None, told), failed=True)
        response = self._response(head, errors.status_of(error), errors.body_of(error))
        return Written(self._line(head, response, None), failed=True)

    def _response(self, head: Json, status: int, body: Json) -> Json:
        return {"status_code": status, "request_id": f"req_{self.run}-{head['row']}", "body": body}

    def _line(self, head: Json, response: Json | None, error: Json | None) -> bytes:
        name = f"batch_req_{self.run}-{head['row']}"
        return to_line({"id": name, "custom_id": head["custom_id"], "response": response, "error": error})

    def read(self, line: Mapping[str, Any]) -> tuple[int, bool]:
        """The row's number, and whether it failed."""
        response = line["response"]
        number = int(str(line["id"]).rpartition("-")[2])
        return number, response is None or response["status_code"] != _OK


def _is_true(given: Any) -> bool:
    """A switch as ``ChatBody`` reads it; one that it refuses is none, and its row is refused later."""
    try:
        return TypeAdapter(bool).validate_python(given)
    except ValidationError:
        return False


def _body(row: RawRow) -> Json:
    """What a line asks.

    Raises:
        EnvelopeError: It asks nothing.
    """
    if row.problem is not None:
        raise EnvelopeError("invalid_json_line", f"{row.name} is {row.problem}.")
    given = row.values
    if not isinstance(given.get("custom_id"), str) or not given["custom_id"]:
        raise EnvelopeError("missing_required_parameter", f"{row.name} has no custom_id that is a text.")
    if given.get("method", "POST") != "POST":
        raise EnvelopeError("invalid_method", f"The method is {given['method']!r:.60}. Use POST.")
    if given.get("url", URL) != URL:
        raise EnvelopeError("invalid_url", f"The url is {given['url']!r:.60}. Use {URL}.")
    body = given.get("body")
    if not isinstance(body, dict):
        raise EnvelopeError("invalid_body", f"The body is of type {type(body).__name__}. Send an object.")
    return body
