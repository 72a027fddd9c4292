"""Lets requests in, and hands their work to one worker for all of them.

    with scheduler.admit([request], limits)[0] as ticket:
        small = scheduler.put([ticket], [work])[0].result()

A ticket is a request's place, from when it is let in until it is answered. It is used in the thread that
drives the request: the caller's for ``run`` and ``stream``, one of the scheduler's for ``submit``. Models run
in the worker's thread alone (``sgl_engine.serving.worker``), which is started by the first job.

A road is a generator. It yields ``Work``, for which it is sent the ``Job``, and events; it returns the
request's result. Which steps there are, and in which order, only the road knows. ``drive`` takes one request
along its road, and ``Journey`` and ``run_together`` several.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sgl_engine.config import SchedulerConfig
from sgl_engine.errors import EngineClosedError, SGLError
from sgl_engine.request import Request
from sgl_engine.serving.job import Job, Work
from sgl_engine.serving.lane import Lane
from sgl_engine.serving.remote import ask_remotely
from sgl_engine.serving.worker import Worker

if TYPE_CHECKING:
    from typing import Self

Event = TypeVar("Event")
Result = TypeVar("Result")


class _Cancellation(threading.Event):
    """An event that is also set when one of several others is."""

    def __init__(self, *others: threading.Event | None) -> None:
        super().__init__()
        self._others = [event for event in others if event is not None]

    def is_set(self) -> bool:
        return super().is_set() or any(event.is_set() for event in self._others)


class Ticket:
    """A request's place in the engine. As a context manager, it is left at the end.

    Attributes:
        request: The request; its ``cancel`` is also set when the ticket is left, or the worker stops.
        limits: Limits of the engine that the request was given to.
    """

    def __init__(self, worker: Worker, request: Request, limits: SchedulerConfig) -> None:
        # What is no request, or has no event there, is refused on its own road, and not among its neighbours.
        own = getattr(request, "cancel", None)
        is_event = own is None or isinstance(own, threading.Event) or hasattr(own, "is_set")
        self._cancel = _Cancellation(own if is_event else None, worker.stopping)
        takes_it = is_event and isinstance(request, Request)
        self.request = replace(request, cancel=self._cancel) if takes_it else request
        self.limits = limits
        self._worker = worker
        self._expected: Lane | None = worker.small  # where its next job is expected
        self._inside = True  # whether it takes up a place
        self._job: Job | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Gives the place up, and drops what is under way for the request."""
        self._cancel.set()
        job, self._job = self._job, None
        if job is not None:
            job.drop()
        self._go()

    def done(self) -> None:
        """Gives the place up, when no model is needed any more; nothing is dropped."""
        self._go()

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """Frees the place while the caller does something with what it got, and takes it again after that."""
        was_inside, expected = self._inside, self._expected
        self._go()
        yield
        with self._worker.changed:
            if was_inside:
                # Let in without asking for room: a stream that has begun is never refused.
                self._inside, self._expected = True, expected
                self._worker.enter(expected)

    def job(self, lane: Lane | None, work: Work) -> Job:
        """Makes a job of work for this request; without a lane, of what another machine does."""
        self._job = Job(
            work,
            self.request,
            limits=self.limits,
            # Nobody waits for another machine to say that it has stopped.
            withdraw=self._worker.withdraw if lane is not None else lambda _: True,
            ended=partial(self._has_ended, lane),
        )
        return self._job

    def expect(self, lane: Lane | None) -> None:
        """Tells where the request is expected to put its next job; None is nowhere."""
        with self._worker.changed:
            if self._inside:
                self._worker.expect(self._expected, lane)
            self._expected = lane

    def _has_ended(self, lane: Lane | None, outcome: object) -> None:
        """Lets go of the job that has ended in ``lane``, and tells where the next one is expected."""
        self._job = None  # no cycle: what the job holds is freed as soon as nobody needs it
        # The large model may be called next. Escalations that wait there wait for this one, for a moment.
        if not isinstance(outcome, BaseException) and lane is self._worker.small:
            self.expect(self._worker.large)

    def _go(self) -> None:
        """Frees the place, once: leaving twice is allowed."""
        with self._worker.changed:
            if self._inside:
                self._inside = False
                self._worker.leave(self._expected)


