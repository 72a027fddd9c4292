"""The road from Request to Response: the only text that knows the order of the steps.

    read -> small -> decide -+-> answer                     the small answer is kept
                             +-> plan -> large -> answer    the large model answers

``answer`` and ``score`` are generators. They yield events, and ``Work`` for one of the models, for which they
are sent a ``Job`` to wait for. So their driver decides where models run, and how many requests run side by
side; all else happens in the driver's thread. The drivers are methods of ``SGLEngine``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias, TypeVar

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.chat.tool_stream import Delta
from sgl_engine.config import EngineConfig
from sgl_engine.decoding.answer import AnswerTask, Generation
from sgl_engine.decoding.choice import hold_to_form, resolve
from sgl_engine.decoding.draft import draft_tokens
from sgl_engine.decoding.loop import token_logprobs
from sgl_engine.decoding.reader import AnswerReader, agree, read_answer, read_stream
from sgl_engine.exit.calibrated import ExitRule
from sgl_engine.exit.decision import (
    ANSWER_SHARE,
    DEFAULT_SCORER,
    Confidence,
    ExitDecision,
    counts_as_empty,
    decide_exit,
    decision_confidence,
    permitted,
    score_answer,
)
from sgl_engine.model.encoding import pictures_for
from sgl_engine.model.vlm import VLM
from sgl_engine.passes.large import LargePassResult, plan_large
from sgl_engine.passes.scoring import ScoringPassResult, check_answers
from sgl_engine.passes.small import SmallPassResult
from sgl_engine.passes.work import Asked, ScoringTask, SmallPass, large_work, scoring_work, small_work
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.prompt.images import resolve_images
from sgl_engine.prompt.texts import check_fields, check_texts
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.report.make import (
    Clock,
    Outcome,
    alone_flops,
    large_cost,
    make_report,
    scoring_alone_flops,
    scoring_cost,
    small_cost,
)
from sgl_engine.request import Decoding, Request, check_wanted
from sgl_engine.response import AnswerScores, Response
from sgl_engine.serving.job import Job, Work

Result = TypeVar("Result")

AnswerEvent: TypeAlias = ExitDecision | Delta

Road: TypeAlias = Generator[Work | AnswerEvent, Job | None, Result]
"""A generator that yields events, and work, for which it is sent the job; it returns its result."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models, and how they are to work together.

    Attributes:
        small: Model that answers first, and guides.
        large: Model that answers when the small one is not sure.
        config: The engine's configuration.
        exit_rule: Decides by a calibration; None compares the score with the configured threshold.
        small_pass: Runs the small model.
    """

    small: VLM
    large: VLM
    config: EngineConfig
    exit_rule: ExitRule | None
    small_pass: SmallPass


def answer(pair: Pair, request: Request, clock: Clock) -> Road[Response]:
    """Answers a request.

    Args:
        pair: The models, and how they work together.
        request: What is asked.
        clock: The request's own.

    Yields:
        Work for the small model; the decision; after an escalation, work for the large model; then deltas.

    Raises:
        RequestError: This request is bad.
        IncompatiblePairError: A model does not say which part of the images its tokens show.
    """
    # read: images are loaded once, for both models, and the answer's form becomes a grammar
    clock.resume()
    check_fields(request)
    max_new_tokens, decoding = resolve(request, pair.config.generation)
    decoding = hold_to_form(request, decoding, pair.config.limits)
    request, prompt = _read(pair, request, clock)
    reader = AnswerReader(pair.small, request, prompt)
    asked = Asked(request, AnswerTask(prompt, max_new_tokens, reader.suited(decoding)))
    # small: answer and importance map
    job = yield from _handed_over(_small_work(pair, asked))
    small: SmallPassResult = job.result()
    clock.add("small", small.stage_ms)
    # decide: whether the small answer is kept; nothing of it has been shown until now
    confidence = score_answer(small.generation.text, small.parts, pair.config.exit)
    decision = _decide(pair, asked, decoding, confidence, small)
    yield decision
    run = _Run(asked, confidence, decision, small)
    if not decision.exit:
        # plan: what the large model sees of the picture, and what it is given to check
        large_prompt, plan = _plan(pair, request, small.importance, clock, decision)
        draft = _draft(pair, request, small)
        clock.lap("encode_large")
        reader = AnswerReader(pair.large, request, large_prompt)
        task = AnswerTask(large_prompt, max_new_tokens, reader.suited(decoding), draft=draft)
        # large: its text is passed on while it is written
        job = yield from _handed_over(large_work(pair.large, task, plan, pair.config.reuse))
        large = yield from read_stream(job.pieces(), reader)
        clock.add("large", large.stage_ms)
        run = replace(run, large_prompt=large_prompt, large=large)
    else:
        yield from reader.replay(small.generation)
    # answer: what the reader has held back, as a tool call may have followed, and the report
    held_back, parsed = reader.finish(run.generation)
    yield from held_back
    return _response(pair, run, parsed, clock)


def score(pair: Pair, request: Request, answers: Sequence[str], clock: Clock) -> Road[AnswerScores]:
    """Scores given answers, instead of generating one: the same steps, with other work.

    Args:
        pair: The models, and how they work together.
        request: What is asked.
        answers: What could be said.
        clock: The request's own.

    Yields:
        Work for the small model; the decision; after an escalation, work for the large model.

    Raises:
        RequestError: This request, or an answer, is bad.
        IncompatiblePairError: A model does not say which part of the images its tokens show.
    """
    # read: answers are scored, so thoughts are over
    clock.resume()
    check_fields(request)
    request, answers = replace(request, max_reasoning_tokens=0), tuple(check_answers(answers))
    _, decoding = resolve(request, pair.config.generation)
    request, prompt = _read(pair, request, clock)
    # small: attention is recorded only where the large model may need the map
    task = ScoringTask(prompt, answers, decoding, guide=pair.config.exit.escalate != "never")
    job = yield from _handed_over(scoring_work("small", pair.small, task, pair.config.reuse))
    small: ScoringPassResult = job.result()
    clock.add("small", small.stage_ms)
    # decide: calibrations are made of generated answers, so none covers this
    confidence = decision_confidence(small.token_logprobs)
    rule = pair.exit_rule
    calibrated = None if rule is None else rule.uncovered("given answers are scored")
    decision = permitted(request, decide_exit(confidence, pair.config.exit, calibrated))
    yield decision
    run = _ScoringRun(task, confidence, decision, small)
    if not decision.exit:
        # plan
        large_prompt, plan = _plan(pair, request, small.importance, clock, decision)
        clock.lap("encode_large")
        # large
        large_task = ScoringTask(large_prompt, task.answers, decoding, plan=plan)
        job = yield from _handed_over(scoring_work("large", pair.large, large_task, pair.config.reuse))
        large: ScoringPassResult = job.result()
        clock.add("large", large.stage_ms)
        run = replace(run, large_task=large_task, large=large)
    # answer
    return _answer_scores(pair, run, clock)


def _handed_over(work: Work) -> Generator[Work, Job | None, Job]:
    """Yields work, and returns the job that the driver has made of it."""
    job = yield work
    assert job is not None, "the driver answers work with a job"
    return job


def _read(pair: Pair, request: Request, clock: Clock) -> tuple[Request, EncodedPrompt]:
    """Loads the images, once for both models, and encodes the request for the small one."""
    config = pair.config
    sides = [(pair.small, config.small_pictures), (pair.large, config.large_pictures)]
    sizes = [(vlm, pictures_for(request, pictures)) for vlm, pictures in sides]
    check_texts(request, config.limits)  # before any picture is read
    request = resolve_images(
        request,
        config.limits,  # and how far both models would scale a picture down themselves:
        lambda width, height: min(vlm.shrink_factor(width, height, pictures) for vlm, pictures in sizes),
    )
    prompt = pair.small.encode(request, config.limits, config.reuse, config.small_pictures)
    clock.lap("encode_small")
    return request, prompt


def _small_work(pair: Pair, asked: Asked) -> Work:
    """Makes work of the small pass, with the pair's settings."""
    ratio, reuse = pair.config.exit.consistency_keep_ratio, pair.config.reuse
    return small_work(pair.small, asked, pair.small_pass, consistency_keep_ratio=ratio, reuse=reuse)


