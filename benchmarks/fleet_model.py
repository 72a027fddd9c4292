"""A fleet of machines that serve a cascade, simulated: who waits how long, and what the cheapest fleet is.

Requests come at random (Poisson). A station is some machines with one queue in front of them, first come,
first served; a machine that is free takes as many as wait, up to its batch. A fleet is one of

    split     small machines -> the escalated ones -> large machines
    both      every machine holds both models, and answers small first
    alone     every machine holds the large model alone, unpruned

No event of one station depends on a later one, so each is run from first to last with a heap of the times
at which its machines are free; no clock is stepped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["split", "both", "alone"]
MOST_BUSY = 0.95
"""Share of the time that machines may be busy; closer to 1, queues settle later than is simulated."""
WARM_UP = 0.1
"""Share of the requests, the first, that are not counted: the fleet begins empty."""


@dataclass(frozen=True)
class Measured:
    """Service times of a pair on a machine.

    Attributes:
        machine: Which.
        pair: Which models.
        questions: How many were asked.
        escalation_rate: Share of them that went to the large model.
        small_s: Seconds of the small model's turn, per question.
        guided_s: Seconds of the large model's, guided.
        alone_s: Seconds of the large model alone, unpruned.
        batch_sizes: Requests side by side.
        small_gain: Of each size, time per request over that of size 1.
        guided_gain: The same with an escalation of each.
    """

    machine: str
    pair: str
    questions: int
    escalation_rate: float
    small_s: tuple[float, ...]
    guided_s: tuple[float, ...]
    alone_s: tuple[float, ...]
    batch_sizes: tuple[int, ...] = (1,)
    small_gain: tuple[float, ...] = (1.0,)
    guided_gain: tuple[float, ...] = (1.0,)

    def mean(self, kind: Literal["small", "guided", "alone"]) -> float:
        """Mean seconds of one of the three."""
        times: tuple[float, ...] = getattr(self, f"{kind}_s")
        return sum(times) / len(times)

    @property
    def break_even(self) -> float:
        """Escalation rate at which the pair takes as much time as the large model alone."""
        return (self.mean("alone") - self.mean("small")) / self.mean("guided")


@dataclass(frozen=True)
class Draws:
    """The same requests for every fleet: when they come, what they take, and whether they escalate.

    Attributes:
        at: Arrivals at a rate of one a second, in order.
        small_s: Seconds of service.
        guided_s: The same.
        alone_s: The same.
        luck: In [0, 1); those below the escalation rate escalate.
        batch: Requests that a machine takes at once, at most.
        small_gain: Time per request of the small model in batches of 1, 2, ... requests, over that of 1.
        guided_gain: The same with the large model.
    """

    at: Floats
    small_s: Floats
    guided_s: Floats
    alone_s: Floats
    luck: Floats
    batch: int = 1
    small_gain: tuple[float, ...] = (1.0,)
    guided_gain: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, measured: Measured, count: int, seed: int = 0, batch: int = 1) -> Draws:
        """Draws questions, each with all of its times, from those that were measured."""
        random = np.random.default_rng(seed)
        which = random.integers(0, len(measured.small_s), count)
        times = (np.asarray(each)[which] for each in (measured.small_s, measured.guided_s, measured.alone_s))
        small, guided, alone = times
        at, luck = np.cumsum(random.exponential(1.0, count)), random.random(count)
        sizes = np.arange(1, batch + 1)
        gains = (
            tuple(np.interp(sizes, measured.batch_sizes, gain).tolist())
            for gain in (measured.small_gain, measured.guided_gain)
        )
        return cls(at, small, guided, alone, luck, batch, *gains)


@dataclass(frozen=True)
class Fleet:
    """Machines.

    Attributes:
        kind: What they hold.
        small: Machines with the small model; of the other kinds, all machines.
        large: Those with the large one, of a split fleet.
    """

    kind: Kind
    small: int
    large: int = 0

    def price(self, small_price: float) -> float:
        """In machines that can hold the large model."""
        return small_price * self.small + self.large if self.kind == "split" else float(self.small)


def serve(
    arrivals: Floats,
    seconds: Floats,
    machines: int,
    batch: int = 1,
    gain: Sequence[float] = (1.0,),
) -> Floats:
    """When each request leaves a station.

    Args:
        arrivals: In order.
        seconds: Of service, each alone.
        machines: That serve.
        batch: Requests that one of them takes at once, at most.
        gain: Time per request in batches of 1, 2, ... up to ``batch``, over that of one alone.
    """
    comes, takes = arrivals.tolist(), seconds.tolist()  # plain numbers are several times as fast in a loop
    free, left, at, count = [0.0] * machines, [0.0] * len(comes), 0, len(comes)
    while at < count:
        start = max(free[0], comes[at])
        end = at + 1
        while end < count and end - at < batch and comes[end] <= start:
            end += 1
        done = start + sum(takes[at:end]) * gain[end - at - 1]
        left[at:end] = [done] * (end - at)
        heapq.heapreplace(free, done)
        at = end
    return np.asarray(left)


def latencies(fleet: Fleet, draws: Draws, rate: float, escalation_rate: float) -> Floats:
    """Seconds from arrival to answer, in order of arrival; requests come at ``rate`` a second."""
    at = draws.at / rate
    if fleet.kind == "alone":
        return serve(at, draws.alone_s, fleet.small, draws.batch, draws.guided_gain) - at
    escalates = draws.luck < escalation_rate
    if fleet.kind == "both":
        both = draws.small_s + np.where(escalates, draws.guided_s, 0.0)
        return serve(at, both, fleet.small, draws.batch, draws.guided_gain) - at
    left = serve(at, draws.small_s, fleet.small, draws.batch, draws.small_gain)
    which = np.flatnonzero(escalates)
    if len(which):
        which = which[np.argsort(left[which], kind="stable")]
        left[which] = serve(left[which], draws.guided_s[which], fleet.large, draws.batch, draws.guided_gain)
    return left - at


def p95(seconds: Floats) -> float:
    """95th percentile, the warm-up left out."""
    return float(np.percentile(seconds[int(WARM_UP * len(seconds)) :], 95))


def cheapest(
    kind: Kind,
    measured: Measured,
    draws: Draws,
    *,
    rate: float,
    escalation_rate: float,
    target_s: float,
    small_price: float = 1.0,
) -> Fleet | None:
    """The fleet of a kind that costs least with its p95 within the target; None where none can be.

    Args:
        kind: Of fleet.
        measured: Says where to begin: fewer machines could not serve them all.
        draws: The requests.
        rate: Of arrivals, per second.
        escalation_rate: Share of requests that escalate.
        target_s: Seconds for the 95th percentile.
        small_price: Of a machine that only holds the small model.
    """

    def reaches(fleet: Fleet) -> bool:
        return p95(latencies(fleet, draws, rate, escalation_rate)) <= target_s

    small, guided = measured.mean("small"), measured.mean("guided")
    if kind != "split":
        each = measured.mean("alone") if kind == "alone" else small + escalation_rate * guided
        count = _fewest(lambda n: reaches(Fleet(kind, n)), _at_least(rate * each))
        return None if count is None else Fleet(kind, count)
    least_large = _at_least(rate * escalation_rate * guided) if escalation_rate else 0
    most = 4 * (_at_least(rate * small) + least_large) + 8
    least_small = _fewest(lambda n: reaches(Fleet(kind, n, most)), _at_least(rate * small))
    if least_small is None:
        return None
    best: Fleet | None = None
    for count in range(least_small, most):
        if best and Fleet(kind, count, least_large).price(small_price) >= best.price(small_price):
            break
        large = _fewest(lambda n, count=count: reaches(Fleet(kind, count, n)), least_large)
        if large is None:
            continue
        fleet = Fleet(kind, count, large)
        if best is None or fleet.price(small_price) < best.price(small_price):
            best = fleet
    return best


def _at_least(work: float) -> int:
    """Machines that so much work keeps busy, and no busier than ``MOST_BUSY``."""
    return max(1, ceil(work / MOST_BUSY))


def _fewest(does: Callable[[int], bool], least: int) -> int | None:
    """The smallest number from ``least`` on that does; more machines are never worse."""
    low, high = least - 1, least
    while not does(high):
        if high > 4 * least + 8:
            return None
        low, high = high, high + max(1, high - least, high // 16)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if does(middle) else (middle, high)
    return high


def erlang_c(machines: int, work: float) -> float:
    """Probability of having to wait in an M/M/c queue (Erlang, 1917).

    Args:
        machines: c.
        work: Arrival rate times mean service time, below c.
    """
    blocked = 1.0  # Erlang B, by its recursion, which does not overflow
    for number in range(1, machines + 1):
        blocked = work * blocked / (number + work * blocked)
    return blocked / (1 - work / machines * (1 - blocked))


def wait_beyond(machines: int, rate: float, mean_s: float, seconds: float) -> float:
    """Probability of waiting longer than ``seconds`` in an M/M/c queue."""
    work = rate * mean_s
    return erlang_c(machines, work) * exp(-(machines - work) * seconds / mean_s)


@dataclass(frozen=True)
class Trace:
    """What happened in a real run of one small and one large process.

    Attributes:
        arrivals: Seconds, in order.
        small_s: Of the small process, per request.
        large_s: Of the large one, by request.
    """

    arrivals: tuple[float, ...]
    small_s: tuple[float, ...]
    large_s: Mapping[int, float]


def replay(trace: Trace) -> Sequence[float]:
    """The latencies that the simulation gives to the same requests with the same times of service."""
    at = np.asarray(trace.arrivals)
    left = serve(at, np.asarray(trace.small_s), 1)
    which = np.array(sorted(trace.large_s), dtype=int)
    if len(which):
        left[which] = serve(left[which], np.array([trace.large_s[n] for n in which]), 1)
    return [float(value) for value in left - at]
