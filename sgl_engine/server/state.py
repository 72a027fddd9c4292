"""The engine behind a server, from before it is loaded until the last answer is out."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from PIL import Image

from sgl_engine import Request, SGLEngine
from sgl_engine.server.errors import HTTPError

Result = TypeVar("Result")
SPARE_THREADS = 8
"""For requests that are refused because the queue is full, which takes a thread to find out."""

log = logging.getLogger("sgl_engine.server")


class ServerState:
    """Loads the engine beside the server, and counts who is inside.

    Args:
        source: A ready engine, or what loads one.

    Attributes:
        is_ending: Whether nobody is let in any more.
        failure: Why there will be no engine; None while there may.
        on_failure: Called, in another thread, once ``failure`` is known.
        loop: The event loop that serves; None before ``load``.
    """

    def __init__(self, source: SGLEngine | Callable[[], SGLEngine]) -> None:
        self.is_ending = False
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._source = source
        self._engine: SGLEngine | None = None
        self._threads: CapacityLimiter | None = None
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def load(self) -> None:
        """Loads the engine and runs both models once, in a thread; until then ``engine`` raises."""
        self.loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, name="sgl-load", daemon=True).start()

    def _load(self) -> None:
        try:
            if isinstance(self._source, SGLEngine):
                engine = self._source  # its owner has seen it run
            else:
                engine = self._source()
                warm_up(engine)
        except Exception as error:
            self.failure = error
            log.exception("The models cannot be used.")
            self.on_failure()
            return
        self._engine = engine

    @property
    def is_ready(self) -> bool:
        """Whether answers can be had now."""
        return self._engine is not None and not self.is_ending

    @property
    def engine(self) -> SGLEngine:
        """The engine.

        Raises:
            HTTPError: It is not loaded yet, or cannot be.
        """
        if self.failure is not None:
            raise HTTPError(503, "The models cannot be used; the server's log says why.", code="not_loaded")
        if self._engine is None:
            raise HTTPError(503, "The models are being loaded. Ask again in a moment.", code="loading")
        return self._engine

    async def in_thread(self, call: Callable[[], Result]) -> Result:
        """Runs ``call`` in one of as many threads as there may be requests, so that none waits for one.

        Threads are made when they are needed; those that were idle for a while end when another is used. A
        caller that is cancelled does not wait for its thread.
        """
        if self._threads is None:
            self._threads = CapacityLimiter(self.engine.config.scheduler.max_queue + SPARE_THREADS)
        return await run_sync(call, abandon_on_cancel=True, limiter=self._threads)

    @contextmanager
    def counted(self, *, is_open: bool) -> Iterator[None]:
        """Counts a request while it is inside; what needs no key does not hold the server's end up."""
        if is_open:
            yield
            return
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle.set()

    async def drained(self, within_s: float) -> bool:
        """Lets nobody in any more, and waits for those inside; tells whether all have left in time."""
        self.is_ending = True
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Drops what is still under way."""
        self.is_ending = True
        if self._engine is not None and self._engine is not self._source:
            self._engine.close(wait=False)


def warm_up(engine: SGLEngine) -> None:
    """Has each local model say one token about a grey square: weights that cannot run fail now."""
    both = engine.with_config(engine.config.escalating("never" if engine.hosted else "always"))
    both.run(Request.ask("?", Image.new("RGB", (64, 64), "grey"), max_new_tokens=1))
