"""Takes requests along their roads, alone or together.

A road is a generator that yields ``Work``, for which it is sent the ``Job``, and events; it returns what
became of the request. Which steps there are, and in which order, only the road knows.
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
    """Takes one request along its road: work goes to the worker, events to whoever reads them."""
    with closing(road):
        job: Job | None = None
        while True:
            try:
                step = road.send(job)
            except StopIteration as end:
                result: Result = end.value
                return result
            job = None
            if isinstance(step, Work):
                [job] = scheduler.put([ticket], [step])
            else:
                yield step


class Journey(Generic[Result]):
    """One request of several on its road; what goes wrong with it stops nobody else.

    Args:
        ticket: Its place.
        road: Its road.

    Attributes:
        at: What it has come to; None at the end.
        outcome: Its response, or what went wrong.
    """

    def __init__(self, ticket: Ticket, road: Generator[Any, Job | None, Result]) -> None:
        self.ticket = ticket
        self.road = road
        self.at: Any = None
        self.outcome: Result | Exception | None = None

    def go_on(self, until: type, job: Job | None = None) -> None:
        """Goes on to the next step of a kind, or to the end; what is passed on the way is not needed."""
        try:
            self.at = self.road.send(job)
            while not isinstance(self.at, until):
                self.at = next(self.road)
        except StopIteration as end:
            self.at, self.outcome = None, end.value
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            # Errors of ours come without tracebacks, which would keep a whole batch in memory.
            self.at, self.outcome = None, error.with_traceback(None) if isinstance(error, SGLError) else error


def run_together(scheduler: Scheduler, journeys: Sequence[Journey[Any]], *, until: type) -> None:
    """Hands over the work of all that have come to some; each then goes on with its job.

    Args:
        scheduler: Who runs it.
        journeys: Those that are at no work stay where they are.
        until: The kind of step that each goes on to.
    """
    working = [(journey, journey.at) for journey in journeys if isinstance(journey.at, Work)]
    jobs = scheduler.put([journey.ticket for journey, _ in working], [work for _, work in working])
    for (journey, _), job in zip(working, jobs, strict=True):
        journey.go_on(until, job)
