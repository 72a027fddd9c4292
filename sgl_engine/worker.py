"""The thread that runs a pair of models for everybody who asks: two lanes of jobs, in turns.

A job is one pass of one request. Jobs of one kind run as a group, step by step; a group of the small lane is
one step, one of the large lane has a step per token. Between two steps the lane goes on that has used less
time while both had work, so one slow escalation does not hold up early exits, nor the other way round.

Nothing of a caller runs here: requests are read, decided on and answered in their callers' threads. Nothing
of a model is known here either: a job brings the function that runs it and its like.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from sgl_engine.batching import most_rows
from sgl_engine.config import SchedulerConfig
from sgl_engine.errors import EngineClosedError, EngineError, OverloadedError
from sgl_engine.job import Job, Steps

_LARGE_GROUPS = 2  # so that a long answer does not keep all later escalations waiting
_EXIT_S = 10.0  # how long the interpreter's exit waits for a step to end


class Group:
    """Jobs that run side by side.

    Args:
        jobs: Of one kind.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        for job in jobs:
            job.has_company = len(jobs) > 1
        self._steps: Steps | None = None

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
        self.running: deque[Group] = deque()
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

    def next_group(self) -> Group:
        """The group whose turn it is; it stays ``running`` until it is taken out."""
        if self.waiting and len(self.running) < self._groups and not self._gathers_s():
            self.running.appendleft(Group(self._take()))
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


class Worker:
    """A lazily started thread, and what it has to do.

    It belongs to a process: after a fork the child's worker starts anew, without the jobs of the parent.
    Do not fork while requests are under way: locks of the models stay as they are at that moment.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()  # of a re-entrant lock: finalizers may run inside
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        self.small, self.large = Lane("small", 1), Lane("large", _LARGE_GROUPS)
        self._active = 0
        self._closed = self._ended = False
        self._process = os.getpid()

    def admit(self, count: int, limits: SchedulerConfig) -> int:
        """Lets requests in; as many of ``count`` as there is room for.

        Raises:
            OverloadedError: There is room for none.
            EngineClosedError: The engine was closed.
            EngineError: Asked from the worker's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise EngineError(
                "The engine was asked by what it is running itself.",
                remedy="Ask from another thread, or another engine.",
            )
        if self._process != os.getpid():
            self._forget_parent()
        with self.changed:
            if self._closed:
                raise closed_error()
            admitted = min(count, limits.max_queue - self._active)
            if admitted < 1 <= count:
                raise OverloadedError(
                    f"{self._active} requests are under way; max_queue is {limits.max_queue}.",
                    remedy="Ask again later, ask fewer at once, or raise SchedulerConfig.max_queue.",
                )
            self._active += admitted
            self.small.coming += admitted
            return admitted

    def enter(self, lane: Lane | None) -> None:
        """Somebody who had left goes on, and is expected at ``lane``."""
        with self.changed:
            self._active += 1
            self.expect(None, lane)

    def leave(self, lane: Lane | None) -> None:
        """Somebody who was expected at ``lane`` needs nothing for now."""
        with self.changed:
            self._active -= 1
            self.expect(lane, None)

    def expect(self, here: Lane | None, there: Lane | None) -> None:
        """Somebody is expected ``there``, and not ``here`` any longer."""
        with self.changed:
            if here is not None:
                here.coming -= 1
            if there is not None:
                there.coming += 1
            self.changed.notify_all()

    def put(self, lane: Lane, jobs: Sequence[Job]) -> None:
        """Hands jobs over.

        Raises:
            EngineClosedError: The engine was closed, and the worker is gone.
        """
        with self.changed:
            if self._ended:
                raise closed_error()
            other = self.large if lane is self.small else self.small
            if lane.wait_s() is None:
                lane.used_s = max(lane.used_s, other.used_s)
            lane.put(jobs)
            self.changed.notify_all()
            if self._thread is None:
                self._start()

    def withdraw(self, job: Job) -> bool:
        """Takes a job out of its queue; False when it is not in one."""
        with self.changed:
            for lane in (self.small, self.large):
                if job in lane.waiting:
                    lane.waiting.remove(job)
                    self.changed.notify_all()
                    return True
        return False

    def close(self) -> None:
        """Lets nobody in any more; the thread ends when everybody is answered."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def abandon(self) -> None:
        """Ends the thread after the step that is under way; who waits gets an error."""
        with self.changed:
            self._closed = self._ended = True
            self.changed.notify_all()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the thread's end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        with self.changed:
            return not (self._active or self._has_work())

    def _has_work(self) -> bool:
        return any(lane.waiting or lane.running for lane in (self.small, self.large))

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sgl-engine", daemon=True)
        if not _started:
            atexit.register(_stop_all)
        _started.add(self)
        self._thread.start()

    def _forget_parent(self) -> None:
        self.changed, self._thread = threading.Condition(), None
        self._begin()

    def _run(self) -> None:
        while True:
            try:
                lane = self._next_lane()
                if lane is None:
                    break
                self._turn(lane)
            except BaseException as error:  # noqa: BLE001  # a fault of ours; those who wait must know
                self._fail(_broken(error))
        self._fail(closed_error)

    def _next_lane(self) -> Lane | None:
        """Waits until there is work; None when there will be none."""
        with self.changed:
            while not self._ended:
                waits = {lane: lane.wait_s() for lane in (self.small, self.large)}
                ready = [lane for lane, wait_s in waits.items() if wait_s == 0.0]
                if ready:
                    return min(ready, key=lambda lane: lane.used_s)  # the small one, where they are equal
                if self._closed and not self._active and not self._has_work():
                    self._ended = True
                    break
                self.changed.wait(min((wait for wait in waits.values() if wait is not None), default=None))
        return None

    def _turn(self, lane: Lane) -> None:
        """One step of one group."""
        with self.changed:
            group = lane.next_group()
        started = time.perf_counter()
        again = group.step()
        with self.changed:
            lane.used_s += time.perf_counter() - started
            lane.running.popleft()
            lane.waiting.extendleft(reversed(again))
            if group.left and not again:
                lane.running.append(group)
                return
        group.close()

    def _fail(self, error: Callable[[], EngineError]) -> None:
        """Ends every job with an error of its own."""
        with self.changed:
            for lane in (self.small, self.large):
                jobs = [*lane.waiting, *(job for group in lane.running for job in group.left)]
                lane.waiting.clear()
                lane.running.clear()
                for job in jobs:
                    job.end(error())


_started: weakref.WeakSet[Worker] = weakref.WeakSet()


def _stop_all() -> None:
    """Before the interpreter ends: a thread inside torch at that moment would take the process down."""
    workers = list(_started)
    for worker in workers:
        worker.abandon()
    for worker in workers:
        worker.join(_EXIT_S)


def closed_error() -> EngineClosedError:
    """For requests that come too late."""
    return EngineClosedError("The engine is closed.", remedy="Make another engine on the same models.")


def _broken(cause: BaseException) -> Callable[[], EngineError]:
    def make() -> EngineError:
        error = EngineError(f"The engine's worker failed: {cause!r}.", remedy="Ask again, and report this.")
        error.__cause__ = cause
        return error

    return make
