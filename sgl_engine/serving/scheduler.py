"""Many requests at once: who is let in, and what they share.

    with scheduler.admit([request], limits)[0] as ticket:
        small = scheduler.put([ticket], [work])[0].result()

A ticket is a request's place, from when it is let in until it is answered, and goes wherever the request is
run from: ``run`` and ``stream`` in the caller's thread, ``submit`` in a thread of the scheduler. The models
run in the worker's thread alone (``sgl_engine.serving.worker``), which is started by the first job.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sgl_engine.config import SchedulerConfig
from sgl_engine.request import Request
from sgl_engine.serving.job import Job, Work
from sgl_engine.serving.lane import Lane
from sgl_engine.serving.worker import Worker, closed_error

if TYPE_CHECKING:
    from typing import Self

Result = TypeVar("Result")

_MAX_THREADS = 2**12  # started as needed; how many are is limited by who is let in


class _Cancellation(threading.Event):
    """Set when it is, or when the caller's own event is."""

    def __init__(self, callers: threading.Event | None) -> None:
        super().__init__()
        self._callers = callers

    def is_set(self) -> bool:
        return super().is_set() or (self._callers is not None and self._callers.is_set())


class Ticket:
    """A request's place in the engine; a context manager, which leaves and drops what is not wanted any more.

    Attributes:
        request: The request; its ``cancel`` is set when the ticket is left, too.
        limits: Of the engine that it was given to.
    """

    def __init__(self, worker: Worker, request: Request, limits: SchedulerConfig) -> None:
        self._cancel = _Cancellation(request.cancel)
        self.request = replace(request, cancel=self._cancel)
        self.limits = limits
        self._worker = worker
        self._expected: Lane | None = worker.small
        self._inside = True
        self._job: Job | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Gives the place up at once, whatever is under way for it."""
        self._cancel.set()
        job, self._job = self._job, None
        if job is not None:
            job.drop()
        self._go()

    def done(self) -> None:
        """Gives the place up: no model is needed any more."""
        self._go()

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """While the caller does something else with what it got; its place is free for as long."""
        was_inside, expected = self._inside, self._expected
        self._go()
        yield
        with self._worker.changed:
            if was_inside:
                self._inside, self._expected = True, expected
                self._worker.enter(expected)

    def job(self, lane: Lane, work: Work) -> Job:
        """The work as a job of this request."""
        self._job = Job(
            work,
            self.request,
            limits=self.limits,
            withdraw=self._worker.withdraw,
            ended=partial(self._has_ended, lane),
        )
        return self._job

    def expect(self, lane: Lane | None) -> None:
        """Where the request is expected next; None is nowhere."""
        with self._worker.changed:
            if self._inside:
                self._worker.expect(self._expected, lane)
            self._expected = lane

    def _has_ended(self, lane: Lane, outcome: object) -> None:
        self._job = None  # no cycle: what the job holds is freed as soon as nobody needs it
        if not isinstance(outcome, BaseException) and lane is self._worker.small:
            self.expect(self._worker.large)

    def _go(self) -> None:
        with self._worker.changed:
            if self._inside:
                self._inside = False
                self._worker.leave(self._expected)


class Scheduler:
    """What engines on one pair of models share. Dropped, it stops its threads; nothing starts before use."""

    def __init__(self) -> None:
        self._worker = Worker()
        self._threads: ThreadPoolExecutor | None = None
        weakref.finalize(self, self._worker.abandon).atexit = False  # the worker sees to that itself

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self._worker.is_idle

    def admit(self, requests: Sequence[Request], limits: SchedulerConfig) -> list[Ticket]:
        """Lets the first of the requests in, as many as there is room for.

        Raises:
            OverloadedError: There is room for none.
            EngineClosedError: The engine was closed.
            EngineError: Asked from the worker's own thread.
        """
        admitted = self._worker.admit(len(requests), limits)
        return [Ticket(self._worker, request, limits) for request in requests[:admitted]]

    def put(self, tickets: Sequence[Ticket], works: Sequence[Work]) -> list[Job]:
        """Hands over what one of the models has to do; all at once, so that it can run side by side."""
        if not works:
            return []
        lane = self._worker.small if works[0].model == "small" else self._worker.large
        assert all(work.model == works[0].model for work in works), "one model at a time"
        jobs = [ticket.job(lane, work) for ticket, work in zip(tickets, works, strict=True)]
        with self._worker.changed:
            for ticket in tickets:
                ticket.expect(None)
            self._worker.put(lane, jobs)
        return jobs

    def in_background(self, ticket: Ticket, answer: Callable[[], Result]) -> Future[Result]:
        """Answers in another thread, with the caller's context variables.

        Args:
            ticket: Of what is answered. Left when the future is cancelled, which it can be until the end.
            answer: Run there.
        """
        future: Future[Result] = Future()
        future.add_done_callback(lambda ended: ticket.leave() if ended.cancelled() else None)

        def run() -> None:
            outcome: Result | BaseException
            try:
                outcome = answer()
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the future's
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            else:
                if future.set_running_or_notify_cancel():
                    future.set_result(outcome)

        with self._worker.changed:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="sgl-request")
            threads = self._threads
        try:
            threads.submit(contextvars.copy_context().run, run)
        except RuntimeError as error:  # closed since the ticket was given
            ticket.leave()
            raise closed_error() from error
        return future

    def close(self, *, wait: bool = True) -> None:
        """Lets nobody in any more, answers those who are inside, and ends the threads.

        Args:
            wait: Until that is done.
        """
        self._worker.close()
        if self._threads is not None:
            self._threads.shutdown(wait=wait)
        if wait:
            self._worker.join()
