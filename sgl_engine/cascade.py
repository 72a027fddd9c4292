"""The road from Request to Response: the only text that knows the order of the steps.

    read -> small -> decide -+-> answer                         the small answer is kept
                             +-> plan -> large -> answer        the large model answers
                             +-> evidence -> large -> answer    so does one on another machine

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
from sgl_engine.chat.tool_stream import Delta
from sgl_engine.decoding.answer import AnswerTask, Generation
from sgl_engine.decoding.choice import hold_to_form, resolve
from sgl_engine.decoding.draft import draft_tokens
from sgl_engine.decoding.reader import AnswerReader, read_answer, read_stream
from sgl_engine.exit.decision import (
    Confidence,
    ExitDecision,
    counts_as_empty,
    decide_exit,
    decision_confidence,
    permitted,
    score_answer,
)
from sgl_engine.finished import (
    Pair,
    Run,
    ScoringRun,
    ScoringTurn,
    SmallTurn,
    Wish,
    make_answer_scores,
    make_response,
)
from sgl_engine.hosted.evidence import gather
from sgl_engine.hosted.model import HostedModel
from sgl_engine.hosted.station import HostedPass, ask, cannot_score, describe_failure, hosted_work
from sgl_engine.model.encoding import pictures_for
from sgl_engine.model.vlm import VLM
from sgl_engine.passes.large import plan_large
from sgl_engine.passes.neutral import NeutralMap
from sgl_engine.passes.scored_texts import ScoringPassResult, ScoringTask, check_answers
from sgl_engine.passes.small import SmallPassResult
from sgl_engine.passes.work import Asked, large_work, neutral_work, scoring_work, small_work
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.prompt.images import resolve_images
from sgl_engine.prompt.texts import check_fields, check_texts
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.report.clock import Clock
from sgl_engine.report.make import scoring_cost, small_cost, with_neutral
from sgl_engine.report.spans import watched
from sgl_engine.request import Decoding, Request, check_wanted
from sgl_engine.response import AnswerScores, Response
from sgl_engine.serving.job import Job, Work

Result = TypeVar("Result")
Turn = TypeVar("Turn", SmallTurn, ScoringTurn)

AnswerEvent: TypeAlias = ExitDecision | Delta

Road: TypeAlias = Generator[Work | AnswerEvent, Job | None, Result]
"""A generator that yields events, and work, for which it is sent the job; it returns its result."""


@watched
def answer(pair: Pair, request: Request, clock: Clock) -> Road[Response]:
    """Answers a request.

    Args:
        pair: The models, and how they work together.
        request: What is asked.
        clock: The request's own.

    Yields:
        Work for the small model; the decision; after an escalation, work for the large model, perhaps after
        a neutral question to the small one; then deltas.

    Raises:
        RequestError: This request is bad.
        IncompatiblePairError: A model does not say which part of the images its tokens show.
    """
    begun = yield from begin_answer(pair, request, clock)
    if begun.run.turn.decision.exit:
        return (yield from keep_answer(pair, begun, clock))
    if pair.hosted is not None:
        # evidence, large: what the small model looked at is sent, and the answer is read already
        return (yield from _ask_hosted(pair, pair.hosted, begun, clock))
    return (yield from escalate_answer(pair, begun.run.wish, begun.run.turn, clock))


@dataclass(frozen=True, eq=False)
class Begun:
    """The road of an answer, after the decision.

    Attributes:
        run: What there is so far.
        reader: Reads the small model's answer.
    """

    run: Run
    reader: AnswerReader


def begin_answer(pair: Pair, request: Request, clock: Clock) -> Road[Begun]:
    """The road up to the decision, which it yields, and what only the small model can do after it."""
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
    looked = small.importance is not None
    confidence = score_answer(small.generation.text, small.parts, pair.config.exit, pictures=looked)
    decision = _decide(pair, asked, decoding, confidence, small)
    yield decision
    cost = small_cost(pair.small, prompt, small)
    turn = SmallTurn(confidence, decision, small.generation, small.importance, cost)
    if not decision.exit:
        turn = replace(turn, parsed=read_answer(pair.small, request, prompt, small.generation))
        turn = yield from _look_beyond(pair, request, turn, small.importance, clock)
    return Begun(Run(Wish(request, decoding, max_new_tokens), turn, prompt), reader)


def keep_answer(pair: Pair, begun: Begun, clock: Clock) -> Road[Response]:
    """The rest of the road where the small answer is kept."""
    # answer: what the reader has held back, as a tool call may have followed, and the report
    run, reader = begun.run, begun.reader
    yield from reader.replay(run.generation)
    held_back, parsed = reader.finish(run.generation)
    yield from held_back
    return make_response(pair, run, parsed, clock)


def escalate_answer(pair: Pair, wish: Wish, turn: SmallTurn, clock: Clock) -> Road[Response]:
    """The rest of the road where the large model answers, which is loaded here; of the small one, ``turn``.

    Of the small model, only its tokenizer is asked.
    """
    vlm, request = pair.large, wish.request
    assert isinstance(vlm, VLM), "a hosted model is asked on another road"
    # plan: what the large model sees of the picture, and what it is given to check
    prompt, plan = _plan(vlm, pair, request, turn, turn.beyond or turn.importance, clock)
    draft = _draft(vlm, pair, request, turn.generation)
    clock.lap("encode_large")
    reader = AnswerReader(vlm, request, prompt)
    task = AnswerTask(prompt, wish.max_new_tokens, reader.suited(wish.decoding), draft=draft)
    # large: its text is passed on while it is written
    job = yield from _handed_over(large_work(vlm, task, plan, pair.config.reuse))
    large = yield from read_stream(job.pieces(), reader)
    clock.add("large", large.stage_ms)
    # answer
    held_back, parsed = reader.finish(large.generation)
    yield from held_back
    return make_response(pair, Run(wish, turn, prompt, large=large), parsed, clock)


@watched
def score(pair: Pair, request: Request, answers: Sequence[str], clock: Clock) -> Road[AnswerScores]:
    """Scores given answers, instead of generating one: the same steps, with other work.

    Args:
        pair: The models, and how they work together.
        request: What is asked.
        answers: What could be said.
        clock: The request's own.

    Yields:
        Work for the small model; the decision; after an escalation, work as of ``answer``.

    Raises:
        RequestError: This request, or an answer, is bad.
        IncompatiblePairError: A model does not say which part of the images its tokens show.
    """
    wish, run = yield from begin_scores(pair, request, answers, clock)
    if not run.turn.decision.exit:
        return (yield from escalate_scores(pair, wish, run.task.answers, run.turn, clock))
    return keep_scores(pair, run, clock)


def begin_scores(
    pair: Pair, request: Request, answers: Sequence[str], clock: Clock
) -> Road[tuple[Wish, ScoringRun]]:
    """The road of scores up to the decision, which it yields: the small model's half."""
    # read: answers are scored, so thoughts are over
    clock.resume()
    check_fields(request)
    if not isinstance(pair.large, VLM):
        raise cannot_score(pair.large)
    request, answers = replace(request, max_reasoning_tokens=0), tuple(check_answers(answers))
    _, decoding = resolve(request, pair.config.generation)
    request, prompt = _read(pair, request, clock)
    # small: attention is recorded only where the large model may need the map
    config = pair.config
    guide = config.exit.escalate != "never" and config.pruning.needs_map
    task = ScoringTask(prompt, answers, decoding, guide=guide)
    job = yield from _handed_over(scoring_work("small", pair.small, task, pair.config.reuse))
    small: ScoringPassResult = job.result()
    clock.add("small", small.stage_ms)
    # decide: calibrations are made of generated answers, so none covers this
    confidence = decision_confidence(small.token_logprobs)
    rule = pair.exit_rule
    calibrated = None if rule is None else rule.uncovered("given answers are scored")
    decision = permitted(request, decide_exit(confidence, pair.config.exit, calibrated))
    yield decision
    turn = ScoringTurn(confidence, decision, small, scoring_cost(pair.small, prompt, small))
    turn = yield from _look_beyond(pair, request, turn, small.importance, clock)
    return Wish(request, decoding), ScoringRun(turn, task)


