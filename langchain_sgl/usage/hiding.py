"""Keeps pictures out of traces: what a trace records of messages, with a word in each picture's place.

The middleware of this package records no messages (``TracePolicy``), and the child runs hold no pictures. But
LangChain itself records what an agent, its model node and its chat model were given, and ``TracePolicy`` does
not reach those runs: LangSmith's client does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage

from langchain_sgl.chat.image_blocks import is_image

_BREAK = r"[ \t]*(?:\r?\n|(?:\\r)?\\n)[ \t]*"  # of a line, in a text or in JSON
_DATA_URL = re.compile(
    rf"""
    data:image\\?/[\w.+-]+ (?:\s*;\s*[\w.+-]+(?:="?[\w.+-]+"?)?)* \s*,(?:\\[rn]|\s)*
    (?:
        <svg\b.*?</svg\s*>                      # as it is
        | %3Csvg\b.*?%3C(?:/|%2F)svg(?:%20)*%3E # percent-encoded
        | (?:[\w+/=%-]|\\/)+                    # base64, and its further lines: long but for the last
          (?:{_BREAK}(?:[\w+/-]|\\/){{40,}}=*)* (?:{_BREAK}[\w+/-]*={{1,2}})?
        | [^\s"'<>()\[\]{{}}]+
    )
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_FIELDS = (
    *("content", "additional_kwargs", "response_metadata", "artifact"),
    *("tool_calls", "invalid_tool_calls", "tool_call_chunks"),
    *("page_content", "metadata"),
)


def hide_pictures(payload: Any) -> Any:
    """Replaces every picture in what a run was given, or gave: a copy where there is one.

    Picture blocks of every form are replaced, in messages and in plain JSON, with addresses and paths in
    them; and so are data URLs, wherever they stand: in texts, in tool calls, in artifacts of tools, in
    documents. Of bytes nothing is told.

    Args:
        payload: Inputs or outputs of a run, as LangSmith's client and ``TracePolicy`` hand them over.

    Example:
        ```python
        from langsmith import Client

        client = Client(anonymizer=hide_pictures)
        tracer = LangChainTracer(client=client)
        ```
    """
    if isinstance(payload, BaseMessage | Document):
        fields = (name for name in _FIELDS if getattr(payload, name, None))
        return payload.model_copy(update={name: hide_pictures(getattr(payload, name)) for name in fields})
    if isinstance(payload, Mapping):
        if isinstance(payload.get("type"), str) and is_image(payload):  # a schema's type may be a list
            return {"type": "text", "text": "[picture]"}
        return {name: hide_pictures(value) for name, value in payload.items()}
    if isinstance(payload, list | tuple):
        return [hide_pictures(each) for each in payload]
    if isinstance(payload, str):
        return _DATA_URL.sub("[picture]", payload)
    return "[bytes]" if isinstance(payload, bytes | bytearray) else payload
