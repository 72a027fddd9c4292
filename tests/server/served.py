"""A server on loopback, in a thread of its own, and what its tests ask."""

import base64
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from PIL import Image

fastapi = pytest.importorskip("fastapi", reason="needs the extra server")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra server")

from sgl_engine.server import ServerSettings, create_app  # noqa: E402  # after the check that it is installed

QUESTION = [{"role": "user", "content": "What is it?"}]


def picture_url(color: str = "red", size: int = 64) -> str:
    """A picture as a data: URL."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def about(url: str, text: str = "What is it?") -> list[dict[str, Any]]:
    """A question about a picture."""
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


class Running:
    """A server that runs: where, and what is inside."""

    def __init__(self, url: str, server: Any, app: Any) -> None:
        self.url, self.server, self.app = url, server, app
        self.client = httpx.Client(base_url=url, timeout=120, trust_env=False)

    def chat(self, messages: Any = QUESTION, **fields: Any) -> httpx.Response:
        """Asks; `headers` go with it."""
        headers = fields.pop("headers", {})
        return self.client.post(
            "/v1/chat/completions", json={"messages": messages, **fields}, headers=headers
        )

    def wait_ready(self) -> None:
        """Until the engine is loaded; each try waits for an answer, and not for a clock."""
        while self.client.get("/ready").status_code != 200:
            assert self.app.state.sgl.failure is None


@contextmanager
def serving(
    engine: Any, settings: ServerSettings | None = None, *, wait: bool = True, make_app: Any = create_app
) -> Iterator[Running]:
    """Serves on a free port until the end of the block."""
    app = make_app(engine, settings)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    running = Running(f"http://127.0.0.1:{listening.getsockname()[1]}", server, app)
    try:
        if wait:
            running.wait_ready()
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join(60)
        listening.close()
