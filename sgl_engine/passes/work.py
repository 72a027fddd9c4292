"""Wraps passes as ``Work``: what the worker runs, and which requests may run side by side.

Work of one kind shares a batch; so a kind holds all that has to be equal in it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from sgl_engine.config import EngineConfig, ReuseConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.model.siblings import Siblings
from sgl_engine.model.vlm import VLM
from sgl_engine.passes.large import pruned_from, stream_large_batch
from sgl_engine.passes.neutral import run_neutral_batch
from sgl_engine.passes.prefill import sharing
from sgl_engine.passes.prefixes import shares_prefix
from sgl_engine.passes.scored_texts import ScoringTask
from sgl_engine.passes.scoring import stream_scoring_pass
from sgl_engine.passes.scoring_batch import rest_tokens, shared_beginning, stream_scoring_batch
from sgl_engine.passes.small import SmallPassResult, run_small_batch
from sgl_engine.prompt.neutral import neutral_request
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.request import Decoding, Request
from sgl_engine.serving.job import StepResults, Work

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Asked:
    """A request, as it is given to what runs the small model.

    Attributes:
        request: The request, its images loaded.
        task: What the small model makes of it.
    """

    request: Request
    task: AnswerTask


class SmallPass(Protocol):
    """Runs the small model on several requests side by side; scripted engines bring their own."""

    def __call__(
        self, vlm: VLM, asked: Sequence[Asked], *, consistency_keep_ratio: float | None, reuse: ReuseConfig
    ) -> Sequence[SmallPassResult | Exception]:
        """Answers all of them.

        Args:
            vlm: The small model.
            asked: What it is asked.
            consistency_keep_ratio: Fraction of the visual tokens that the consistency pass sees; None where
                nobody reads what it measures.
            reuse: What may be kept for, or known from, another request.

        Returns:
            In order, results, or errors of single requests.
        """


def run_small(
    vlm: VLM, asked: Sequence[Asked], *, consistency_keep_ratio: float | None, reuse: ReuseConfig
) -> Sequence[SmallPassResult | Exception]:
    """Runs the small model itself: the ``SmallPass`` of every engine that is not told otherwise."""
    return run_small_batch(
        vlm,
        [each.task for each in asked],
        consistency_keep_ratio=consistency_keep_ratio,
        max_rows=len(asked),
        reuse=reuse,
    )


def small_work(
    vlm: VLM, asked: Asked, small_pass: SmallPass, *, consistency_keep_ratio: float | None, reuse: ReuseConfig
) -> Work:
    """Makes work of a small pass, in one step; arguments as of ``SmallPass``."""

    def run(given: Sequence[Any]) -> StepResults:
        results = small_pass(vlm, given, consistency_keep_ratio=consistency_keep_ratio, reuse=reuse)
        yield list(enumerate(results))

    # Engines on one pair of models share a worker; those with other settings do not share a batch.
    kind = sharing(vlm, (small_pass, consistency_keep_ratio, reuse))
    return Work("small", asked, run, kind, len(asked.task.prompt), is_brief=True)


def neutral_work(vlm: VLM, request: Request, config: EngineConfig, siblings: Siblings) -> Work:
    """Makes work of a neutral question about a request's pictures to the small model, in one step."""
    reuse, asked = config.reuse, neutral_request(request)
    prompt = siblings.encode(vlm, asked, config.limits, reuse, config.small_pictures)
    decoding = Decoding(deadline=request.deadline, cancel=request.cancel)

    def run(given: Sequence[Any]) -> StepResults:
        yield list(enumerate(run_neutral_batch(vlm, given, max_rows=len(given), reuse=reuse)))

    task = AnswerTask(prompt, 1, decoding)
    return Work("small", task, run, sharing(vlm, ("neutral", reuse)), len(prompt), is_brief=True)


def large_work(vlm: VLM, task: AnswerTask, plan: PruningPlan, reuse: ReuseConfig) -> Work:
    """Makes work of a large pass, with a step per forward.

    Plans that prune from the same layer on share a batch.
    """
    # Beside a prompt without a known prefix, one that has it would have to run whole: they run apart.
    prompt, below = plan.enter(task.prompt)
    known = shares_prefix(vlm, [prompt], [below], reuse)
    kind = sharing(vlm, ("pruned from", pruned_from(below), reuse, *known))

    def run(given: Sequence[Any]) -> StepResults:
        tasks, plans = [task for task, _ in given], [plan for _, plan in given]
        yield from stream_large_batch(vlm, tasks, plans, reuse=reuse)

    return Work("large", (task, plan), run, kind, len(prompt))


def scoring_work(model: Literal["small", "large"], vlm: VLM, task: ScoringTask, reuse: ReuseConfig) -> Work:
    """Makes work of a scoring pass, with a step for each forward of answers: between two, others may run.

    Questions about the same pictures run side by side, where nothing is recorded or pruned.
    """
    kind = shared_beginning(vlm, task, reuse)

    def run(given: Sequence[Any]) -> StepResults:
        if len(given) > 1:
            yield from stream_scoring_batch(vlm, given, reuse=reuse)
            return
        [asked] = given
        steps = stream_scoring_pass(
            vlm,
            asked.prompt,
            asked.answers,
            plan=asked.plan,
            guide=asked.guide,
            decoding=asked.decoding,
            reuse=reuse,
        )
        result = yield from _silent(steps)
        yield [(0, result)]

    # What they share is computed once, so that only the rest of each prompt counts.
    tokens = len(task.prompt) if kind is None else rest_tokens(task.prompt)
    return Work(model, task, run, kind, tokens)


def _silent(steps: Generator[None, None, Result]) -> Generator[list[tuple[int, Any]], None, Result]:
    """Takes a generator's steps, and yields an empty list for each: there is nothing to tell yet."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield []
