"""Runs a pair of models in one thread, for everybody who asks: two lanes of jobs, step by step.

A job is one pass of one request. Jobs of one kind run as a batch. A batch of the small lane is one step; one
of the large lane has a step per token. Each step is taken in the lane that has used less time while both had
work. So a slow escalation does not hold up early exits, nor the other way round.

No code of a caller runs here: requests are read, decided on and answered in their callers' threads. Nor does
the worker know any model: a job brings the function that runs it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from sgl_engine.config import SchedulerConfig
from sgl_engine.errors import EngineClosedError, EngineError, OverloadedError
from sgl_engine.serving.job import Job
from sgl_engine.serving.lane import LARGE_BATCHES, Lane

_EXIT_S = 10.0  # how long the interpreter's exit waits for what is under way to stop


class Worker:
    """The thread, started by the first job, and what it has to do.

    It belongs to a process: after a fork, the child's worker starts anew, without the jobs of the parent.
    Do not fork while requests are under way: locks of the models would stay locked in the child.

    Attributes:
        changed: Guards everything here, and is notified of every change.
        stopping: Set once all that is under way has to stop within one token: every ticket's cancellation.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()  # of a re-entrant lock: finalizers may run inside
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        """Sets the worker up for this process, with nothing to do."""
        self.small, self.large = Lane(1), Lane(LARGE_BATCHES)
        self._active = 0  # requests that are inside
        self._step: tuple[Lane, float] | None = None  # whose step is running, and since when
        self._closed = self._ended = False
        self.stopping = threading.Event()
        self._beside: set[threading.Thread] = set()  # threads of requests in the background
        self._process = os.getpid()

    def admit(self, count: int, limits: SchedulerConfig) -> int:
        """Lets requests in, as many of ``count`` as there is room for; returns how many.

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
        if not self.is_of_this_process:
            self._forget_parent()
        with self.changed:
            if self._closed:
                raise closed_error()
            # `handed_over` requests come back without asking, so there may be more inside than max_queue.
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
        """Counts a request as inside again, and as expected at ``lane``."""
        with self.changed:
            self._active += 1
            self.expect(None, lane)

    def leave(self, lane: Lane | None) -> None:
        """Counts a request as inside no longer, and as expected at ``lane`` no longer."""
        with self.changed:
            self._active -= 1
            self.expect(lane, None)

    def expect(self, here: Lane | None, there: Lane | None) -> None:
        """Counts a request as expected ``there``, and not ``here`` any longer; None is no lane."""
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
                # The lane was idle. It must not have the thread to itself until it has caught up.
                lane.used_s = max(lane.used_s, self._used_s(other))
            lane.put(jobs)
            self.changed.notify_all()
            if self._thread is None:
                self._start()

    def withdraw(self, job: Job) -> bool:
        """Takes a job out of its queue; returns False when it is not in one."""
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

    def run_beside(
        self, target: Callable[[], None], *, name: str = "sgl-request", inside: bool = False
    ) -> None:
        """Runs ``target`` in a thread of its own, which keeps no interpreter from ending.

        Args:
            target: What is run.
            name: The thread's.
            inside: Whether it is for a request that was let in, which is answered after closing too.

        Raises:
            EngineClosedError: The engine was closed, or the interpreter is ending.
        """

        def run() -> None:
            try:
                target()
            finally:
                with self.changed:
                    self._beside.discard(thread)

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self.changed:
            if self._ended or (self._closed and not inside):
                raise closed_error()
            _stop_at_exit(self)
            self._beside.add(thread)
            try:
                thread.start()
            except RuntimeError as error:
                self._beside.discard(thread)
                raise closed_error() from error

    def abandon(self) -> None:
        """Cancels what is under way, and ends the thread after its token; jobs left end with an error."""
        self.stopping.set()
        with self.changed:
            self._closed = self._ended = True
            self.changed.notify_all()

    def join(self, until_s: float | None = None) -> None:
        """Waits for the end of all threads, until ``time.perf_counter()`` is ``until_s`` at most."""
        with self.changed:
            threads = [*self._beside, *([] if self._thread is None else [self._thread])]
        for thread in threads:
            # One of them may come here itself, when it drops the last reference to an engine.
            if thread is not threading.current_thread():
                thread.join(None if until_s is None else max(0.0, until_s - time.perf_counter()))

    def wait_for_callers(self, until_s: float) -> None:
        """Waits until nobody is inside, until ``time.perf_counter()`` is ``until_s`` at most."""
        with self.changed:
            self.changed.wait_for(lambda: not self._active, max(0.0, until_s - time.perf_counter()))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        with self.changed:
            return not (self._active or self._has_work())

    def load(self) -> dict[str, int]:
        """Counts requests inside, and their jobs that run or wait in either lane."""
        with self.changed:
            lanes = (self.small, self.large)
            return {
                "under_way": self._active,
                "running": sum(len(batch.jobs) for lane in lanes for batch in lane.running),
                "waiting_small": len(self.small.waiting),
                "waiting_large": len(self.large.waiting),
            }

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was begun in this process, and not in one that this is a fork of."""
        return self._process == os.getpid()

    def _has_work(self) -> bool:
        return any(lane.waiting or lane.running for lane in (self.small, self.large))

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sgl-engine", daemon=True)
        _stop_at_exit(self)
        self._thread.start()

    def _forget_parent(self) -> None:
        """Begins anew in a forked child, which has no thread, and may have inherited a locked lock."""
        self.changed, self._thread = threading.Condition(), None
        self._begin()

    def _run(self) -> None:
        """Takes step after step, until nothing can come any more; this is all that the thread does."""
        while True:
            try:
                lane = self._next_lane()
                if lane is None:
                    break
                self._run_step(lane)
            except BaseException as error:  # noqa: BLE001  # a fault of ours; those who wait must know
                self._fail(_broken(error))
        self._fail(closed_error)

    def _next_lane(self) -> Lane | None:
        """Waits for work, and picks the lane for the next step; returns None when there will be no more."""
        with self.changed:
            while not self._ended:
                waits = {lane: lane.wait_s() for lane in (self.small, self.large)}
                ready = [lane for lane, wait_s in waits.items() if wait_s == 0.0]
                if ready:
                    return min(ready, key=lambda lane: lane.used_s)  # the small one, where they are equal
                if self._closed and not self._active and not self._has_work():
                    self._ended = True
                    break
                # Until something changes, or a lane has waited long enough for others to come.
                self.changed.wait(min((wait for wait in waits.values() if wait is not None), default=None))
        return None

    def _run_step(self, lane: Lane) -> None:
        """Runs one step of one batch."""
        with self.changed:
            batch = lane.next_batch()
            self._step = lane, time.perf_counter()
        again = batch.step()  # without the lock: others come and go meanwhile
        with self.changed:
            lane.used_s, self._step = self._used_s(lane), None
            lane.running.popleft()
            # Jobs of a batch that has failed wait no longer than they already have: they come first.
            lane.waiting.extendleft(reversed(again))
            if batch.left and not again:
                lane.running.append(batch)  # behind the others, which have their steps first
                return
        batch.close()

    def _used_s(self, lane: Lane) -> float:
        """Seconds that a lane has used, those of a step that is running included.

        A step tells its outcomes before it has ended, and whoever gets one may come back with more work.
        """
        if self._step is None or self._step[0] is not lane:
            return lane.used_s
        return lane.used_s + time.perf_counter() - self._step[1]

    def _fail(self, error: Callable[[], EngineError]) -> None:
        """Ends every job with an error of its own."""
        with self.changed:
            for lane in (self.small, self.large):
                jobs = [*lane.waiting, *(job for batch in lane.running for job in batch.left)]
                lane.waiting.clear()
                lane.running.clear()
                for job in jobs:
                    job.end(error())


