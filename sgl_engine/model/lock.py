"""A lock that knows its holder, and that can be waited for as long as somebody still wants what it guards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sgl_engine.errors import EngineError
from sgl_engine.serving.lookout import LOOKOUT


class ModelLock:
    """A re-entrant lock; one step of a model, or one use of a processor, at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: int | None = None

    @contextmanager
    def held(self, still_wanted: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the lock within the context.

        Args:
            still_wanted: Called now and then while waiting; what it raises ends the wait.
        """
        if not self._lock.acquire(blocking=False):
            with LOOKOUT.joined():
                while not self._lock.acquire(timeout=LOOKOUT.interval_s()):
                    still_wanted()
        before, self._holder = self._holder, threading.get_ident()
        try:
            yield
        finally:
            self._holder = before  # this thread, where it was entered before
            self._lock.release()

    @property
    def is_mine(self) -> bool:
        """Whether the current thread holds the lock."""
        return self._holder == threading.get_ident()

    def check_not_mine(self, name: str) -> None:
        """Raises EngineError where the current thread holds the lock, and would wait for itself.

        Args:
            name: Of the model.
        """
        # A worker could not have the model before this thread gives it back, after the answer.
        if self.is_mine:
            raise EngineError(
                f"This thread holds {name} exclusively, and so would wait for itself.",
                remedy="Ask the engine outside of VLM.exclusive().",
            )
