"""The routes of the page, beside those of the server: its files, what it can be set to, and questions."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from sgl_engine import RequestCancelledError, SGLEngine, SGLError
from sgl_engine.demo import PICTURES
from sgl_engine.playground.pictures import ALTERNATIVES, questions
from sgl_engine.playground.state import AskBody, PageState, read_state
from sgl_engine.playground.steps import ask
from sgl_engine.rankers import BASELINES, DEFAULT_RANKER
from sgl_engine.server import ServerSettings, ServerState, body_of, create_app

PAGE: Final = Path(__file__).with_name("page")
PREFIX: Final = "/playground"
log = logging.getLogger("sgl_engine.playground")
_HEADERS: Final = {
    # The browser itself refuses whatever is not of this server.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def create_playground(
    engine: SGLEngine | Callable[[], SGLEngine], settings: ServerSettings | None = None
) -> FastAPI:
    """Makes the ASGI app: the server's (``sgl_engine.server.create_app``), with the page at ``/``.

    Args:
        engine: A ready engine, or a function that loads one in the background; its large model is local.
        settings: The server's. With a key, the page asks its visitor for it.
    """
    settings = settings or ServerSettings()
    files = dict(_files())
    app = create_app(engine, replace(settings, open_paths=settings.open_paths | files.keys()))
    for path, file in files.items():
        app.get(path)(partial(_file, file))
    page = PageRoutes(app.state.sgl)
    app.get(f"{PREFIX}/setup")(page.setup)
    app.post(f"{PREFIX}/ask")(page.ask)
    return app


def _files() -> Iterator[tuple[str, Path]]:
    """Path -> file, of all that a browser loads without a key."""
    yield "/", PAGE / "index.html"
    for file in sorted(PAGE.iterdir()):
        yield f"{PREFIX}/{file.name}", file
    for name in ALTERNATIVES:
        yield f"{PREFIX}/pictures/{name}.png", PICTURES / f"{name}.png"


async def _file(file: Path) -> Response:
    return FileResponse(file, headers=_HEADERS)


class PageRoutes:
    """The handlers behind the page."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def setup(self, request: Request) -> JSONResponse:
        """What there is to choose from, and what the link says; 202 while the models are being loaded."""
        if not self._state.is_ready and self._state.failure is None:
            return JSONResponse({"loading": True}, 202)  # no error: the page waits for it
        return JSONResponse(describe(self._state.engine, dict(request.query_params)))

    async def ask(self, body: AskBody) -> Response:
        """Answers as server-sent events. What is wrong with the question has a status of its own."""
        engine, cancel = self._state.engine, threading.Event()
        events = await self._state.in_thread(partial(ask, engine, body, cancel))
        return StreamingResponse(
            self._stream(events, cancel), media_type="text/event-stream", headers=_HEADERS
        )

    async def _stream(self, events: Iterator[dict[str, Any]], cancel: threading.Event) -> AsyncIterator[str]:
        """Passes events on; a visitor who leaves stops the models within one token."""
        try:
            while (event := await self._state.in_thread(partial(next, events, None))) is not None:
                yield _line(event)
        except RequestCancelledError:
            return  # nobody listens
        except Exception as error:  # it ends this stream, and nothing else
            if not isinstance(error, SGLError):
                log.exception("A question of the page failed.")
            yield _line({"event": "error", "message": body_of(error)["error"]["message"]})
        finally:
            cancel.set()
            # ValueError: a thread is inside; it finds itself cancelled before its next token, and closes.
            with suppress(ValueError):
                events.close()  # type: ignore[attr-defined]  # a generator


def describe(engine: SGLEngine, query: dict[str, str]) -> dict[str, Any]:
    """What the page has to know before it asks anything."""
    rankers = {name: each for name, each in BASELINES.items() if name != DEFAULT_RANKER}
    pruning, layers = engine.config.pruning, engine.large.num_layers
    default = PageState(
        keep=pruning.keep_ratio, k=pruning.layer(layers), t=engine.config.exit.threshold, ranker=""
    )
    known = {"picture": ("", *ALTERNATIVES), "ranker": ("", *rankers)}
    state, problems = read_state(query, default, known)
    asked = questions()
    return {
        "small": engine.small.name,
        "large": engine.large.name,
        "layers": layers,
        "first_layer": engine.large.family.first_prunable_layer,
        "gallery": [
            {"name": name, "shows": shows, "questions": asked[name]} for name, shows in ALTERNATIVES.items()
        ],
        "rankers": [
            {"name": name, "does": (each.__doc__ or "").partition("\n")[0]} for name, each in rankers.items()
        ],
        "default": default.model_dump(),
        "state": state.model_dump(),
        "problems": problems,
    }


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"
