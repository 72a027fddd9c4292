"""Takes requests along their roads, alone or together.

A road is a generator. It yields ``Work``, for which it is sent the ``Job``, and events; it returns the
request's result. Which steps there are, and in which order, only the road knows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar

from sgl_engine.errors import SGLError
from sgl_engine.serving.job import Job, Work
from sgl_engine.serving.scheduler import Scheduler, Ticket

Event = TypeVar("Event")
Result = TypeVar("Result")


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
