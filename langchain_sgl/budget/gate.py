"""The gate to the large model: callers set a limit around code, and every ChatSGL inside it obeys.

The limit is a context variable, so it reaches models that are called by tools, by chains and by agents in
tools: wherever the context goes, as it does into the threads and tasks of LangChain, LangGraph and asyncio.

``ChatSGL`` asks when the small answer is about to be overruled, not when a call starts. So of several calls
that run at once, exactly as many escalate as are left, and one that needs none takes nothing from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, Protocol
from uuid import UUID, uuid4


class EscalationGate(Protocol):
    """Says whether the large model may be called; asked from any thread."""

    def is_open(self) -> bool:
        """Tells whether a call that starts now might escalate; counts nothing."""

    def take(self, run_id: UUID) -> bool:
        """Lets a call escalate, and counts it from then on; or returns False, and the call may not.

        Args:
            run_id: The call's run in LangChain's callbacks.
        """


_gates: ContextVar[tuple[EscalationGate, ...]] = ContextVar("sgl_escalation_gates", default=())


@contextmanager
def limit_escalation(gate: EscalationGate) -> Iterator[None]:
    """Makes models inside the context escalate only as ``gate``, and all gates around it, allow."""
    token = _gates.set((*_gates.get(), gate))
    try:
        yield
    finally:
        _gates.reset(token)


def permission(run_id: UUID | None) -> Callable[[], bool] | None:
    """Returns what a call has to ask, from any thread, before it escalates; None when nothing limits it.

    Args:
        run_id: The call's run in LangChain's callbacks; None outside of any.
    """
    gates, taker = _gates.get(), run_id or uuid4()
    if not gates:
        return None
    # Where one gate has counted the call and the next refuses it, the first takes it back when the call ends.
    return lambda: all(gate.take(taker) for gate in gates)


def permissions(asked: Callable[..., None]) -> Callable[[], bool] | None:
    """Returns the same for a call that is many runs: each counts by itself.

    Args:
        asked: Is told, from any thread, under which id one asked, and the reply, ``allowed=``.
    """
    gates = _gates.get()
    if not gates:
        return None

    def ask() -> bool:
        taker = uuid4()
        allowed = all(gate.take(taker) for gate in gates)
        asked(taker, allowed=allowed)
        return allowed

    return ask


def limitation() -> Literal["open", "closed"] | None:
    """Tells whether calls may escalate at this moment; None when nothing limits them.

    Part of the key of LangChain's cache: what the small model had to answer, because a budget was spent, must
    not be served where there is no budget, or where some of it is left.
    """
    gates = _gates.get()
    if not gates:
        return None
    return "open" if all(gate.is_open() for gate in gates) else "closed"
