"""Jobs that wait for one of the models, and the batches of them that run. Guarded by the worker's lock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from sgl_engine.prompt.batch import most_rows
from sgl_engine.serving.job import Job, StepResults

_LARGE_GROUPS = 2  # so that a long answer does not keep all later escalations waiting


class JobBatch:
    """Jobs that run side by side.

    Args:
        jobs: Of one kind.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        for job in jobs:
            job.has_company = len(jobs) > 1
        self._steps: StepResults | None = None

    def step(self) -> list[Job]:
        """Runs one step, and tells those who wait what is new.

        Returns:
            Jobs that have to run again, each by itself: what failed was the group, so somebody else's fault
            may have been the reason. Of one job alone, it was its own.
        """
        try:
            if self._steps is None:
                self._steps = self.jobs[0].work.run([job.work.given for job in self.jobs])
            for number, piece in next(self._steps) if self.left else ():
                self.jobs[number].take(piece)
        except BaseException as error:  # noqa: BLE001  # whatever a model raises is its caller's to see
            if len(self.jobs) > 1:
                return [job.again() for job in self.left]
            self.jobs[0].end(error)
        return []

    @property
    def left(self) -> list[Job]:
        """Jobs without an outcome."""
        return [job for job in self.jobs if not job.over]

    def close(self) -> None:
        """Gives back what the group holds, such as caches."""
        if self._steps is not None:
            self._steps.close()


class Lane:
    """Jobs for one of the models. Everything here is guarded by the worker's lock.

    Args:
        model: "small" or "large", for messages.
        groups: Groups that run at once at most, in turns.

    Attributes:
        waiting: Jobs, in the order in which they came.
        running: Groups; the first one is next.
        coming: Requests that are expected to put a job here.
        used_s: Seconds of work, in a time of its own: what was idle does not save up for later.
    """

    def __init__(self, model: str, groups: int) -> None:
        self.model = model
        self.waiting: deque[Job] = deque()
        self.running: deque[JobBatch] = deque()
        self.coming = 0
        self.used_s = 0.0
        self._groups = groups
        self._last_put = 0.0

    def put(self, jobs: Iterable[Job]) -> None:
        """At the end of the queue."""
        self.waiting.extend(jobs)
        self._last_put = time.perf_counter()

    def wait_s(self) -> float | None:
        """Seconds until there is something to run, if nothing changes; None is never.

        While others are on their way, and were so a moment ago, those who are there wait for them.
        """
        if self.running:
            return 0.0
        return self._gathers_s() if self.waiting else None

    def next_group(self) -> JobBatch:
        """The group whose turn it is; it stays ``running`` until it is taken out."""
        if self.waiting and len(self.running) < self._groups and not self._gathers_s():
            self.running.appendleft(JobBatch(self._take()))
        return self.running[0]

    def _gathers_s(self) -> float:
        limits = self.waiting[0].limits
        if not self.coming or len(self.waiting) >= limits.max_batch_size:
            return 0.0
        return max(0.0, self._last_put + 1e-3 * limits.max_wait_ms - time.perf_counter())

    def _take(self) -> list[Job]:
        """The first job, and those behind it that can run beside it."""
        jobs = [self.waiting.popleft()]
        for job in list(self.waiting):
            if len(jobs) >= jobs[0].limits.max_batch_size:
                break
            if _fit([*jobs, job]):
                self.waiting.remove(job)
                jobs.append(job)
        return jobs


def _fit(jobs: Sequence[Job]) -> bool:
    """Whether jobs can run side by side, and are worth it: padding is less than half of what is computed."""
    first, last = jobs[0], jobs[-1]
    lengths = [job.work.tokens for job in jobs]
    longest = max(lengths)
    return (
        first.shares
        and last.shares
        and first.work.kind == last.work.kind
        and len(jobs) <= most_rows(longest, first.limits.max_batch_size)
        and len(jobs) * longest <= 2 * sum(lengths)
    )
