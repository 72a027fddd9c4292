"""Who may ask what, before anything is parsed: an ASGI layer around the app.

Plain ASGI, because Starlette's middleware classes hide from a handler that its client has left.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from sgl_engine.server.errors import FAILED, HTTPError, body_of, headers_of, status_of
from sgl_engine.server.metrics import Metrics
from sgl_engine.server.settings import LOOPBACK, ServerSettings
from sgl_engine.server.state import ServerState

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

REQUEST_ID: Final = b"x-request-id"

log = logging.getLogger("sgl_engine.server")


class Guard:
    """Lets requests through that have the key and a body that is not too long; gives each an id and a line.

    Lines of the log are JSON: time, id, method, path, status, milliseconds; no texts, pictures or keys.
    """

    def __init__(self, app: App, settings: ServerSettings, state: ServerState, metrics: Metrics) -> None:
        self._app, self._settings, self._state, self._metrics = app, settings, state, metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, is_open = dict(scope["headers"]), scope["path"] in self._settings.open_paths
        request_id = _request_id(headers)
        started = time.perf_counter()
        status: int | None = None

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (REQUEST_ID, request_id.encode())]}
            await send(message)

        try:
            with self._state.counted(is_open=is_open):
                body = await self._admitted(scope, headers, receive)
                await self._app(scope, _replayed(body, receive), tagged)
        except Exception as error:
            # What nobody foresaw ends one request; its cause goes to the log, and not to the client.
            if status_of(error) == FAILED:
                log.exception("The request %s failed.", request_id)
            if status is None:
                await answer(tagged, error)
        finally:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1e3 * (time.perf_counter() - started), 1),
            }
            # What a cluster asks every second is no news.
            log.log(logging.DEBUG if is_open else logging.INFO, json.dumps(line))

    async def _admitted(self, scope: Message, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body of a request that may come in; a refusal is counted here, as no route hears of it."""
        try:
            self._check(scope, headers)
            return await self._body(headers, receive)
        except HTTPError as error:
            self._metrics.errors.labels(error.code).inc()
            raise

    def _check(self, scope: Message, headers: Mapping[bytes, bytes]) -> None:
        """Raises HTTPError without the key, under a foreign name, and while the server is ending."""
        if scope["path"] in self._settings.open_paths:
            return
        key = self._settings.api_key
        if key is None and _is_local(scope) and not _is_own_name(headers.get(b"host", b"").decode("latin-1")):
            raise HTTPError(
                400,
                "Without a key, this server answers only under localhost or an address. Ask at 127.0.0.1, "
                "or set a key.",
                code="foreign_host",
            )
        if key is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            wanted = key.get_secret_value().encode()
            # Compared in constant time, whatever was sent.
            if not hmac.compare_digest(given.strip(), wanted) or scheme.lower() != b"bearer":
                raise HTTPError(
                    401,
                    "The key is missing or wrong. Send it as Authorization: Bearer ...",
                    code="invalid_api_key",
                )
        if self._state.is_ending:
            raise HTTPError(503, "The server is ending. Ask another one, or ask again.", code="ending")

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Reads the body, as far as it may go: a length that is announced counts before the first byte."""
        most = self._settings.max_body_bytes
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > most:
            raise _too_long(int(announced), most)
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await _read(receive, most)
        except TimeoutError:
            raise HTTPError(
                408,
                f"The body did not come within {self._settings.body_timeout_s:g} s. Send it faster.",
                code="slow_body",
            ) from None


def _is_local(scope: Message) -> bool:
    """Whether the connection came in on loopback, where a browser of this machine has access."""
    return (scope.get("server") or ("",))[0] in LOOPBACK


def _is_own_name(host: str) -> bool:
    """Whether a ``Host`` is this machine's, and no name of a page elsewhere that was made to point here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in {"", "localhost"} or name.endswith(".localhost") or bool(ip_address(name))
    except ValueError:
        return False


async def _read(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPError(499, "The client left before its body had come.", code="client_gone")
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_long(len(body), most)
        if not message.get("more_body", False):
            return bytes(body)


def _too_long(size: int, most: int) -> HTTPError:
    return HTTPError(
        413,
        f"The body has {size} bytes or more; the limit is {most}. Send fewer or smaller pictures.",
        code="body_too_long",
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that hands the body over first, and then whatever comes: that the client has left."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's, where it is one that a log and a header can hold; else a new one."""
    given = headers.get(REQUEST_ID, b"").decode("ascii", "replace")
    is_fit = 0 < len(given) <= 128 and given.isprintable() and given.isascii()
    return given if is_fit else uuid.uuid4().hex


async def answer(send: Send, error: Exception) -> None:
    """Sends an error as the whole answer."""
    body, status = json.dumps(body_of(error)).encode(), status_of(error)
    named = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(status)}
    headers = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
