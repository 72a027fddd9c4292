"""A blocking iterator, read asynchronously: each step in a worker thread, never in the event loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

Result = TypeVar("Result")
_WORKERS = 64


@cache
def _pool() -> ThreadPoolExecutor:
    """Of our own: the loop's default one is small, and other libraries wait for it too."""
    return ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="chat-sgl")


async def in_thread(call: Callable[[], Result]) -> Result:
    """Runs ``call`` in a worker thread, with the caller's context variables."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_pool(), partial(context.run, call))