class Scheduler:
    """What engines on one pair of models share: a worker, and threads for requests in the background.

    The worker starts with the first use, and ends when the scheduler is closed or garbage-collected. When the
    interpreter ends, nobody's answer is waited for: what is under way is cancelled.
    """

    def __init__(self) -> None:
        self._worker = Worker()
        weakref.finalize(self, self._worker.abandon).atexit = False  # the worker sees to that itself

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return self._worker.is_idle

    def load(self) -> dict[str, int]:
        """Counts what is under way (``SGLEngine.load``)."""
        return self._worker.load()

    def admit(self, requests: Sequence[Request], limits: SchedulerConfig) -> list[Ticket]:
        """Lets requests in, in order, as many as there is room for; returns their tickets.

        Raises:
            OverloadedError: There is room for none.
            EngineClosedError: The engine was closed.
            EngineError: Asked from the worker's own thread.
        """
        admitted = self._worker.admit(len(requests), limits)
        return [Ticket(self._worker, request, limits) for request in requests[:admitted]]

    def put(self, tickets: Sequence[Ticket], works: Sequence[Work]) -> list[Job]:
        """Hands over work for one of the models, all at once, so that it can run side by side."""
        if not works:
            return []
        worker = self._worker
        lane = None
        if not works[0].is_remote:
            lane = worker.small if works[0].model == "small" else worker.large
        assert all(work.model == works[0].model for work in works), "one model at a time"
        jobs = [ticket.job(lane, work) for ticket, work in zip(tickets, works, strict=True)]
        with worker.changed:
            for ticket in tickets:
                ticket.expect(None)  # it has come
            if lane is not None:
                worker.put(lane, jobs)
            else:
                ask_remotely(worker, jobs)
        return jobs

    def in_background(self, ticket: Ticket, answer: Callable[[], Result]) -> Future[Result]:
        """Runs ``answer`` in another thread, with the caller's context variables.

        Args:
            ticket: Its request's. Left when the future is cancelled, which is possible until the end.
            answer: What is run.

        Raises:
            EngineClosedError: The engine was closed, or the interpreter is ending.
        """
        future: Future[Result] = Future()
        future.add_done_callback(lambda ended: ticket.leave() if ended.cancelled() else None)

        def run() -> None:
            outcome: Result | BaseException
            try:
                outcome = answer()
            except BaseException as error:  # noqa: BLE001  # whatever it is, the future has to end with it
                # The future stays pending until here, as a running one cannot be cancelled.
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            else:
                if future.set_running_or_notify_cancel():
                    future.set_result(outcome)

        try:
            self._worker.run_beside(partial(contextvars.copy_context().run, run))
        except EngineClosedError:  # since the ticket was given
            ticket.leave()
            raise
        return future

    def close(self, *, wait: bool = True) -> None:
        """Lets nobody in any more, answers those who are inside, and ends the threads.

        Args:
            wait: Whether to return only when that is done.
        """
        self._worker.close()
        if wait:
            self._worker.join()


def drive(
    scheduler: Scheduler, ticket: Ticket, road: Generator[Work | Event, Job | None, Result]
) -> Generator[Event, None, Result]:
    """Takes one request along its road: hands its work to the worker, and yields its events."""
    with closing(road):
        job: Job | None = None
        while True:
            try:
                step = road.send(job)
            except StopIteration as end:
                result: Result = end.value
                return result
            job = None  # sent once, for the work that was yielded; an event is answered with nothing
            if isinstance(step, Work):
                [job] = scheduler.put([ticket], [step])
            else:
                yield step


class Journey(Generic[Result]):
    """One request of several on its road; if it fails, the others go on.

    Args:
        ticket: The request's place in the engine.
        road: Its road.

    Attributes:
        at: The step that its road has yielded last; None at the end.
        outcome: The road's result or error; None before its end.
    """

    def __init__(self, ticket: Ticket, road: Generator[Any, Job | None, Result]) -> None:
        self.ticket = ticket
        self.road = road
        self.at: Any = None
        self.outcome: Result | Exception | None = None

    def advance(self, until: type, job: Job | None = None) -> None:
        """Advances to the next step of type ``until``, or to the end; other steps are skipped.

        Args:
            until: ``NoneType`` means the end.
            job: The job of the work that the road has yielded.
        """
        try:
            self.at = self.road.send(job)
            while not isinstance(self.at, until):
                self.at = next(self.road)
        except StopIteration as end:
            self.at, self.outcome = None, end.value
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this request's alone
            # Errors of ours come without tracebacks, which would keep a whole batch in memory.
            self.at, self.outcome = None, error.with_traceback(None) if isinstance(error, SGLError) else error


def run_together(scheduler: Scheduler, journeys: Sequence[Journey[Any]], *, until: type) -> None:
    """Hands over the work of several journeys at once, then advances each with its job.

    Args:
        scheduler: Whose worker runs it.
        journeys: Those whose last step is no work stay where they are.
        until: The type of step that each advances to.
    """
    working = [(journey, journey.at) for journey in journeys if isinstance(journey.at, Work)]
    jobs = scheduler.put([journey.ticket for journey, _ in working], [work for _, work in working])
    for (journey, _), job in zip(working, jobs, strict=True):
        journey.advance(until, job)


def run_stages(
    scheduler: Scheduler, journeys: Sequence[Journey[Any]], *, decision: type, ends: Callable[[Any], bool]
) -> None:
    """Takes several requests along their roads to the end; all of them come to a step before any goes on.

    Args:
        scheduler: Whose worker runs their work.
        journeys: At their beginning.
        decision: The type of the event that comes after the first work.
        ends: Whether no work follows such an event.
    """
    for journey in journeys:
        journey.advance(Work)
    run_together(scheduler, journeys, until=decision)
    left = [each for each in journeys if isinstance(each.at, decision) and not ends(each.at)]
    # Those that need no other model make room for other requests, while the others go on.
    for journey in journeys:
        if journey not in left:
            journey.ticket.done()
    for journey in left:
        journey.advance(Work)
    while working := [each for each in left if isinstance(each.at, Work)]:
        # What one of them still wants of the small model comes before the large one takes all of them.
        first = [each for each in working if each.at.model == "small"]
        run_together(scheduler, first or working, until=Work)
    # Answers that were kept are read last, so that no model waits for it.
    for journey in journeys:
        if journey.outcome is None:
            journey.advance(NoneType)
