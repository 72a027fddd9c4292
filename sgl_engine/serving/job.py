"""One pass of one request, how whoever waits gets its outcome, and passes that run side by side."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from sgl_engine.chat.text_stream import ReasoningDelta, TextDelta
from sgl_engine.chat.tool_stream import ToolCallDelta
from sgl_engine.config import SchedulerConfig
from sgl_engine.errors import EngineError, RequestCancelledError, RequestError
from sgl_engine.request import Request, check_wanted
from sgl_engine.serving.lookout import LOOKOUT

Result = TypeVar("Result")

_DELTAS = (TextDelta, ReasoningDelta, ToolCallDelta)  # what a hosted model tells is read already
_WORD_S = 0.5  # how long the worker may take to end a job that is not wanted, with its own, better message


StepResults: TypeAlias = Generator[Sequence[tuple[int, Any]], None, None]
"""Yields after every step what is new: a job's number, and a piece of text or, once and last, its outcome."""


@dataclass(frozen=True, eq=False)
class Work:
    """A pass that one of the models is to run, or a question to a hosted one.

    Attributes:
        model: Which model.
        given: What ``run`` takes for this job.
        run: Runs several jobs of one kind side by side, from what each of them is given. An outcome is
            anything but text; one that is an exception is raised where the outcome is waited for.
        kind: What has to be equal in jobs that run side by side; None runs alone.
        tokens: Length of the prompt.
        is_brief: Whether it takes a single step, so that it may run between the steps of long jobs.
        is_remote: Whether another machine does it, and a thread of its own waits; so is a hosted model's.
    """

    model: Literal["small", "large", "hosted"]
    given: Any
    run: Callable[[Sequence[Any]], StepResults]
    kind: Hashable | None
    tokens: int
    is_brief: bool = False
    is_remote: bool = False