def _decide(
    pair: Pair, asked: Asked, decoding: Decoding, confidence: Confidence, small: SmallPassResult
) -> ExitDecision:
    """Decides whether the small answer is kept; a calibration, if there is one, sets score and threshold."""
    calibrated, generation = None, small.generation.answer
    if pair.exit_rule is not None and counts_as_empty(generation.text, pair.config.exit):
        calibrated = pair.exit_rule.uncovered("the small answer is empty")
    elif pair.exit_rule is not None:
        limit = asked.task.max_new_tokens
        seen = None if small.importance is None else small.importance.describe()
        calibrated = pair.exit_rule.judge(asked.request, decoding, limit, confidence, len(generation), seen)
    return permitted(asked.request, decide_exit(confidence, pair.config.exit, calibrated))


def _plan(
    pair: Pair, request: Request, importance: ImportanceMap | None, clock: Clock, decision: ExitDecision
) -> tuple[EncodedPrompt, PruningPlan]:
    """Encodes the request for the large model, and plans which tokens it keeps."""
    clock.resume()
    config = pair.config
    prompt = pair.large.encode(request, config.limits, config.reuse, config.large_pictures)
    pruning = config.pruning if decision.rung is None else decision.rung.pruning
    return prompt, plan_large(pair.large, prompt, importance, pruning)