def keep_scores(pair: Pair, run: ScoringRun, clock: Clock) -> AnswerScores:
    """The rest of the road where the small model's scores are kept."""
    assert isinstance(pair.large, VLM), "a hosted model has been refused"
    return make_answer_scores(pair, pair.large, run, clock)


def escalate_scores(
    pair: Pair, wish: Wish, answers: tuple[str, ...], turn: ScoringTurn, clock: Clock
) -> Road[AnswerScores]:
    """The rest of the road where the large model scores, as ``escalate_answer``."""
    vlm = pair.large
    assert isinstance(vlm, VLM), "a hosted model has been refused"
    looked = turn.beyond or turn.result.importance
    prompt, plan = _plan(vlm, pair, wish.request, turn, looked, clock)
    clock.lap("encode_large")
    task = ScoringTask(prompt, answers, wish.decoding, plan=plan)
    job = yield from _handed_over(scoring_work("large", vlm, task, pair.config.reuse))
    large: ScoringPassResult = job.result()
    clock.add("large", large.stage_ms)
    return make_answer_scores(pair, vlm, ScoringRun(turn, task, large), clock)


def _handed_over(work: Work) -> Generator[Work, Job | None, Job]:
    """Yields work, and returns the job that the driver has made of it."""
    job = yield work
    assert job is not None, "the driver answers work with a job"
    return job


