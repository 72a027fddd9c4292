"""What a request has produced on its road -> its response, with the report. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.config import EngineConfig
from sgl_engine.decoding.answer import Generation
from sgl_engine.decoding.loop import token_logprobs
from sgl_engine.decoding.reader import agree
from sgl_engine.exit.calibrated import ExitRule
from sgl_engine.exit.decision import (
    ANSWER_SHARE,
    DEFAULT_SCORER,
    Confidence,
    ExitDecision,
    consistency_keep_ratio,
)
from sgl_engine.hosted.evidence import Evidence
from sgl_engine.hosted.model import HostedModel
from sgl_engine.model.siblings import Siblings
from sgl_engine.model.vlm import VLM
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.report.clock import Clock
from sgl_engine.report.hosted import HostedCost
from sgl_engine.report.make import (
    Outcome,
    PassCost,
    alone_flops,
    large_cost,
    make_report,
    scoring_alone_flops,
    scoring_cost,
)
from sgl_engine.request import Decoding, Request
from sgl_engine.response import AnswerScores, Response

if TYPE_CHECKING:  # what the passes have made comes in; nothing of them runs here
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.hosted.station import HostedPass
    from sgl_engine.passes.large import LargePassResult
    from sgl_engine.passes.scored_texts import ScoringPassResult, ScoringTask
    from sgl_engine.passes.work import SmallPass


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models, and how they are to work together.

    Attributes:
        small: Model that answers first, and guides.
        large: Model that answers when the small one is not sure; a hosted one is sent evidence instead.
        config: The engine's configuration.
        exit_rule: Decides by a calibration; None compares the score with the configured threshold.
        small_pass: Runs the small model.
        siblings: The requests that came together, as far as they were read.
    """

    small: VLM
    large: VLM | HostedModel
    config: EngineConfig
    exit_rule: ExitRule | None
    small_pass: SmallPass
    siblings: Siblings = field(default_factory=Siblings)

    @property
    def consistency_keep_ratio(self) -> float | None:
        """Fraction of the visual tokens that the consistency pass sees; None where there is to be none."""
        reads = self.exit_rule is not None and self.exit_rule.calibration.reads_consistency
        return consistency_keep_ratio(self.config.exit, calibration_reads=reads)

    @property
    def local(self) -> VLM | None:
        """The large model where it is loaded here."""
        return self.large if isinstance(self.large, VLM) else None

    @property
    def hosted(self) -> HostedModel | None:
        """The large model where it is on another machine."""
        return None if isinstance(self.large, VLM) else self.large


@dataclass(frozen=True, eq=False)
class Wish:
    """What is asked for, settled: what no model has to be asked about.

    Attributes:
        request: The request, its images loaded.
        decoding: How its answer's tokens are chosen.
        max_new_tokens: How many of them there may be; no answer is written where answers are scored.
    """

    request: Request
    decoding: Decoding
    max_new_tokens: int = 0


@dataclass(frozen=True, eq=False)
class SmallTurn:
    """The small model's turn on the road of an answer, as the large model and the report need it.

    Nothing of a model, a prompt or a picture is in it: it may go to another machine.

    Attributes:
        confidence: How sure the small model is.
        decision: Whether its answer is kept.
        generation: Its answer.
        importance: Where it looked; None when the request holds no image.
        cost: What its pass has used.
        parsed: Its answer, taken apart, for the large one's to be compared with; None where it is kept.
        beyond: Where it looked beyond what a neutral question looks at; None where that was not asked.
    """

    confidence: Confidence
    decision: ExitDecision
    generation: Generation
    importance: ImportanceMap | None
    cost: PassCost
    parsed: ParsedAnswer | None = None
    beyond: ImportanceMap | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """What an answered request has produced; the large model's fields are None where it was not called.

    Attributes:
        wish: What was asked for.
        turn: The small model's.
        prompt: As the model read it whose answer is returned; of a hosted one, as the small model did.
        large: The large model's pass.
        evidence: What a hosted model was sent.
        hosted: A hosted model's pass.
        failure: Why there is no answer of a hosted model.
    """

    wish: Wish
    turn: SmallTurn
    prompt: EncodedPrompt
    large: LargePassResult | None = None
    evidence: Evidence | None = None
    hosted: HostedPass | None = None
    failure: str | None = None

    @property
    def generation(self) -> Generation:
        """The answer that is returned."""
        return (self.large or self.turn).generation