def _draft(pair: Pair, request: Request, small: SmallPassResult) -> tuple[int, ...]:
    """Splits the small answer into the large model's tokens, for it to check."""
    if not pair.config.generation.draft:
        return ()
    waiting = partial(check_wanted, request, "while the large model was busy")
    return draft_tokens(pair.small, pair.large, small.generation.answer.token_ids.tolist(), waiting)


@dataclass(frozen=True, eq=False)
class _Run:
    """What an answered request has produced; the large model's fields are None where it was not called."""

    asked: Asked
    confidence: Confidence
    decision: ExitDecision
    small: SmallPassResult
    large_prompt: EncodedPrompt | None = None
    large: LargePassResult | None = None

    @property
    def generation(self) -> Generation:
        """The answer that is returned."""
        return (self.large or self.small).generation


@dataclass(frozen=True, eq=False)
class _ScoringRun:
    """What a scored request has produced; the large model's fields are None where it was not called."""

    task: ScoringTask
    confidence: Confidence
    decision: ExitDecision
    small: ScoringPassResult
    large_task: ScoringTask | None = None
    large: ScoringPassResult | None = None


def _response(pair: Pair, run: _Run, parsed: ParsedAnswer, clock: Clock) -> Response:
    """Makes the response of an answered request."""
    request, prompt = run.asked.request, run.asked.task.prompt
    small, large, large_prompt = run.small, run.large, run.large_prompt
    vlm = pair.small if large is None else pair.large
    agreed = None
    if large is not None:
        agreed = agree(read_answer(pair.small, request, prompt, small.generation), parsed)
    outcome = Outcome(
        decision=run.decision,
        confidence=run.confidence,
        scorer=pair.config.exit.scorer or DEFAULT_SCORER,
        small=small_cost(pair.small, prompt, small),
        large=None if large is None else large_cost(pair.large, large_prompt or prompt, large),
        # Where the large model was not called, its own token counts are unknown; the small one's stand in.
        alone_flops=alone_flops(pair.large, vlm, large_prompt or prompt, len(run.generation)),
        small_answer=small.generation.text,
        large_agreed=agreed,
    )
    return Response(
        text=parsed.text,
        reasoning=run.generation.reasoning,
        finish_reason=run.generation.finish_reason,
        report=make_report(outcome, pair.small, pair.large, clock.stage_ms()),
        tool_calls=parsed.tool_calls,
        invalid_tool_calls=parsed.invalid_tool_calls,
        tokens=token_logprobs(vlm, run.generation.answer) if request.logprobs else (),
        importance=small.importance,
        plan=None if large is None else large.plan,
    )


def _answer_scores(pair: Pair, run: _ScoringRun, clock: Clock) -> AnswerScores:
    """Makes the result of a scored request."""
    small, large, large_task = run.small, run.large, run.large_task or run.task
    outcome = Outcome(
        decision=run.decision,
        confidence=run.confidence,
        scorer=ANSWER_SHARE,
        small=scoring_cost(pair.small, run.task.prompt, small),
        large=None if large is None else scoring_cost(pair.large, large_task.prompt, large, large_task.plan),
        alone_flops=scoring_alone_flops(
            pair.large, pair.small if large is None else pair.large, large_task.prompt, large or small
        ),
        small_answer=run.task.answers[small.best],
        large_agreed=None if large is None else large.best == small.best,
    )
    report = make_report(outcome, pair.small, pair.large, clock.stage_ms())
    return AnswerScores(run.task.answers, (large or small).logprobs, report)