class Job:
    """Work that is under way; it has exactly one outcome.

    The worker's thread puts text and the outcome into its mail; the thread that waits takes them out.

    Args:
        work: What is to be run.
        request: Its ``cancel`` and ``deadline`` count.
        limits: Those of the request's engine.
        withdraw: Takes the job out of its queue; returns False when it is not in one.
        ended: Called with the outcome, before it is put into the mail.

    Attributes:
        over: True once the job has an outcome or is dropped. The worker then leaves it alone.
        has_company: Whether it runs beside others, so that the worker may tell nothing until all have ended.
    """

    def __init__(
        self,
        work: Work,
        request: Request,
        *,
        limits: SchedulerConfig,
        withdraw: Callable[[Job], bool],
        ended: Callable[[Any], None],
    ) -> None:
        self.work = work
        self.limits = limits
        self.over = False
        self.has_company = False
        self._request = request
        self._model = work.model
        self._withdraw = withdraw
        self._ended = ended
        self._alone = False
        self._said = self._sent = ""  # text of the current run, and text that was put into the mail
        self._mail: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def shares(self) -> bool:
        """Whether others may run beside it."""
        return self.work.kind is not None and not self._alone

    def again(self) -> Job:
        """Prepares the job to be run once more, from its beginning and by itself; returns the job."""
        self._alone, self._said = True, ""  # `_sent` stays: text that was sent is not sent again
        return self

    def take(self, piece: Any) -> None:
        """Passes on what the worker has made: text, or the outcome."""
        if not isinstance(piece, str):
            self.end(piece)
            return
        self._said += piece
        # In a second run, text that was sent before comes again first; it has to be the same.
        if not self._said.startswith(self._sent[: len(self._said)]):
            problem = (
                "The models failed in the middle of an answer, and it came out differently when repeated."
            )
            self.end(EngineError(problem, remedy="Ask again; with a seed, answers can be repeated."))
        elif len(self._said) > len(self._sent) and not self.over:
            new = self._said[len(self._sent) :]
            self._mail.put(type(piece)(new))  # of the piece's kind: thoughts are text of a kind of their own
            self._sent = self._said

    def tell(self, piece: Any) -> None:
        """Passes on what a hosted model has made: a delta, or the outcome. It never runs again."""
        if not isinstance(piece, _DELTAS):
            self.end(piece)
        elif not self.over:
            self._mail.put(piece)

    def end(self, outcome: Any) -> None:
        """Ends the job with a result or an exception; only the first outcome counts."""
        if self.over:
            return
        self.over = True
        self._ended(outcome)
        self._mail.put(outcome)

    def drop(self) -> None:
        """Gives the job up, as nobody wants its outcome; a thread that still waits is told so at once."""
        if self.over:
            return
        self.over = True
        self._withdraw(self)
        problem = f"The request was cancelled while it waited for the {self._model} model."
        self._mail.put(
            RequestCancelledError(problem, remedy="Send it again if the answer is wanted after all.")
        )

    def result(self) -> Any:
        """Waits for the outcome.

        Raises:
            DeadlineError: The deadline passed, perhaps while it waited.
            RequestCancelledError: It is not wanted any more.
            EngineError: The engine was closed, or has failed, or a model raised what would end a thread.
            Exception: What the models raised while they ran this job alone.
        """
        return finish(self.pieces())

    def pieces(self) -> Generator[Any, None, Any]:
        """Yields text, or deltas, as they come, and returns the outcome; raises what ``result`` raises."""
        noticed: float | None = None
        while True:
            try:
                with LOOKOUT.joined():
                    piece = self._mail.get(timeout=LOOKOUT.interval_s(self._request.deadline))
            except queue.Empty:
                # Nothing new: time to look whether the answer is wanted at all.
                noticed = self._look_up(noticed)
                continue
            if isinstance(piece, (str, *_DELTAS)):
                yield piece
            elif isinstance(piece, BaseException):
                try:
                    raise piece
                finally:
                    del piece  # its traceback holds this frame, which holds it: a cycle
            else:
                return piece

    def _look_up(self, noticed: float | None) -> float | None:
        """Raises when the answer is not wanted any more and the worker does not say so itself.

        Args:
            noticed: When it was first seen that the answer is not wanted; None if it is.

        Returns:
            When it was first seen, this call included; None while the answer is wanted.
        """
        if self.over:
            return noticed  # the outcome lies in the mail
        where = f"while it waited for the {self._model} model"
        if self.has_company:
            where = f"while the {self._model} model answered several requests"
        try:
            check_wanted(self._request, where)
        except RequestError:
            # In the queue, nobody else can tell: raise now. A job that runs is given time, as the worker's
            # error says how far the answer came; but not in company, where it may wait for the others.
            now = time.perf_counter()
            patience_s = 0.0 if self.has_company else _WORD_S
            if self._withdraw(self) or (noticed is not None and now - noticed > patience_s):
                self.over = True
                raise
            return now if noticed is None else noticed
        return None


def finish(steps: Generator[Any, None, Result]) -> Result:
    """Runs a generator to its end, and returns its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


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
            Jobs that have to run again, each by itself, because the batch has failed: whose fault it was
            shows then. A job that was alone ends with the error.
        """
        try:
            if self._steps is None:
                self._steps = self.jobs[0].work.run([job.work.given for job in self.jobs])
            # Nothing is run for jobs that are all dropped.
            for number, piece in next(self._steps) if self.left else ():
                self.jobs[number].take(piece)
        except BaseException as error:  # noqa: BLE001  # whatever a model raises is its caller's to see
            if len(self.jobs) > 1:
                return [job.again() for job in self.left]
            self.jobs[0].end(error if isinstance(error, Exception) else not_of_the_caller(error))
        return []

    @property
    def left(self) -> list[Job]:
        """Jobs that are not over."""
        return [job for job in self.jobs if not job.over]

    def close(self) -> None:
        """Frees what the batch holds, such as caches."""
        if self._steps is not None:
            self._steps.close()


def not_of_the_caller(cause: BaseException) -> EngineError:
    """Makes the error for what would end the thread that it is raised in, and was meant for another one."""
    # A KeyboardInterrupt that a forward raises is no Ctrl-C: raised as it is, it would end the caller's
    # process, or a batch whose other answers are there already.
    name = type(cause).__name__
    error = EngineError(f"A model raised {name} ({cause!s:.200}).", remedy="Ask again, and report this.")
    error.__cause__ = cause
    return error
