"""Runs a model's chat template so that it can be stopped.

A template is a program, and comes with the model: one may loop for ever. It runs in a thread of its own, into
which an exception is thrown when nobody waits any more; that ends every loop, as loops are Python's. It does
not end what is one long step inside the interpreter, such as a power of huge numbers.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunningError
from contextlib import suppress
from typing import TypeVar

from sgl_engine.errors import ProcessorError

MAX_S = 30.0
"""Longest that a template may take: it only ends what would hang."""
_LOOK_UP_S = 0.02
_PATIENCE_S = 1.0

Result = TypeVar("Result")


class _Stop(BaseException):
    """Thrown into the thread; no ``except Exception`` of a template's catches it."""


def interruptible(work: Callable[[], Result], still_wanted: Callable[[], None]) -> Result:
    """What ``work`` returns, or raises.

    Args:
        work: Python code.
        still_wanted: Called now and then; what it raises ends the work.

    Raises:
        ProcessorError: It took longer than any template does.
    """
    done: Future[Result] = Future()

    def run() -> None:
        with suppress(_Stop):  # which may come when the work is done already
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  # is raised where it is waited for
                if not done.done():
                    done.set_exception(error)

    thread = threading.Thread(target=run, name="sgl-template", daemon=True)
    thread.start()
    ends = time.monotonic() + MAX_S
    try:
        while True:
            try:
                return done.result(timeout=_LOOK_UP_S)
            except StillRunningError as error:
                if done.done() and done.exception() is error:  # the work's own error
                    raise
                still_wanted()
                if not done.done():
                    _check_time(ends)
    finally:
        _stop(thread, done)


def _check_time(ends: float) -> None:
    if time.monotonic() > ends:
        raise ProcessorError(
            f"The chat template was not done after {MAX_S:g} s.", remedy="Use a model whose template ends."
        )


def _stop(thread: threading.Thread, done: Future[Result]) -> None:
    """Throws ``_Stop`` into a thread that still works; leaves it behind where that does not end it."""
    ends = time.monotonic() + _PATIENCE_S
    # A thread that is done ends by itself: what is thrown into it then would hit nobody's work.
    while not done.done() and thread.is_alive() and time.monotonic() < ends:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
        thread.join(_LOOK_UP_S)
