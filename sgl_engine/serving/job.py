"""One pass of one request: what the worker is given to run, and the way back to whoever waits for it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from sgl_engine.config import SchedulerConfig
from sgl_engine.errors import EngineError, RequestCancelledError, RequestError
from sgl_engine.request import Request, check_wanted

Result = TypeVar("Result")

_LOOK_UP_S = 0.05  # how soon somebody who waits notices that the answer is not wanted any more
_WORD_S = 0.5  # how long the worker may take to say how far it came


StepResults: TypeAlias = Generator[Sequence[tuple[int, Any]], None, None]
"""After every step, what is new: number of a job, and a piece of text or, once and last, its outcome."""


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be run, by one of the models.

    Attributes:
        model: Which one.
        given: What ``run`` takes for this job.
        run: Runs several jobs of one kind side by side, from what each of them is given. An outcome is
            anything but text; an exception is raised where it is waited for.
        kind: What has to be equal in jobs that run side by side; None runs alone.
        tokens: Length of the prompt.
        is_brief: Whether it takes one step, so that it need not wait until others have come to their end.
    """

    model: Literal["small", "large"]
    given: Any
    run: Callable[[Sequence[Any]], StepResults]
    kind: Hashable | None
    tokens: int
    is_brief: bool = False


class Job:
    """Work that is under way; it has exactly one outcome.

    Args:
        work: What is to be run.
        request: Whose ``cancel`` and ``deadline`` count.
        limits: Those of the request's engine.
        withdraw: Takes the job out of its queue; False when it is not in one.
        ended: Called with the outcome, before anybody is told.

    Attributes:
        over: Whether there is an outcome, or nobody wants one.
        has_company: Whether it runs beside others, whose end the worker may wait for before it says anything.
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
        self._said = self._sent = ""
        self._mail: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def shares(self) -> bool:
        """Whether others may run beside it."""
        return self.work.kind is not None and not self._alone

    def again(self) -> Job:
        """The same job, to be run from its beginning and by itself; what was said is not said again."""
        self._alone, self._said = True, ""
        return self

    def take(self, piece: Any) -> None:
        """Passes on what the worker has made: text, or the outcome."""
        if not isinstance(piece, str):
            self.end(piece)
            return
        self._said += piece
        if not self._said.startswith(self._sent[: len(self._said)]):
            problem = (
                "The models failed in the middle of an answer, and it came out differently when repeated."
            )
            self.end(EngineError(problem, remedy="Ask again; with a seed, answers can be repeated."))
        elif len(self._said) > len(self._sent) and not self.over:
            self._mail.put(self._said[len(self._sent) :])
            self._sent = self._said

    def end(self, outcome: Any) -> None:
        """Tells the outcome: a result, or an exception. Only the first counts."""
        if self.over:
            return
        self.over = True
        self._ended(outcome)
        self._mail.put(outcome)

    def drop(self) -> None:
        """Not wanted any more; whoever still waits is told so at once."""
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
            DeadlineError: The deadline passed, waiting included.
            RequestCancelledError: It is not wanted any more.
            EngineError: The engine was closed, or has failed.
            BaseException: What the models raised, when it was this job's own fault.
        """
        return finish(self.pieces())

    def pieces(self) -> Generator[str, None, Any]:
        """Waits for the outcome, and yields text as it comes; errors as those of ``result``."""
        noticed: float | None = None
        while True:
            try:
                piece = self._mail.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                noticed = self._look_up(noticed)
                continue
            if isinstance(piece, str):
                yield piece
            elif isinstance(piece, BaseException):
                try:
                    raise piece
                finally:
                    del piece  # whose traceback holds this frame
            else:
                return piece

    def _look_up(self, noticed: float | None) -> float | None:
        """Gives up when the answer is not wanted; returns since when it is not."""
        if self.over:
            return noticed  # its outcome lies in the mail
        where = f"while it waited for the {self._model} model"
        if self.has_company:
            where = f"while the {self._model} model answered several requests"
        try:
            check_wanted(self._request, where)
        except RequestError:
            now = time.perf_counter()
            patience_s = 0.0 if self.has_company else _WORD_S
            if self._withdraw(self) or (noticed is not None and now - noticed > patience_s):
                self.over = True
                raise
            return now if noticed is None else noticed
        return None


def finish(steps: Generator[Any, None, Result]) -> Result:
    """Runs a generator to its end, for its result alone."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
