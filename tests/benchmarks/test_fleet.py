"""The simulation of fleets, against Erlang's formula and an obvious second simulation; and what must fail."""

import random

import numpy as np
import pytest

from benchmarks.fleet import read_measured
from benchmarks.fleet_model import (
    MOST_BUSY,
    Draws,
    Fleet,
    Measured,
    Trace,
    cheapest,
    erlang_c,
    latencies,
    p95,
    replay,
    serve,
    wait_beyond,
)

COUNT = 40_000
PAIR = Measured("a machine", "a pair", 3, 0.3, (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), (0.4, 0.4, 0.4))


def waits(machines: int, work: float, seed: int = 0, *, steady: bool = False) -> np.ndarray:
    """Of an M/M/c queue whose mean service takes a second; with ``steady``, each takes just that."""
    draws = np.random.default_rng(seed)
    at = np.cumsum(draws.exponential(1 / work, COUNT))
    takes = np.ones(COUNT) if steady else draws.exponential(1.0, COUNT)
    return (serve(at, takes, machines) - at - takes)[COUNT // 10 :]


@pytest.mark.parametrize(("machines", "work"), [(1, 0.6), (3, 2.0), (20, 17.0)])
def test_waits_are_erlangs(machines: int, work: float) -> None:
    found = waits(machines, work)
    mean = erlang_c(machines, work) / (machines - work)
    assert np.mean(found > 1e-9) == pytest.approx(erlang_c(machines, work), rel=0.08)
    assert np.mean(found) == pytest.approx(mean, rel=0.15)
    assert np.mean(found > mean) == pytest.approx(wait_beyond(machines, work, 1.0, mean), rel=0.12)


def test_other_queues_are_not_erlangs() -> None:
    mean = erlang_c(3, 2.0) / (3 - 2.0)
    for other in (waits(4, 2.0), waits(3, 2.0, steady=True), waits(3, 2.4)):
        assert np.mean(other) != pytest.approx(mean, rel=0.15)


def test_erlang_c_is_what_books_print() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5)  # of one machine, how busy it is
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(1000, 900.0) < 0.01


def stepped(at: list[float], takes: list[float], machines: int, batch: int, gain: list[float]) -> list[float]:
    """The same station, by looking at every moment at which something may happen."""
    left, queue, busy_until = [0.0] * len(at), list(range(len(at))), [0.0] * machines
    while queue:
        # The next moment at which a machine is free and somebody is there.
        now = max(min(busy_until), at[queue[0]])
        machine = min(range(machines), key=lambda m: busy_until[m])
        taken = [n for n in queue if at[n] <= now][:batch]
        done = now + sum(takes[n] for n in taken) * gain[len(taken) - 1]
        for n in taken:
            left[n] = done
            queue.remove(n)
        busy_until[machine] = done
    return left


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_are_taken_as_they_wait(batch: int) -> None:
    draw = random.Random(1)
    at = sorted(draw.uniform(0, 20) for _ in range(60))
    takes = [draw.uniform(0.1, 1.5) for _ in at]
    gain = [1.0, 0.8, 0.7]
    expected = stepped(at, takes, 2, batch, gain)
    assert serve(np.array(at), np.array(takes), 2, batch, gain) == pytest.approx(np.array(expected))
    assert serve(np.array(at), np.array(takes), 3, batch, gain) != pytest.approx(np.array(expected))


def test_escalated_requests_go_on_in_the_order_in_which_they_leave() -> None:
    draws = Draws(
        at=np.array([0.0, 0.1, 0.2]),
        small_s=np.array([1.0, 0.2, 0.2]),
        guided_s=np.array([5.0, 5.0, 5.0]),
        alone_s=np.zeros(3),
        luck=np.array([0.0, 0.0, 0.9]),
    )
    # The second leaves the small model first, so the first waits for it at the large one.
    found = latencies(Fleet("split", 2, 1), draws, 1.0, 0.5)
    assert found.tolist() == pytest.approx([10.3, 5.2, 0.3])


def test_the_cheapest_fleet_is_the_cheapest() -> None:
    draws = Draws.of(PAIR, 1000)
    options = {"rate": 20.0, "escalation_rate": 0.3, "target_s": 0.6}
    for small_price in (1.0, 0.25):
        found = cheapest("split", PAIR, draws, small_price=small_price, **options)
        assert found is not None
        # All others, one by one.
        reach = [
            fleet
            for fleet in (Fleet("split", small, large) for small in range(2, 8) for large in range(1, 5))
            if max(20 * 0.1 / fleet.small, 20 * 0.3 * 0.2 / fleet.large) <= MOST_BUSY
            and p95(latencies(fleet, draws, 20.0, 0.3)) <= 0.6
        ]
        assert found.price(small_price) == min(fleet.price(small_price) for fleet in reach)
    for kind in ("both", "alone"):
        found = cheapest(kind, PAIR, draws, **options)
        assert found is not None
        assert p95(latencies(found, draws, 20.0, 0.3)) <= 0.6
        assert p95(latencies(Fleet(kind, found.small - 1), draws, 20.0, 0.3)) > 0.6
    assert cheapest("alone", PAIR, draws, rate=20.0, escalation_rate=0.3, target_s=0.39) is None


def test_a_trace_is_replayed() -> None:
    trace = Trace((0.0, 0.1, 5.0), (1.0, 1.0, 1.0), {0: 3.0, 1: 0.5})
    assert replay(trace) == pytest.approx([4.0, 4.4, 1.0])


def test_what_was_measured_can_be_read() -> None:
    measured = read_measured()
    assert measured.mean("small") < measured.mean("guided") < measured.mean("alone")
    assert measured.break_even > 0
