"""Takes a list of requests along their roads side by side, in parts where there is no room for all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from sgl_engine.errors import OverloadedError
from sgl_engine.request import Request
from sgl_engine.serving.job import Job
from sgl_engine.serving.scheduler import Journey, Scheduler, Ticket, run_stages

Result = TypeVar("Result")


def run_in_parts(
    scheduler: Scheduler,
    admit: Callable[[Sequence[Request]], list[Ticket]],
    requests: Sequence[Request],
    roads: Sequence[Callable[[Ticket], Generator[Any, Job | None, Result]]],
    *,
    decision: type,
    ends: Callable[[Any], bool],
) -> list[Result | Exception]:
    """Takes requests along their roads, as many at once as there is room for; outcomes in order.

    Args:
        scheduler: Whose worker runs their work.
        admit: Lets in as many of the requests as there is room for, in order; at least one, or it raises.
        requests: What is asked.
        roads: For each request, makes its road from its ticket.
        decision: The type of the event that comes after the first work.
        ends: Whether no work follows such an event.
    """
    outcomes: list[Result | Exception] = []
    while len(outcomes) < len(requests):
        rest = requests[len(outcomes) :]
        try:
            tickets = admit(rest)
        except OverloadedError as error:
            # Others have taken all the room: what is left of the list fails as single runs would.
            return [*outcomes, *(error for _ in rest)]
        with ExitStack() as places:
            for ticket in tickets:
                places.enter_context(ticket)  # all of them, before anything can fail
            own = roads[len(outcomes) : len(outcomes) + len(tickets)]
            journeys = [Journey(ticket, road(ticket)) for ticket, road in zip(tickets, own, strict=True)]
            for journey in journeys:
                places.callback(journey.road.close)
            run_stages(scheduler, journeys, decision=decision, ends=ends)
            outcomes += [journey.outcome for journey in journeys if journey.outcome is not None]
    return outcomes
