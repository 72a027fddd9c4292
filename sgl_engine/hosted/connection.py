"""HTTP to a model's server: one thread for all connections, repetitions with patience, errors of ours.

Callers wait in threads of their own. A thread that is inside of ``recv`` cannot be woken, a task can: so the
connections live in an event loop, in one thread for the whole process, and a question that is not wanted any
more is cancelled there, which closes its connection at once.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

from sgl_engine.errors import (
    HostedAccessError,
    HostedAnswerError,
    HostedError,
    HostedLimitError,
    HostedRequestError,
    HostedServerError,
)

if TYPE_CHECKING:
    import httpx

_LOOK_UP_S = 0.05  # how often a waiting thread looks whether the answer is still wanted
_MOST_TEXT = 300  # characters of what a server says in a message
_BACK_OFF_S, _MOST_BACK_OFF_S = 0.5, 8.0
_REPEATED = frozenset({408, 409, 425, 429})  # beside 5xx: asked again, the answer may be another

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""Process id -> its loop: after a fork, the child's is another."""


def event_loop() -> asyncio.AbstractEventLoop:
    """The process's loop for connections; its thread starts with the first one, and keeps nobody waiting."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sgl-connections", daemon=True).start()
        return loop


def read_lines(
    lines: Callable[[], AsyncIterator[str]], still_wanted: Callable[[], None]
) -> Generator[str, None, None]:
    """Reads lines that a task in the loop gets, and looks meanwhile whether they are wanted.

    Args:
        lines: Makes the iterator, in the loop.
        still_wanted: Called every few milliseconds, and after every line; what it raises ends the task.
    """
    mail: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    async def get() -> None:
        try:
            async for line in lines():
                mail.put(line)
        except Exception as error:  # noqa: BLE001  # raised where the lines are read
            mail.put(error)
        else:
            mail.put(None)

    task = asyncio.run_coroutine_threadsafe(get(), event_loop())
    try:
        while True:
            try:
                line = mail.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                still_wanted()
                continue
            if line is None:
                return
            if isinstance(line, BaseException):
                raise line
            still_wanted()  # lines may come too fast for it to be asked above, and hold nothing
            yield line
    finally:
        task.cancel()


async def split_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The lines of an answer that comes in pieces, but for empty ones.

    Line feed and carriage return end a line, and nothing else does: U+2028, U+2029 and U+0085 may stand in
    a JSON string. Lines are told apart as bytes, so a piece may end inside a character or a CRLF.
    """
    begun = bytearray()
    async for piece in pieces:
        *ended, rest = piece.replace(b"\r", b"\n").split(b"\n")
        for end in ended:
            begun += end
            if begun:
                yield begun.decode("utf-8", "replace")
            begun.clear()
        begun += rest
    if begun:
        yield begun.decode("utf-8", "replace")