@dataclass(frozen=True, eq=False)
class ScoringTurn:
    """The small model's turn on the road of scores; it may go to another machine, as ``SmallTurn``.

    Attributes:
        confidence: How sure the small model is.
        decision: Whether its scores are kept.
        result: Its scores.
        cost: What its pass has used.
        beyond: As of ``SmallTurn``.
    """

    confidence: Confidence
    decision: ExitDecision
    result: ScoringPassResult
    cost: PassCost
    beyond: ImportanceMap | None = None


@dataclass(frozen=True, eq=False)
class ScoringRun:
    """What a scored request has produced.

    Attributes:
        turn: The small model's.
        task: Of the model whose scores are returned.
        large: The large model's pass; None where it was not called.
    """

    turn: ScoringTurn
    task: ScoringTask
    large: ScoringPassResult | None = None


def make_response(pair: Pair, run: Run, parsed: ParsedAnswer, clock: Clock) -> Response:
    """Makes the response of an answered request."""
    request, turn, large, local = run.wish.request, run.turn, run.large, pair.local
    vlm = pair.small if large is None or local is None else local
    said = None if run.hosted is None else run.hosted.answer
    agreed = None
    if large is not None or said is not None:
        assert turn.parsed is not None, "an answer that is handed over has been read"
        agreed = agree(turn.parsed, parsed)
    outcome = Outcome(
        decision=turn.decision,
        confidence=turn.confidence,
        scorer=pair.config.exit.scorer or DEFAULT_SCORER,
        small=turn.cost,
        large=None if large is None or local is None else large_cost(local, run.prompt, large),
        # Where the large model was not called, its own token counts are unknown; the small one's stand in.
        alone_flops=0 if local is None else alone_flops(local, vlm, run.prompt, len(run.generation)),
        small_answer=turn.generation.text,
        large_agreed=agreed,
        hosted=None
        if local is not None
        else HostedCost(said, run.evidence, run.failure, request, pair.config.send),
        neutral=turn.beyond is not None,
    )
    tokens = token_logprobs(vlm, run.generation.answer) if request.logprobs and said is None else ()
    return Response(
        text=parsed.text,
        reasoning=run.generation.reasoning if said is None else said.reasoning,
        finish_reason=run.generation.finish_reason if said is None else said.finish_reason,
        report=make_report(outcome, pair.small, pair.large, clock.stage_ms(), pair.config.prices),
        tool_calls=parsed.tool_calls,
        invalid_tool_calls=parsed.invalid_tool_calls,
        tokens=tokens if said is None else said.tokens,
        importance=turn.importance,
        plan=None if large is None else large.plan,
        hosted=said,
    )


def make_answer_scores(pair: Pair, large_vlm: VLM, run: ScoringRun, clock: Clock) -> AnswerScores:
    """Makes the result of a scored request."""
    turn, large, task = run.turn, run.large, run.task
    scored, answers = large or turn.result, task.answers
    vlm = pair.small if large is None else large_vlm
    outcome = Outcome(
        decision=turn.decision,
        confidence=turn.confidence,
        scorer=ANSWER_SHARE,
        small=turn.cost,
        large=None if large is None else scoring_cost(large_vlm, task.prompt, large, task.plan),
        alone_flops=scoring_alone_flops(large_vlm, vlm, task.prompt, scored),
        small_answer=answers[turn.result.best],
        large_agreed=None if large is None else large.best == turn.result.best,
        neutral=turn.beyond is not None,
    )
    report = make_report(outcome, pair.small, large_vlm, clock.stage_ms(), pair.config.prices)
    return AnswerScores(answers, scored.logprobs, report, scored.token_logprobs)
