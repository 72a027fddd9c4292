"""Servers with OpenAI's interface, in place of the network: scripted ones, and one on a Unix socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Event, Thread
from typing import Any

import httpx

from sgl_engine import OpenAIModel

KEY = "sk-secret-0123456789"
Answer = httpx.Response | Exception | Callable[[], Any]


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a stream."""
    return {
        "object": "chat.completion.chunk",
        "model": "big-2026-10",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}],
    }


def usage(given: int = 1000, written: int = 5, cached: int = 0, thought: int = 0) -> dict[str, Any]:
    """The last chunk of a stream."""
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": given,
            "completion_tokens": written,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": thought},
        },
    }


def events(*chunks: dict[str, Any], done: bool = True) -> bytes:
    """Chunks as server-sent events."""
    lines = [f"data: {json.dumps(each)}\n\n" for each in chunks]
    return "".join([*lines, *(["data: [DONE]\n\n"] if done else [])]).encode()


def says(*pieces: str, finish: str = "stop", **numbers: int) -> httpx.Response:
    """A stream that says something."""
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in pieces)]
    return stream(*chunks, chunk({}, finish), usage(**numbers))


def stream(*chunks: dict[str, Any], done: bool = True) -> httpx.Response:
    return httpx.Response(
        200, content=events(*chunks, done=done), headers={"content-type": "text/event-stream"}
    )


class Script:
    """Gives its answers one after the other, and keeps what it was asked.

    Attributes:
        bodies: The bodies of the requests, as JSON.
        headers: Their headers.
        left: Set once a question was left before its answer.
    """

    def __init__(self, *answers: Answer) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.asked, self.left = Event(), Event()
        self._answers = list(answers)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.headers.append(request.headers)
        self.asked.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if callable(answer):
            try:
                answer = await answer()
            except asyncio.CancelledError:
                self.left.set()
                raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def model(self, **options: Any) -> OpenAIModel:
        """A model that asks this script."""
        return OpenAIModel(
            "https://host.example/v1",
            "big",
            api_key=KEY,
            transport=httpx.MockTransport(self),
            **{"max_retries": 2, **options},
        )


async def never() -> httpx.Response:
    """A server that says nothing."""
    await asyncio.Event().wait()
    raise AssertionError


class Pieces(httpx.AsyncByteStream):
    """A body that comes in pieces, and may break off by an error or stop for ever."""

    def __init__(self, *pieces: bytes | Exception | None) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if piece is None:
                await asyncio.Event().wait()
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def unix_server(folder: Path, answer: Callable[[dict[str, Any]], Sequence[bytes]]) -> Iterator[OpenAIModel]:
    """A real HTTP server on a Unix socket; each part of an answer is sent by itself."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            parts = answer({**body, "headers": dict(self.headers)})
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

        def address_string(self) -> str:
            return "unix"

    path = folder / "server.sock"
    with _Server(str(path), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        with OpenAIModel("http://unix/v1", "big", api_key=KEY, transport=transport) as model:
            yield model
        server.shutdown()
        thread.join()
