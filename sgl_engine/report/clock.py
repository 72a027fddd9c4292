"""Measures how long each stage of a request takes."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Clock:
    """Milliseconds per stage of one request.

    The time between stages is "queue": waiting for the models, for the others in a batch, or for the reader
    of a stream. So the stages add up to the total, except for what comes after the last one.

    Args:
        stages: Milliseconds of stages that are over already, on another machine; None is none.
    """

    def __init__(self, stages: Mapping[str, float] | None = None) -> None:
        self._started = self._last = time.perf_counter()
        self._stages: dict[str, float] = dict(stages or {})

    def resume(self) -> None:
        """Begins a stage here; the time since the last one was waiting."""
        self._wait(0.0)

    def lap(self, stage: str) -> None:
        """Ends a stage that began where the last one ended."""
        now = time.perf_counter()
        self._stages[stage] = 1e3 * (now - self._last)
        self._last = now

    def add(self, prefix: str, stages: Mapping[str, float]) -> None:
        """Takes over the stages that a pass has measured itself; the rest of the time was waiting."""
        self._wait(sum(stages.values()))
        self._stages.update({f"{stage}_{prefix}": ms for stage, ms in stages.items()})

    def stage_ms(self) -> dict[str, float]:
        """Returns all stages so far, and "total" since the beginning."""
        return {**self._stages, "total": 1e3 * (time.perf_counter() - self._started)}

    def _wait(self, worked_ms: float) -> None:
        """Adds the time since the last stage to "queue", except ``worked_ms`` of work for this request."""
        now = time.perf_counter()
        waited_ms = max(0.0, 1e3 * (now - self._last) - worked_ms)
        self._stages["queue"] = self._stages.get("queue", 0.0) + waited_ms
        self._last = now