class Endpoint:
    """One address that is asked with POST.

    Args:
        url: The address; errors name it without query, user and password.
        headers: Sent with every question; no error shows them.
        secrets: What is taken out of everything that a server says.
        timeout_s: Without a sign of life for so long, a server counts as too slow.
        max_retries: How often a question is repeated, as long as no answer has begun.
        max_wait_s: A server that asks to wait longer than that is not asked again.
        max_connections: Questions under way at once; more wait.
        transport: Stands for the network, in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str],
        secrets: tuple[str, ...],
        timeout_s: float,
        max_retries: int,
        max_wait_s: float,
        max_connections: int,
        transport: Any = None,
    ) -> None:
        self.url = url
        self._headers, self._secrets, self._transport = headers, secrets, transport
        self._timeout_s, self._max_retries, self._max_wait_s = timeout_s, max_retries, max_wait_s
        self._max_connections = max_connections
        self._client: httpx.AsyncClient | None = None
        self._process = os.getpid()

    def ask(self, body: bytes, still_wanted: Callable[[], None]) -> Generator[str, None, None]:
        """Sends a JSON body, and yields the lines of the answer.

        Raises:
            HostedError: There is no answer, or it breaks off.
        """
        yield from read_lines(lambda: self._lines(body), still_wanted)

    def close(self) -> None:
        """Ends the connections; another question opens new ones."""
        client, self._client = self._client, None
        if client is not None and self._process == os.getpid():
            _in_loop(client.aclose())

    async def _lines(self, body: bytes) -> AsyncIterator[str]:
        import httpx

        failure: HostedError | None = None
        for attempt in range(self._max_retries + 1):
            wait_s = _back_off_s(attempt)
            try:
                async with self._connected().stream("POST", self.url, content=body) as answer:
                    if answer.is_success:
                        async for line in self._answered(answer):
                            yield line
                        return
                    failure = self._refusal(answer.status_code, await answer.aread())
                    if answer.status_code not in _REPEATED and answer.status_code < 500:
                        break
                    asked = _retry_after_s(answer.headers)
                    wait_s = wait_s if asked is None else asked
            except httpx.HTTPError as error:
                failure = self._unreachable(type(error).__name__)
            if attempt == self._max_retries or wait_s > self._max_wait_s:
                break
            await _sleep(wait_s)
        assert failure is not None
        raise failure

    async def _answered(self, answer: httpx.Response) -> AsyncIterator[str]:
        """The lines of an answer that has begun: what breaks off now is not repeated."""
        import httpx

        problem = None
        try:
            async for line in split_lines(answer.aiter_bytes()):
                yield line
        except httpx.TimeoutException:
            problem = f"The answer of {self.url} stopped for {self._timeout_s:g} s."
        except httpx.HTTPError as error:
            problem = f"The answer of {self.url} was cut off ({type(error).__name__})."
        if problem is not None:
            raise HostedAnswerError(problem, remedy="Ask again, or allow more time: timeout_s.")

    def _connected(self) -> httpx.AsyncClient:
        import httpx

        if self._client is None or self._process != os.getpid():
            self._process = os.getpid()
            timeout = httpx.Timeout(self._timeout_s, pool=None)
            limits = httpx.Limits(max_connections=self._max_connections)
            headers = {"content-type": "application/json", **self._headers}
            # No redirects: they would take the key, and the pictures, to whoever the server names.
            self._client = httpx.AsyncClient(
                timeout=timeout, limits=limits, headers=headers, transport=self._transport
            )
        return self._client

    def _refusal(self, status: int, body: bytes) -> HostedError:
        """The error for an answer that is none."""
        said = self.cleaned(body.decode("utf-8", "replace"))
        problem = f"{self.url} answered {status}: {said}" if said else f"{self.url} answered {status}."
        if status in (401, 403):  # what it says may repeat the key in a form that is not recognised here
            remedy = "Give a key that may use this model: api_key=SecretStr(...)."
            return HostedAccessError(f"{self.url} answered {status}: it refuses the key.", remedy=remedy)
        if status == 429:
            return HostedLimitError(problem, remedy="Ask less often, or raise max_retries or max_wait_s.")
        if status >= 500 or status in _REPEATED:
            return HostedServerError(problem, remedy="Ask again later, or raise max_retries.")
        return HostedRequestError(problem, remedy="Change what the server does not take.")

    def _unreachable(self, kind: str) -> HostedServerError:
        slow = "Timeout" in kind
        why = f"said nothing for {self._timeout_s:g} s" if slow else f"cannot be reached ({kind})"
        return HostedServerError(
            f"{self.url} {why}.",
            remedy="Ask again later, or allow more time: timeout_s." if slow else "Check address and server.",
        )

    def cleaned(self, said: str) -> str:
        """What a server says, shortened, without the key."""
        for secret in self._secrets:
            said = said.replace(secret, "***")
        said = " ".join(said.split())
        return said if len(said) <= _MOST_TEXT else f"{said[:_MOST_TEXT]}..."


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Runs it in the loop, and waits for it."""
    asyncio.run_coroutine_threadsafe(work, event_loop()).result(timeout=10)


def _back_off_s(attempt: int) -> float:
    """Twice as long each time, and not for all callers at the same moment."""
    return min(_MOST_BACK_OFF_S, _BACK_OFF_S * 2.0**attempt) * random.uniform(0.75, 1.0)  # noqa: S311


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """How long the server asks to wait: in milliseconds, in seconds, or until a date; None if it does not."""
    for name, factor in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * factor)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time())
        except ValueError:
            continue
    return None
