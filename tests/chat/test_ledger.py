"""Limits, what counts against them, and the ledger between two records."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from scripted_sgl import MakeReport

from langchain_sgl.budget.gate import limit_escalation, limitation, permission
from langchain_sgl.budget.ledger import Account, Budget, Ledger, Spending, update_record
from sgl_engine.errors import ConfigError


def ledger(amount: float, unit: str = "escalations") -> Ledger:
    return Ledger(Budget({("run", unit): amount}))  # type: ignore[dict-item]


@pytest.fixture
def escalated(make_report: MakeReport) -> dict[str, Any]:
    return make_report(route="large", escalated=True, large_tflops=0.002).model_dump(mode="json")


@pytest.fixture
def exited(make_report: MakeReport) -> dict[str, Any]:
    return make_report().model_dump(mode="json")


def test_records_add_up_per_run_and_per_thread() -> None:
    record: dict[str, Any] = {}
    for update in (
        {"begin": "a"},
        {"spent": {"escalations": 1, "tflops": 2.0, "ms": 3.0}},
        {"spent": {"escalations": 1, "tflops": 0.5, "ms": 0.0}},
        {"begin": "b"},
        {"spent": {"escalations": 1, "tflops": 1.0, "ms": 1.0}},
    ):
        record = json.loads(json.dumps(update_record(record, update)))
    assert record["run_id"] == "b"
    assert Account.recorded(record) == Account(run=Spending(1, 1.0, 1.0), thread=Spending(3, 3.5, 4.0))


def test_a_record_without_a_run_counts_too() -> None:
    record = update_record({}, {"spent": {"escalations": 1, "tflops": 0.0, "ms": 0.0}})
    assert Account.recorded(record) == Account(Spending(1), Spending(1))


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf")])
def test_impossible_amounts_are_refused(amount: float) -> None:
    with pytest.raises(ConfigError, match=f"run_tflops={amount}"):
        Budget({("run", "tflops"): amount})


def test_a_budget_limits_something() -> None:
    with pytest.raises(ConfigError, match="Set at least one of run_tflops, thread_ms"):
        Budget({("run", "tflops"): None, ("thread", "ms"): None})


@pytest.mark.parametrize(("unit", "used"), [("escalations", 3), ("tflops", 4.0), ("ms", 5.0)])
@pytest.mark.parametrize("scope", ["run", "thread"])
def test_each_limit_is_spent_when_its_amount_is_used(scope: str, unit: str, used: float) -> None:
    account = Account(**{scope: Spending(3, 4.0, 5.0)})
    other = Account(**{"thread" if scope == "run" else "run": Spending(99, 99.0, 99.0)})
    spent, left = (Budget({(scope, unit): used + more}) for more in (0, 0.5))  # type: ignore[dict-item]
    assert spent.spent(account)
    assert not left.spent(account)
    assert not spent.spent(other)


def test_the_notice_says_what_is_used_and_of_what() -> None:
    budget = Budget({("run", "escalations"): 5, ("thread", "tflops"): 50.0})
    assert budget.notice(Account(Spending(3), Spending(3, 10.0)), 0.8, then="you are stopped") is None
    nearly = budget.notice(Account(Spending(4), Spending(4, 41.234)), 0.8, then="you are stopped")
    assert nearly is not None
    assert "Used so far: escalations in this run: 4 of 5; TFLOPs in this conversation: 41.2 of 50." in nearly
    assert nearly.endswith("once the budget is spent, you are stopped.")
    spent = budget.notice(Account(Spending(5), Spending(5, 41.234)), 0.8, then="you are stopped")
    assert spent is not None
    assert "is spent: escalations in this run: 5 of 5. From here" in spent
    assert "used so far" in (budget.notice(Account(), 0.0, then="x") or "").lower()


def test_calls_are_booked_when_they_end(escalated: dict[str, Any], exited: dict[str, Any]) -> None:
    book = ledger(5)
    book.computed(uuid4(), exited)
    book.computed(uuid4(), escalated)
    spent = Spending(1, pytest.approx(0.004), pytest.approx(30.0))  # type: ignore[arg-type]
    assert book.account() == Account(spent, spent)
    assert book.take_unrecorded() == spent
    assert not book.take_unrecorded()
    assert book.account() == Account(spent, spent)


def test_cached_answers_and_other_models_cost_nothing(escalated: dict[str, Any]) -> None:
    book = ledger(5)
    book.cached(uuid4(), escalated)
    book.other(uuid4())
    assert book.account() == Account()


def test_an_escalation_counts_from_its_beginning_and_once(escalated: dict[str, Any]) -> None:
    book, run_id = ledger(1), uuid4()
    assert book.take(run_id)
    assert book.account().run.escalations == 1
    assert not book.is_open()
    assert not book.take(uuid4())
    book.computed(run_id, escalated)
    assert book.account().run.escalations == 1


def test_what_another_gate_refused_is_free_again(exited: dict[str, Any]) -> None:
    book, run_id = ledger(1), uuid4()
    book.take(run_id)
    book.computed(run_id, exited)
    assert book.is_open()


@pytest.mark.parametrize("took", [True, False])
def test_a_failed_call_costs_the_escalation_that_it_had_begun(*, took: bool) -> None:
    book, run_id = ledger(5), uuid4()
    if took:
        book.take(run_id)
    book.failed(run_id, ValueError())
    assert book.account().run == Spending(int(took))


def test_no_more_than_are_left_escalate_at_once() -> None:
    book = ledger(10)
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: book.take(uuid4()), range(500))) == 10


def test_a_record_that_stands_still_adds_to_what_was_counted_since(escalated: dict[str, Any]) -> None:
    book = ledger(9)
    recorded = Account(Spending(1), Spending(4))
    book.sync(recorded)
    book.computed(uuid4(), escalated)
    book.take_unrecorded()
    book.sync(recorded)  # another tool of the same step
    assert (book.account().run.escalations, book.account().thread.escalations) == (2, 5)


def test_a_record_that_has_moved_on_replaces_it(escalated: dict[str, Any]) -> None:
    book = ledger(9)
    book.sync(Account())
    book.computed(uuid4(), escalated)
    recorded = Account() + book.take_unrecorded()
    book.sync(recorded)
    assert book.account() == recorded
    book.computed(uuid4(), escalated)  # of a call that then raised: in no record yet
    book.sync(recorded + Spending(5))
    assert book.account().run.escalations == 1 + 5 + 1


class Gate:
    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self.asked: list[UUID] = []

    def is_open(self) -> bool:
        return self._is_open

    def take(self, run_id: UUID) -> bool:
        self.asked.append(run_id)
        return self._is_open


def test_without_a_limit_nothing_is_asked() -> None:
    assert permission(uuid4()) is None
    assert limitation() is None


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_all_gates_have_to_be_open(*, outer: bool, inner: bool) -> None:
    run_id, gates = uuid4(), [Gate(is_open=outer), Gate(is_open=inner)]
    with limit_escalation(gates[0]):
        with limit_escalation(gates[1]):
            ask = permission(run_id)
            assert limitation() == ("open" if outer and inner else "closed")
        assert limitation() == ("open" if outer else "closed")
    assert ask is not None
    assert ask() is (outer and inner)  # also after the block, and from another thread
    assert gates[0].asked == [run_id]
    assert permission(run_id) is None
