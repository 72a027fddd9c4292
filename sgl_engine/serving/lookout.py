"""How often threads that wait look whether they still have to: all of them together, not each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK_UP_S = 0.05
_TOGETHER = 20
"""So many threads look up every ``_LOOK_UP_S``. A thousand that did would take a core from the models."""


class Lookout:
    """Counts who waits, and says for how long each may before it looks up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Counts the thread as waiting within the context."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def interval_s(self, deadline: float | None = None) -> float:
        """Seconds until the next look; where a deadline is near, until just after it.

        Args:
            deadline: ``time.monotonic()`` value in seconds, or None.
        """
        interval = _LOOK_UP_S * max(1.0, self._waiting / _TOGETHER)
        if deadline is None:
            return interval
        return max(_LOOK_UP_S, min(interval, deadline - time.monotonic()))


LOOKOUT = Lookout()
"""Of the process: what looking up costs, it costs all of it."""