def load_pictures(pair: Pair, request: Request) -> Request:
    """Loads the images, once for both models."""
    config = pair.config
    sides = [(pair.small, config.small_pictures), (pair.large, config.large_pictures)]
    sizes = [(vlm, pictures_for(request, pictures)) for vlm, pictures in sides if isinstance(vlm, VLM)]
    is_hosted = len(sizes) < len(sides)  # then crops are cut from all pixels that there are
    check_texts(request, config.limits)  # before any picture is read

    def shrink(width: int, height: int) -> int:
        """How far both models would scale a picture down themselves."""
        return min(1 if is_hosted else vlm.shrink_factor(width, height, pictures) for vlm, pictures in sizes)

    return pair.siblings.load(request, lambda asked: resolve_images(asked, config.limits, shrink))


def _read(pair: Pair, request: Request, clock: Clock) -> tuple[Request, EncodedPrompt]:
    """Loads the images, and encodes the request for the small model."""
    config = pair.config
    request = load_pictures(pair, request)
    prompt = pair.siblings.encode(pair.small, request, config.limits, config.reuse, config.small_pictures)
    clock.lap("encode_small")
    return request, prompt


def _small_work(pair: Pair, asked: Asked) -> Work:
    """Makes work of the small pass, with the pair's settings."""
    ratio, reuse = pair.consistency_keep_ratio, pair.config.reuse
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


def _look_beyond(
    pair: Pair, request: Request, turn: Turn, importance: ImportanceMap | None, clock: Clock
) -> Generator[Work, Job | None, Turn]:
    """Takes off the map what a neutral question looks at, where the large model is pruned by what is left."""
    pruning = turn.decision.pruning(pair.config.pruning)
    wanted = pruning.neutral and pruning.leaves_out and not turn.decision.exit
    if importance is None or pair.hosted is not None or not wanted:
        return turn
    clock.resume()
    work = neutral_work(pair.small, request, pair.config, pair.siblings)
    clock.lap("encode_neutral_small")
    job = yield from _handed_over(work)
    neutral: NeutralMap = job.result()
    clock.add("small", neutral.stage_ms)
    beyond, cost = importance.beyond(neutral.importance), with_neutral(turn.cost, pair.small, neutral)
    return replace(turn, beyond=beyond, cost=cost)


def _plan(
    large: VLM, pair: Pair, request: Request, turn: Turn, importance: ImportanceMap | None, clock: Clock
) -> tuple[EncodedPrompt, PruningPlan]:
    """Encodes the request for the large model, and plans which tokens it keeps."""
    clock.resume()
    config = pair.config
    prompt = pair.siblings.encode(large, request, config.limits, config.reuse, config.large_pictures)
    return prompt, plan_large(large, prompt, importance, turn.decision.pruning(config.pruning))


def _draft(large: VLM, pair: Pair, request: Request, said: Generation) -> tuple[int, ...]:
    """Splits the small answer into the large model's tokens, for it to check."""
    if not pair.config.generation.draft:
        return ()
    waiting = partial(check_wanted, request, "while the large model was busy")
    return draft_tokens(pair.small, large, said.answer.token_ids.tolist(), waiting)


def _ask_hosted(pair: Pair, hosted: HostedModel, begun: Begun, clock: Clock) -> Road[Response]:
    """Sends a hosted model the evidence; the small answer is kept where it failed and that is wanted."""
    clock.resume()
    run, keeps = begun.run, pair.config.on_large_error == "keep"
    evidence = gather(run.wish.request, run.turn.importance, pair.config.send)
    clock.lap("evidence")
    run = replace(run, evidence=evidence)
    try:
        answered: HostedPass = yield from ask(hosted_work(hosted, evidence.call), hold_back=keeps)
    except Exception as error:
        failure = describe_failure(error)
        if failure is None or not keeps:
            raise
        return (yield from keep_answer(pair, replace(begun, run=replace(run, failure=failure)), clock))
    clock.add("large", answered.stage_ms)
    return make_response(pair, replace(run, hosted=answered), answered.answer.parsed, clock)
