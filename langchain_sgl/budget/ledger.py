"""What an agent may spend on the large model, and what it has spent: the arithmetic behind the middleware.

Spending is recorded in the agent's state, as plain numbers, and so in its checkpoints. Between two records,
while tools run at once or a call is retried, a ``Ledger`` in memory knows what is not recorded yet.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias
from uuid import UUID

from typing_extensions import override

from langchain_sgl.usage.callbacks import ReportHandler
from sgl_engine import ConfigError

Scope: TypeAlias = Literal["run", "thread"]
Unit: TypeAlias = Literal["escalations", "tflops", "ms", "cost"]

_SCOPES: dict[str, str] = {"run": "in this run", "thread": "in this conversation"}
_UNITS: dict[str, str] = {
    "escalations": "escalations",
    "tflops": "TFLOPs",
    "ms": "milliseconds",
    "cost": "money",
}


@dataclass(frozen=True)
class Spending:
    """An amount; ``+`` adds two of them, and nothing spent is False.

    Attributes:
        escalations: Calls of the large model.
        tflops: Both models; 1e12 floating-point operations.
        ms: Milliseconds of whole calls.
        cost: Money of both models, in the currency of the prices; calls without prices cost nothing.
    """

    escalations: int = 0
    tflops: float = 0.0
    ms: float = 0.0
    cost: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.escalations + other.escalations,
            self.tflops + other.tflops,
            self.ms + other.ms,
            self.cost + other.cost,
        )

    def __bool__(self) -> bool:
        return self != Spending()


@dataclass(frozen=True)
class Account:
    """What a run, and the whole conversation that it belongs to, have spent."""

    run: Spending = Spending()
    thread: Spending = Spending()

    def __add__(self, spending: Spending) -> Account:
        return Account(self.run + spending, self.thread + spending)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Account:
        """Reads what ``update_record`` has written."""
        return cls(*(Spending(**record.get(scope, {})) for scope in ("run", "thread")))


def update_record(record: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Reduces the state's record: adds up what steps that ran at the same time have spent.

    Args:
        record: {"run_id", "run", "thread"}, or empty.
        update: {"begin": run id} for a new run of the thread, {"spent": ...} for what was spent.
    """
    account = Account.recorded(record)
    if "begin" in update:
        return {"run_id": update["begin"], "run": asdict(Spending()), "thread": asdict(account.thread)}
    return {**record, **asdict(account + Spending(**update["spent"]))}


@dataclass(frozen=True)
class Limit:
    """An upper limit of one quantity.

    Attributes:
        scope: Whether it holds for a run, or for the whole thread.
        unit: The quantity.
        amount: Spent when this much is used; 0 is spent from the start.
    """

    scope: Scope
    unit: Unit
    amount: float

    def used(self, account: Account) -> float:
        """Reads how much of it is used, in its unit."""
        spending: Spending = getattr(account, self.scope)
        value: float = getattr(spending, self.unit)
        return value

    def is_spent(self, account: Account) -> bool:
        """Tells whether nothing is left of it."""
        return self.used(account) >= self.amount

    def is_nearly_spent(self, account: Account, fraction: float) -> bool:
        """Tells whether at least ``fraction`` of it is used."""
        return self.used(account) >= fraction * self.amount

    def describe(self, account: Account) -> str:
        """Says what is used of it: "escalations in this run: 3 of 5"."""
        used, amount = _plain(self.used(account)), _plain(self.amount)
        return f"{_UNITS[self.unit]} {_SCOPES[self.scope]}: {used} of {amount}"


