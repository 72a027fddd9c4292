"""Two sides of a comparison, timed in turns; ratios with their spread. The arithmetic is pure.

Machines are noisy, and their noise is slow: another process takes a core for seconds. So the sides take turns
(A B, B A, A B, ...), each pair gives a ratio of its own, and the spread is that of these ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Literal, TypeAlias

Side: TypeAlias = Callable[[int], Callable[[], object]]
"""Round number -> what is timed. The preparation, before it returns, is not."""
Seconds: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Of two sides, in the same rounds."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes:
        name: What is compared, "A / B".
        target: What the ratio should be, at most ("<=") or at least (">="); None is a control.
        sense: Which of the two.
        first_s: Seconds of A, one per round.
        second_s: Seconds of B in the same rounds.
        bound: What the ratio is divided by: 1, or what operations allow.
        note: What is included, in a line.
    """

    name: str
    target: float | None
    sense: Literal["<=", ">="]
    first_s: tuple[float, ...]
    second_s: tuple[float, ...]
    bound: float = 1.0
    note: str = ""

    @property
    def ratio(self) -> float:
        """Median of A over median of B, over the bound."""
        return median(self.first_s) / median(self.second_s) / self.bound

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of the rounds' own ratios; lowest and highest of fewer than four."""
        ratios = sorted(a / b / self.bound for a, b in zip(self.first_s, self.second_s, strict=True))
        if len(ratios) < 4:
            return ratios[0], ratios[-1]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return low, high

    @property
    def passed(self) -> bool | None:
        """Whether the ratio is on the right side of the target; None without one."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.sense == "<=" else self.ratio >= self.target

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it."""
        return {
            "name": self.name,
            "ratio": self.ratio,
            "spread": list(self.spread),
            "target": self.target and f"{self.sense} {self.target:.2f}",
            "passed": self.passed,
            "first_s": list(self.first_s),
            "second_s": list(self.second_s),
            "bound": self.bound,
            "note": self.note,
        }


def take_turns(
    first: Side,
    second: Side,
    *,
    repeats: int,
    now: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
    swap: bool = True,
) -> Seconds:
    """Times both sides, ``repeats`` rounds of each; by default, who begins changes from round to round.

    Args:
        first: One side.
        second: The other.
        repeats: Rounds that count.
        now: Clock, in seconds; on a GPU it waits for what was started.
        warm_up: Rounds before them that do not.
        swap: False always begins with the first side.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(warm_up + repeats):
        for number in (1, 0) if swap and turn % 2 else (0, 1):
            work = (first, second)[number](turn)
            started = now()
            work()
            seconds[number].append(now() - started)
    return tuple(seconds[0][warm_up:]), tuple(seconds[1][warm_up:])


def speed_up_bound(full_flops: Sequence[int], reduced_flops: Sequence[int]) -> float:
    """How many times faster a pass can be, at the same operations per second, when it does less."""
    return sum(full_flops) / sum(reduced_flops)
