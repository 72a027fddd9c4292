"""Calls of a deployment: begun again where a replica ends, given up where nobody wants them or none begins.

A thread waits for each call, and blocks until something comes. What has to happen meanwhile, one other thread
does for all of them: it looks which calls are late, or wanted no more, and cancels these.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sgl_engine.chat.text_stream import ReasoningDelta, TextDelta
from sgl_engine.chat.tool_stream import Delta, ToolCallDelta
from sgl_engine.cluster.parcels import BEGUN, Failed
from sgl_engine.errors import EngineError, HostedServerError, OverloadedError, RequestError
from sgl_engine.request import Request, check_wanted
from sgl_engine.serving.job import StepResults, Work

_DELTAS = (TextDelta, ReasoningDelta, ToolCallDelta)
_LOOK_UP_S = 0.05


@dataclass(eq=False)
class _Try:
    """One try of one request.

    Attributes:
        request: Its ``cancel`` and ``deadline`` count.
        stream: What comes; a ``DeploymentResponseGenerator``.
        late_at: When a replica has to have begun, a ``time.monotonic()`` value; None once one has.
        is_late: Whether none had.
    """

    request: Request
    stream: Any
    late_at: float | None
    is_late: bool = False

    def is_over(self) -> bool:
        """Whether it is to be cancelled."""
        self.is_late = self.is_late or (self.late_at is not None and time.monotonic() > self.late_at)
        try:
            check_wanted(self.request, "")
        except RequestError:
            return True
        return self.is_late


class Link:
    """Calls of one deployment.

    Args:
        side: Whose.
        remote: Calls it: the method's name, then its arguments; returns a generator of what comes, which
            has ``cancel``.
        start_s: Seconds until a replica has to have begun.
        tries: How often a request is begun at most.
    """

    def __init__(
        self, side: Literal["small", "large"], remote: Callable[..., Any], *, start_s: float, tries: int
    ) -> None:
        self.side = side
        self._remote, self._start_s, self._tries = remote, start_s, tries
        self._lock = threading.Lock()
        self._calls: set[_Try] = set()
        self._is_watched = False  # whether a thread looks at them; changes under the lock alone

    def load(self) -> tuple[int, int]:
        """Calls that a replica has begun with, and those that wait."""
        with self._lock:
            waiting = sum(call.late_at is not None for call in self._calls)
            return len(self._calls) - waiting, waiting

    def work(self, request: Request, method: str, *given: Any) -> Work:
        """Makes work of a call, which another machine does.

        Args:
            request: Its ``cancel`` and ``deadline`` count.
            method: The deployment's.
            given: What the method takes.
        """

        def run(_: Sequence[Any]) -> StepResults:
            for piece in self._pieces(request, method, given):
                yield [(0, piece)]

        return Work(self.side, given, run, None, 0, is_remote=True)

    def _pieces(self, request: Request, method: str, given: tuple[Any, ...]) -> Iterator[Any]:
        """Deltas, then the outcome; from another replica where one has ended."""
        said = _Said()
        for left in reversed(range(self._tries)):
            said.again()
            try:
                yield from self._once(request, said, method, given)
            except _ReplicaEndedError as error:
                if not left or not said.can_repeat:
                    raise self._failed(f"ended while it answered ({error})") from error
            else:
                return

    def _once(self, request: Request, said: _Said, method: str, given: tuple[Any, ...]) -> Iterator[Any]:
        check_wanted(request, f"before the {self.side} model was asked")
        call = _Try(request, self._remote(method, *given), time.monotonic() + self._start_s)
        self._watch(call)
        is_over = False
        try:
            while not is_over:
                piece = self._next(call)
                if isinstance(piece, Failed):
                    raise piece.error
                if piece == BEGUN:
                    call.late_at = None
                elif isinstance(piece, _DELTAS):
                    yield from said.new(piece)
                else:
                    is_over = True
                    yield piece
        finally:
            with self._lock:
                self._calls.discard(call)
            if not is_over:
                call.stream.cancel()

    def _next(self, call: _Try) -> Any:
        """The next piece; raises what Ray raises as an error of ours."""
        from ray.exceptions import RayError, TaskCancelledError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

        cancelled = (CancelledError, asyncio.CancelledError, TaskCancelledError, RequestCancelledError)
        try:
            return next(call.stream)
        except cancelled as error:
            check_wanted(call.request, f"while it waited for the {self.side} model")
            if call.is_late:
                raise self._failed(f"has not begun within {self._start_s:g} s") from error
            raise _ReplicaEndedError(type(error).__name__) from error
        except BackPressureError as error:
            raise OverloadedError(
                f"Too many requests wait for the {self.side} model.",
                remedy="Ask again later, or raise Replicas.queue or Replicas.most.",
            ) from error
        except (RayError, DeploymentUnavailableError, StopIteration) as error:
            raise _ReplicaEndedError(type(error).__name__) from error

    def _failed(self, what: str) -> Exception:
        if self.side == "large":
            return HostedServerError(
                f"The large model {what}.", remedy="Look at its deployment: ray status, serve status."
            )
        return EngineError(
            f"The small model {what}.", remedy="Look at its deployment: ray status, serve status."
        )

    def _watch(self, call: _Try) -> None:
        with self._lock:
            if not self._is_watched:  # the last thread may still sleep, and then goes on for this call
                threading.Thread(
                    target=_look, args=(weakref.ref(self),), name="sgl-link", daemon=True
                ).start()
                self._is_watched = True
            self._calls.add(call)

    def late(self) -> list[Any] | None:
        """Streams of calls that are to be cancelled; None once there are no calls, and whoever looks ends."""
        with self._lock:
            if not self._calls:
                self._is_watched = False
                return None
            return [call.stream for call in self._calls if call.is_over()]


def _look(link: weakref.ref[Link]) -> None:
    """Cancels what is to be cancelled, until nothing is under way."""
    while True:
        time.sleep(_LOOK_UP_S)
        one = link()
        late = None if one is None else one.late()
        if late is None:
            return
        for stream in late:
            with suppress(Exception):  # one that cannot be cancelled leaves no other unwatched
                stream.cancel()
        del one


class _ReplicaEndedError(Exception):
    """A replica is gone, and the call with it."""


class _Said:
    """What an answer has come to: in a second try, what was passed on comes again first."""

    def __init__(self) -> None:
        self.can_repeat = True
        self._sent: dict[type, str] = {TextDelta: "", ReasoningDelta: ""}
        self._heard = dict(self._sent)

    def again(self) -> None:
        """Begins anew."""
        self._heard = dict.fromkeys(self._heard, "")

    def new(self, delta: Delta) -> Generator[Delta, None, None]:
        """What of a piece is new.

        Raises:
            EngineError: The answer comes out differently.
        """
        if isinstance(delta, ToolCallDelta):
            self.can_repeat = False  # calls have ids of their own, which nobody can repeat
            yield delta
            return
        kind = type(delta)
        heard, sent = self._heard[kind] + delta.text, self._sent[kind]
        self._heard[kind] = heard
        if not heard.startswith(sent[: len(heard)]):
            raise EngineError(
                "A replica ended in the middle of an answer, and it came out differently when repeated.",
                remedy="Ask again; with a seed, answers can be repeated.",
            )
        if len(heard) > len(sent):
            self._sent[kind] = heard
            yield kind(heard[len(sent) :])
