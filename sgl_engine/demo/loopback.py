"""The bundled large model behind OpenAI's interface, on this machine: a hosted model for examples and tests.

    with serve() as server:
        engine = SGLEngine(demo_model("small"), OpenAIModel(server.base_url, server.model))

It answers one question at a time, by HTTP on a loopback address or a Unix socket, and knows of the interface
what ``OpenAIModel`` asks: texts and pictures, streamed, with usage. It is no server for anybody else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, TCPServer, ThreadingMixIn, UnixStreamServer
from typing import Any

from sgl_engine import VLM, EngineConfig, ImagePart, Message, Request, SGLEngine, SGLError
from sgl_engine.demo import demo_model

__all__ = ["Loopback", "serve"]


class _TcpServer(ThreadingMixIn, TCPServer):
    daemon_threads = True


class _UnixServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@dataclass(frozen=True)
class Loopback:
    """A server that is running.

    Attributes:
        base_url: For ``OpenAIModel``.
        model: The model's name.
        bodies: What it was asked, in order; pictures are in it.
    """

    base_url: str
    model: str
    bodies: list[dict[str, Any]]


@contextmanager
def serve(vlm: VLM | None = None, *, socket: Path | None = None) -> Iterator[Loopback]:
    """Runs the server within the context.

    Args:
        vlm: Which model answers; None is the bundled large one.
        socket: A Unix socket to listen on; None is a free port of 127.0.0.1.
    """
    vlm = vlm or demo_model("large")
    bodies: list[dict[str, Any]] = []
    engine = SGLEngine(vlm, vlm, EngineConfig().escalating("never"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            status, answer = _answer(engine, bodies[-1])
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if status == 200 else "application/json")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Says nothing on the terminal."""

        def address_string(self) -> str:
            return "loopback"

    server: BaseServer
    if socket is None:
        server = _TcpServer(("127.0.0.1", 0), Handler)
        base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    else:
        server, base_url = _UnixServer(str(socket), Handler), "http://loopback/v1"
    with server, engine:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield Loopback(base_url, vlm.name, bodies)
        finally:
            server.shutdown()
            thread.join()


def _answer(engine: SGLEngine, body: dict[str, Any]) -> tuple[int, bytes]:
    """Status and body of the answer to one question."""
    try:
        asked = Request(
            tuple(_message(each) for each in body["messages"]),
            max_new_tokens=body.get("max_tokens"),
            temperature=body.get("temperature"),
        )
        answer = engine.run(asked)
    except SGLError as error:
        return 400, json.dumps({"error": {"message": str(error)}}).encode()
    usage = {
        "prompt_tokens": answer.report.small_input_tokens,
        "completion_tokens": answer.report.small_output_tokens,
    }
    model = engine.small.name
    chunks = (
        {"model": model, "choices": [{"index": 0, "delta": {"content": answer.text}}]},
        {"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish_reason}]},
        {"model": model, "choices": [], "usage": usage},
    )
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return 200, "".join([*lines, "data: [DONE]\n\n"]).encode()


def _message(message: dict[str, Any]) -> Message:
    content = message["content"]
    blocks: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    parts = [
        block["text"] if block["type"] == "text" else ImagePart(block["image_url"]["url"]) for block in blocks
    ]
    return Message(message["role"], tuple(parts))
