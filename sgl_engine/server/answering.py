"""Answers to clients: work that ends when its client leaves, and JSON that holds whatever a client sent."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse

Result = TypeVar("Result")


class EscapedJSON(JSONResponse):
    """JSON in ASCII: half a surrogate pair, which a client's JSON may hold, goes back as it came."""

    def render(self, content: Any) -> bytes:
        """Writes it."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


async def unless_gone(work: Coroutine[Any, Any, Result], cancel: threading.Event, request: Request) -> Result:
    """Waits for work; a client that leaves meanwhile ends it within one token, by ``cancel``."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            cancel.set()
        return await working
    except asyncio.CancelledError:
        cancel.set()
        raise
    finally:
        leaving.cancel()


async def _left(request: Request) -> None:
    """Returns once the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
