"""The process: uvicorn around the app, which lets answers under way end before it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import disable_created_metrics

from sgl_engine import SGLEngine
from sgl_engine.server.app import create_app
from sgl_engine.server.settings import ServerSettings

log = logging.getLogger("sgl_engine.server")


class DrainingServer(uvicorn.Server):
    """On the first signal new requests get 503 and streams go on; on the second, or in time, it ends.

    uvicorn by itself would close its sockets at once, and new clients could not tell why.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float) -> None:
        super().__init__(config)
        self._app, self._drain_s = app, drain_s
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Notes the event loop, which signals reach from outside of it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end."""
        if self._draining is not None or self._loop is None:
            super().handle_exit(sig, frame)
            return
        log.info("Ending: no new requests; up to %g s for those under way.", self._drain_s)
        self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        await self._app.state.sgl.drained(self._drain_s)
        # Not by uvicorn's own handler, which would raise the signal again at the end: all is in order.
        self.should_exit = True


def serve(
    engine: SGLEngine | Callable[[], SGLEngine],
    settings: ServerSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    make_app: Callable[[SGLEngine | Callable[[], SGLEngine], ServerSettings], FastAPI] = create_app,
) -> None:
    """Serves until a signal ends it.

    Args:
        engine: A ready engine, or a function that loads one.
        settings: What can be set; None is ``ServerSettings()``.
        host: Where to listen.
        port: The same.
        make_app: Makes the app; a page with more routes has one of its own.

    Raises:
        ConfigError: Others could reach it, and it asks for no key.
        ModelError: The models cannot be loaded, or whatever else loading them raised.
    """
    settings = settings or ServerSettings()
    settings.check_host(host)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second gauge for every counter, which nobody reads
    app = make_app(engine, settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        # Longer than clients keep an idle connection: closed by both at once, it would lose a request.
        timeout_keep_alive=75,
        # What is left after the drain is cut off: it has had its time.
        timeout_graceful_shutdown=1,
    )
    server = DrainingServer(config, app, settings.drain_s)
    # Whoever started the process has to hear of it: it would answer 503 for ever.
    app.state.sgl.on_failure = partial(setattr, server, "should_exit", True)
    server.run()
    if app.state.sgl.failure is not None:
        raise app.state.sgl.failure
