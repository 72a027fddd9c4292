"""Scores lists of documents side by side, without holding the event loop or more than a few pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from sgl_engine import (
    DeadlineError,
    OverloadedError,
    Request,
    RunReport,
    SGLEngine,
)
from sgl_engine.relevance import Judged, RelevanceQuestion, judge, list_score, settle
from sgl_engine.request import check_wanted
from sgl_engine.server.errors import HTTPError, code_of, status_of
from sgl_engine.server.state import ServerState

Result = TypeVar("Result")
SIDE_BY_SIDE = 4
"""Documents of one request that are in work, and in memory, at a time."""
AGAIN_S = 0.05
"""A document for which there is no room is tried again after so many seconds."""


@dataclass(frozen=True)
class AskedDocument:
    """One document, as a model is asked about it.

    Attributes:
        request: The document, and the question.
        question: Which answers count.
        place: Where in the body the document stands: ``documents.2``.
    """

    request: Request
    question: RelevanceQuestion
    place: str


@dataclass(frozen=True)
class ScoredList:
    """What became of one list.

    Attributes:
        judged: One for each document.
        score: How sure the small model was of the list, in [0, 1]; None where it was not asked alone.
    """

    judged: Sequence[Judged]
    score: float | None


@dataclass
class ListScorer:
    """Scores the lists of one request.

    Attributes:
        state: Whose threads are used.
        engine: As the request wants it.
        cancel: Set where the client has left, or one document has failed them all.
        refuses: Whether a document that cannot be used fails the request.
        runs: The report of every run so far, those that were overruled too.
    """

    state: ServerState
    engine: SGLEngine
    cancel: threading.Event
    refuses: bool = True
    runs: list[RunReport] = field(default_factory=list)
    _has_begun: bool = False
    _trying: int = 0
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SIDE_BY_SIDE))

    async def score(
        self, lists: Sequence[Sequence[AskedDocument]], *, max_rescored: int | None
    ) -> list[ScoredList]:
        """Scores several lists, each settled by itself.

        Args:
            lists: At least one, none of them empty.
            max_rescored: At most so many documents of a list go to the large model; None is no limit.

        Raises:
            HTTPError: A document cannot be used.
            SGLError: The request cannot be answered, whatever the documents are.
        """
        return await self._together([self._list(asked, max_rescored) for asked in lists])

    async def _list(self, asked: Sequence[AskedDocument], max_rescored: int | None) -> ScoredList:
        rounds = settle(len(asked), self.engine.config.exit, max_rescored=max_rescored)
        score: float | None = None
        step, is_first = next(rounds), True
        while True:
            judged = await self._together(
                [self._one(asked[index], step.model, is_first=is_first) for index in step.indices]
            )
            if step.model == "small":
                score = list_score([each.score for each in judged])
            try:
                step, is_first = rounds.send(judged), False
            except StopIteration as end:
                return ScoredList(end.value, score)

    async def _together(self, works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Waits for all of them; where one fails, the others are given up."""
        tasks = [asyncio.create_task(work) for work in works]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            self.cancel.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _one(self, asked: AskedDocument, model: Literal["small", "large"], *, is_first: bool) -> Judged:
        async with self._room:
            judged = await self._judged(asked, model)
        if judged.report is not None:
            self.runs.append(judged.report)
        error = judged.error
        # A deadline is the whole request's. Where the large model fails, the small one's score stays.
        if isinstance(error, DeadlineError) or (error is not None and self.refuses and is_first):
            raise HTTPError(
                status_of(error), f"{asked.place}: {error}", code=code_of(error), param=asked.place
            )
        return judged

    async def _judged(self, asked: AskedDocument, model: Literal["small", "large"]) -> Judged:
        """Scores one document. Once one of a request was let in, the others wait for room."""
        score = partial(self.engine.score_answers, asked.request, asked.question.answers, model=model)
        while True:
            self._trying += 1
            try:
                judged = await self.state.in_thread(partial(judge, asked.question, score))
            except OverloadedError:
                if self._trying == 1 and not self._has_begun:
                    raise
            else:
                self._has_begun = True
                return judged
            finally:
                self._trying -= 1
            check_wanted(asked.request, "while its documents waited for room")
            await asyncio.sleep(AGAIN_S)
