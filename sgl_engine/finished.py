"""What a request has produced on its road -> its response, with the report. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.config import EngineConfig
from sgl_engine.decoding.answer import Generation
from sgl_engine.decoding.loop import token_logprobs
from sgl_engine.decoding.reader import agree, read_answer
from sgl_engine.exit.calibrated import ExitRule
from sgl_engine.exit.decision import (
    ANSWER_SHARE,
    DEFAULT_SCORER,
    Confidence,
    ExitDecision,
)
from sgl_engine.hosted.evidence import Evidence
from sgl_engine.hosted.model import HostedModel
from sgl_engine.model.vlm import VLM
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.report.hosted import HostedCost
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
from sgl_engine.response import AnswerScores, Response

if TYPE_CHECKING:  # what the passes have made comes in; nothing of them runs here
    from sgl_engine.hosted.station import HostedPass
    from sgl_engine.passes.large import LargePassResult
    from sgl_engine.passes.scored_texts import ScoringPassResult, ScoringTask
    from sgl_engine.passes.small import SmallPassResult
    from sgl_engine.passes.work import Asked, SmallPass


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models, and how they are to work together.

    Attributes:
        small: Model that answers first, and guides.
        large: Model that answers when the small one is not sure; a hosted one is sent evidence instead.
        config: The engine's configuration.
        exit_rule: Decides by a calibration; None compares the score with the configured threshold.
        small_pass: Runs the small model.
    """

    small: VLM
    large: VLM | HostedModel
    config: EngineConfig
    exit_rule: ExitRule | None
    small_pass: SmallPass

    @property
    def local(self) -> VLM | None:
        """The large model where it is loaded here."""
        return self.large if isinstance(self.large, VLM) else None

    @property
    def hosted(self) -> HostedModel | None:
        """The large model where it is on another machine."""
        return None if isinstance(self.large, VLM) else self.large


@dataclass(frozen=True, eq=False)
class Run:
    """What an answered request has produced; the large model's fields are None where it was not called."""

    asked: Asked
    confidence: Confidence
    decision: ExitDecision
    small: SmallPassResult
    large_prompt: EncodedPrompt | None = None
    large: LargePassResult | None = None
    evidence: Evidence | None = None
    hosted: HostedPass | None = None
    failure: str | None = None

    @property
    def generation(self) -> Generation:
        """The answer that is returned."""
        return (self.large or self.small).generation


@dataclass(frozen=True, eq=False)
class ScoringRun:
    """What a scored request has produced; the large model's fields are None where it was not called."""

    task: ScoringTask
    confidence: Confidence
    decision: ExitDecision
    small: ScoringPassResult
    large_task: ScoringTask | None = None
    large: ScoringPassResult | None = None


def make_response(pair: Pair, run: Run, parsed: ParsedAnswer, clock: Clock) -> Response:
    """Makes the response of an answered request."""
    request, prompt = run.asked.request, run.asked.task.prompt
    small, large, large_prompt = run.small, run.large, run.large_prompt or prompt
    local = pair.local
    vlm = pair.small if large is None or local is None else local
    said = None if run.hosted is None else run.hosted.answer
    agreed = None
    if large is not None or said is not None:
        agreed = agree(read_answer(pair.small, request, prompt, small.generation), parsed)
    outcome = Outcome(
        decision=run.decision,
        confidence=run.confidence,
        scorer=pair.config.exit.scorer or DEFAULT_SCORER,
        small=small_cost(pair.small, prompt, small),
        large=None if large is None or local is None else large_cost(local, large_prompt, large),
        # Where the large model was not called, its own token counts are unknown; the small one's stand in.
        alone_flops=0 if local is None else alone_flops(local, vlm, large_prompt, len(run.generation)),
        small_answer=small.generation.text,
        large_agreed=agreed,
        hosted=None
        if local is not None
        else HostedCost(said, run.evidence, run.failure, request, pair.config.send),
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
        importance=small.importance,
        plan=None if large is None else large.plan,
        hosted=said,
    )


def make_answer_scores(pair: Pair, large_vlm: VLM, run: ScoringRun, clock: Clock) -> AnswerScores:
    """Makes the result of a scored request."""
    small, large, large_task = run.small, run.large, run.large_task or run.task
    outcome = Outcome(
        decision=run.decision,
        confidence=run.confidence,
        scorer=ANSWER_SHARE,
        small=scoring_cost(pair.small, run.task.prompt, small),
        large=None if large is None else scoring_cost(large_vlm, large_task.prompt, large, large_task.plan),
        alone_flops=scoring_alone_flops(
            large_vlm, pair.small if large is None else large_vlm, large_task.prompt, large or small
        ),
        small_answer=run.task.answers[small.best],
        large_agreed=None if large is None else large.best == small.best,
    )
    report = make_report(outcome, pair.small, large_vlm, clock.stage_ms(), pair.config.prices)
    scored = large or small
    return AnswerScores(run.task.answers, scored.logprobs, report, scored.token_logprobs)