_started: weakref.WeakSet[Worker] = weakref.WeakSet()


def _stop_at_exit(worker: Worker) -> None:
    """Sees to it that a worker is stopped before the interpreter ends."""
    if not _started:  # none yet, so nothing is registered
        atexit.register(_stop_all)
    _started.add(worker)


def _stop_all() -> None:
    """Stops all workers before the interpreter ends, and waits for their threads and for callers' own."""
    # The threads are daemons: nobody waits for whole answers. But one that is inside torch when the
    # interpreter ends would take the process down.
    workers = [worker for worker in _started if worker.is_of_this_process]
    for worker in workers:
        worker.abandon()
    until_s = time.perf_counter() + _EXIT_S
    for worker in workers:
        worker.join(until_s)
        worker.wait_for_callers(until_s)


def closed_error() -> EngineClosedError:
    """Makes the error for requests that come too late."""
    return EngineClosedError("The engine is closed.", remedy="Make another engine on the same models.")


def _broken(cause: BaseException) -> Callable[[], EngineError]:
    """Makes a function that makes errors: one for each job, as a shared one would collect tracebacks."""

    def make() -> EngineError:
        error = EngineError(f"The engine's worker failed: {cause!r}.", remedy="Ask again, and report this.")
        error.__cause__ = cause
        return error

    return make
