"""The order in which a list of documents is scored, said once for threads and for asyncio.

A list is settled by the small model when at most one document is not surely irrelevant, and that one is
surely relevant: scores of at most 1 - t and at least t, t being the exit threshold. Otherwise, the large
model scores all documents that are not surely irrelevant. So a document that the small model is sure and
wrong about is noticed beside the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sgl_engine.errors import (
    IncompatiblePairError,
    InvalidRequestError,
    ProcessorError,
    RequestCancelledError,
    RequestError,
    SGLError,
)

if TYPE_CHECKING:
    from sgl_engine.config import ExitConfig
    from sgl_engine.relevance.question import RelevanceQuestion
    from sgl_engine.report.run_report import RunReport
    from sgl_engine.response import AnswerScores


@dataclass(frozen=True)
class Judged:
    """What became of one document.

    Attributes:
        score: Its relevance in [0, 1], higher = more relevant; None where it cannot be used.
        report: Of the run that scored it.
        error: Why it cannot be used.
    """

    score: float | None
    report: RunReport | None = None
    error: SGLError | None = None


@dataclass(frozen=True)
class Round:
    """Documents that one model is to score; those of one round may be scored side by side.

    Attributes:
        model: Whose scores are wanted, as in ``SGLEngine.score_answers``.
        indices: Of the documents, in the order in which they are best begun.
    """

    model: Literal["small", "large"]
    indices: tuple[int, ...]


def settle(
    count: int, rule: ExitConfig, *, max_rescored: int | None = None
) -> Generator[Round, Sequence[Judged], list[Judged]]:
    """Says which documents which model scores; yields one or two rounds, and is sent what they found.

    Args:
        count: How many documents there are; of none, nothing is scored.
        rule: Whether a list escalates, and the threshold.
        max_rescored: At most so many documents go to the large model, the best ones; None is no limit.

    Yields:
        A round; to be answered with one ``Judged`` for each of its indices, in their order.

    Returns:
        One for each document. Where the large model fails, the small one's score stays.
    """
    if not count:
        return []
    first: Literal["small", "large"] = "large" if rule.escalate == "always" else "small"
    judged = list((yield Round(first, tuple(range(count)))))
    # Otherwise the first round was the only one: the small model alone, or the large one.
    unsettled = contenders([each.score for each in judged], rule.threshold) if rule.escalate == "auto" else []
    unsettled = unsettled[:max_rescored]
    if unsettled:
        again = yield Round("large", tuple(unsettled))
        for index, each in zip(unsettled, again, strict=True):
            if each.score is not None:
                judged[index] = each
    return judged


def run_rounds(
    rounds: Generator[Round, Sequence[Judged], list[Judged]], run: Callable[[Round], Sequence[Judged]]
) -> list[Judged]:
    """Takes a list through its rounds; ``run`` scores the documents of one."""
    judged: Sequence[Judged] | None = None
    while True:
        try:
            step = next(rounds) if judged is None else rounds.send(judged)
        except StopIteration as end:
            result: list[Judged] = end.value
            return result
        judged = run(step)


def judge(question: RelevanceQuestion, score: Callable[[], AnswerScores]) -> Judged:
    """Scores one document; one that cannot be used fails no other.

    Args:
        question: What is asked.
        score: Finds the document, and scores the question's answers.

    Raises:
        InvalidRequestError: The query's fault.
        RequestCancelledError: The caller's wish.
        SGLError: The engine cannot take the request, whatever the document is.
    """
    try:
        scores = score()
    except (InvalidRequestError, RequestCancelledError):
        raise
    except (RequestError, IncompatiblePairError, ProcessorError) as error:
        # The models are there, so the last two are about the picture: one that both tile differently, or
        # that a processor does not take.
        return Judged(None, error=error)
    return Judged(question.relevance(scores), scores.report)


def contenders(scores: Sequence[float | None], threshold: float) -> list[int]:
    """Finds the documents that the large model has to score: their indices, best first; may be empty.

    Args:
        scores: By the small model; None where a document cannot be used.
        threshold: The exit threshold.
    """
    if list_score(scores) >= threshold:
        return []
    found = [
        (-score, index) for index, score in enumerate(scores) if score is not None and 1 - score < threshold
    ]
    return [index for _, index in sorted(found)]


def list_score(scores: Sequence[float | None]) -> float:
    """How sure the small model is of a whole list, in [0, 1], higher = surer.

    The list is settled at exactly the thresholds up to this: either none of the documents is relevant, or the
    best one is, and no other.
    """
    known = sorted((score for score in scores if score is not None), reverse=True)
    best, second, *_ = [*known, 0.0, 0.0]
    return max(1 - best, min(best, 1 - second))


def order(
    judged: Sequence[Judged],
    *,
    min_score: float | None = None,
    top_n: int | None = None,
    unreadable: Literal["keep", "drop"] = "keep",
) -> list[int]:
    """Indices of documents, the most relevant first; equal scores keep their order.

    Args:
        judged: All of them.
        min_score: Those that score less are left out.
        top_n: At most so many are returned; None is all of them.
        unreadable: Whether those without a score are kept, at the end, or dropped.
    """
    lowest = 0.0 if min_score is None else min_score
    found = [
        (-each.score, index)
        for index, each in enumerate(judged)
        if each.score is not None and each.score >= lowest
    ]
    chosen = [index for _, index in sorted(found)]
    if unreadable == "keep":
        chosen += [index for index, each in enumerate(judged) if each.score is None]
    return chosen[:top_n]