class Budget:
    """The limits that hold together; spent as soon as one of them is.

    Args:
        limits: Amount by scope and unit; None is no limit.

    Raises:
        ConfigError: There is no limit at all, or one is negative or not a number.
    """

    def __init__(self, limits: Mapping[tuple[Scope, Unit], float | None]) -> None:
        self.limits = tuple(
            Limit(scope, unit, amount) for (scope, unit), amount in limits.items() if amount is not None
        )
        if not self.limits:
            raise ConfigError(
                "The budget limits nothing.",
                remedy=f"Set at least one of {', '.join(f'{scope}_{unit}' for scope, unit in limits)}.",
            )
        for limit in self.limits:
            amount: Any = limit.amount  # callers need not have a type checker
            number = isinstance(amount, int | float) and not isinstance(amount, bool)
            if not number or not (amount >= 0 and math.isfinite(amount)):
                raise ConfigError(
                    f"{limit.scope}_{limit.unit}={limit.amount!r} is not a budget.",
                    remedy="Use a finite number that is not negative, or None for no limit.",
                )

    def spent(self, account: Account) -> tuple[Limit, ...]:
        """Picks the limits of which nothing is left."""
        return tuple(limit for limit in self.limits if limit.is_spent(account))

    def describe_spent(self, account: Account) -> str:
        """Says which are spent: "escalations in this run: 3 of 3; TFLOPs in this conversation: 41 of 40"."""
        return "; ".join(limit.describe(account) for limit in self.spent(account))

    def notice(self, account: Account, fraction: float, *, then: str) -> str | None:
        """Tells a model that plans with the budget what it has to know; None where that is nothing.

        Args:
            account: What is spent.
            fraction: None is returned while less than this of every limit is used.
            then: What happens when the budget is spent, as a clause.
        """
        if self.spent(account):
            return (
                f"The budget for the large vision model is spent: {self.describe_spent(account)}. From here "
                "on, questions about pictures are answered by the small model alone, however unsure it is. "
                "Asking again will not bring a better answer. Say so where an answer is uncertain."
            )
        nearly = [limit for limit in self.limits if limit.is_nearly_spent(account, fraction)]
        if not nearly:
            return None
        return (
            "The budget for the large vision model is limited. Used so far: "
            f"{'; '.join(limit.describe(account) for limit in nearly)}. Ask only what you need to know about "
            f"pictures: once the budget is spent, {then}."
        )


class Ledger(ReportHandler):
    """What one run has spent, up to the moment: the record, and what calls have used since.

    As a callback handler it hears of every call when it ends; as an ``EscalationGate``, of every escalation
    when it begins. Thread-safe.

    Args:
        budget: When to refuse.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget
        self._lock = threading.Lock()
        self._recorded = Account()
        self._since = Spending()
        self._unrecorded = Spending()
        self._escalating: set[UUID] = set()

    def sync(self, recorded: Account) -> None:
        """Takes over the state's record.

        The record stands still while a step runs, and holds all that the step has recorded when it is over.
        So a record that has changed, here or in another process, replaces what was counted since.
        """
        with self._lock:
            if recorded != self._recorded:
                self._recorded = recorded
                # What was taken is in the new record; what was not is still to be added to it.
                self._since = self._unrecorded

    def account(self) -> Account:
        """Adds up what is spent; a call that has escalated and not ended yet counts as an escalation."""
        with self._lock:
            return self._account()

    def take_unrecorded(self) -> Spending:
        """Hands over what is not in the state yet, once: the caller has to put it there."""
        with self._lock:
            taken, self._unrecorded = self._unrecorded, Spending()
            return taken

    def is_open(self) -> bool:
        """Tells whether a call that starts now may escalate."""
        return not self._budget.spent(self.account())

    def take(self, run_id: UUID) -> bool:
        """Lets a call escalate, and counts it from here on; or returns False."""
        with self._lock:
            # Asked and counted under one lock: of calls that run at once, no more pass than are left.
            if self._budget.spent(self._account()):
                return False
            self._escalating.add(run_id)
            return True

    @override
    def computed(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        """Books what the call used."""
        self._book(
            run_id,
            Spending(
                escalations=int(report["escalated"]),
                tflops=report["small_tflops"] + report["large_tflops"],
                ms=report["stage_ms"]["total"],
                cost=(report.get("cost") or {}).get("total", 0.0),
            ),
        )

    @override
    def failed(self, run_id: UUID, error: BaseException) -> None:
        """Books the escalation, if the call had come to it; what else it used is not known."""
        with self._lock:
            escalated = run_id in self._escalating
        self._book(run_id, Spending(escalations=int(escalated)))

    def _book(self, run_id: UUID, spending: Spending) -> None:
        with self._lock:
            self._escalating.discard(run_id)
            self._since += spending
            self._unrecorded += spending

    def _account(self) -> Account:
        return self._recorded + (self._since + Spending(escalations=len(self._escalating)))


def _plain(amount: float) -> str:
    """Writes a number with at least three significant digits."""
    return f"{amount:.0f}" if amount >= 100 or amount == int(amount) else f"{amount:.3g}"
