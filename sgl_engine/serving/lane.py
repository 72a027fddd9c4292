"""What waits for one of the models, and what of it runs next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from sgl_engine.prompt.encoded import most_rows
from sgl_engine.serving.job import Job, JobBatch

LARGE_BATCHES = 2
"""Batches of the large model at once: with one, a long answer would keep all later escalations waiting."""


class Lane:
    """Holds the jobs for one of the models. Everything here is guarded by the worker's lock.

    Args:
        max_batches: Batches that run at once at most, a step of each in turn. Brief work need not wait for a
            place among them: its batch is over after one step, and holds nothing afterwards.

    Attributes:
        waiting: Jobs, in the order in which they came.
        running: Batches; the first one is next.
        coming: How many requests are expected to put a job here.
        used_s: Seconds of work, to compare lanes by. A lane that was idle begins at the other one's value, so
            idle time does not count as credit.
    """

    def __init__(self, max_batches: int) -> None:
        self.waiting: deque[Job] = deque()
        self.running: deque[JobBatch] = deque()
        self.coming = 0
        self.used_s = 0.0
        self._max_batches = max_batches
        self._passed = False  # whether brief work has just run before batches that were there already
        self._last_put = 0.0

    def put(self, jobs: Iterable[Job]) -> None:
        """Puts jobs at the end of the queue."""
        self.waiting.extend(jobs)
        self._last_put = time.perf_counter()

    def wait_s(self) -> float | None:
        """Returns the seconds until there is something to run, if nothing changes; None is never."""
        if self.running:
            return 0.0
        return self._gathers_s() if self.waiting else None

    def next_batch(self) -> JobBatch:
        """Picks the batch that runs its next step; it stays in ``running`` until it is taken out."""
        first = self._next_job()
        if first is not None:
            self._passed = bool(self.running)
            self.running.appendleft(JobBatch(self._take(first)))
        else:
            self._passed = False
        return self.running[0]

    def _next_job(self) -> Job | None:
        """Picks the waiting job that begins now; None where a running batch is next."""
        if not self.waiting or (self.running and self._gathers_s()):
            return None  # nothing waits, or more are coming, and there is something to run meanwhile
        if len(self.running) < self._max_batches:
            return self.waiting[0]
        # All places are taken. Brief work may pass, but not twice in a row, so that nobody is starved.
        return None if self._passed else next((job for job in self.waiting if job.work.is_brief), None)

    def _gathers_s(self) -> float:
        """Returns how long those who wait still wait for others to run beside; there is at least one."""
        limits = self.waiting[0].limits
        if not self.coming or len(self.waiting) >= limits.max_batch_size:
            return 0.0  # nobody else comes, or there is no room for more
        return max(0.0, self._last_put + 1e-3 * limits.max_wait_ms - time.perf_counter())

    def _take(self, first: Job) -> list[Job]:
        """Takes a job, and those behind it that can run beside it, out of the queue."""
        behind = list(self.waiting)[self.waiting.index(first) + 1 :]
        self.waiting.remove(first)
        jobs = [first]
        for job in behind:
            if len(jobs) >= jobs[0].limits.max_batch_size:
                break
            if _fit([*jobs, job]):
                self.waiting.remove(job)
                jobs.append(job)
        return jobs


def _fit(jobs: Sequence[Job]) -> bool:
    """Tells whether the last of ``jobs`` can run beside the others, and whether that is worth it."""
    first, last = jobs[0], jobs[-1]
    lengths = [job.work.tokens for job in jobs]
    longest = max(lengths)
    return (
        first.shares
        and last.shares
        and first.work.kind == last.work.kind
        and len(jobs) <= most_rows(longest, first.limits.max_batch_size)
        and len(jobs) * longest <= 2 * sum(lengths)  # at most half of what is computed is padding
    )
