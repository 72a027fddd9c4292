"""What scoring given answers leads to: log-probabilities, shares, how sure they are, the report. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_engine import cost
from sgl_engine.measurements import geometric_mean, product
from sgl_engine.report import ModelInfo, RunReport
from sgl_engine.types import (
    NOTHING_REUSED,
    Confidence,
    EncodedPrompt,
    ExitDecision,
    ImportanceMap,
    PruningPlan,
    Reused,
)

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM

SCORER = "answer_share"
"""What reports call the score of ``decision_confidence``."""


@dataclass(frozen=True)
class AnswerScores:
    """How likely each answer is, in the order in which they were given.

    Attributes:
        answers: As given.
        logprobs: Natural log of the probability of each whole answer, its end included; at most 0.
        report: Which model's scores these are, and what they cost.
    """

    answers: tuple[str, ...]
    logprobs: tuple[float, ...]
    report: RunReport

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each whole answer, in [0, 1]; what is missing to 1 belongs to answers that were not given."""
        return tuple(math.exp(logprob) for logprob in self.logprobs)

    @property
    def shares(self) -> tuple[float, ...]:
        """Probabilities among the given answers alone: they sum to 1."""
        return answer_shares(self.logprobs)

    @property
    def best(self) -> str:
        """The likeliest answer; the first of equals."""
        return self.answers[self.logprobs.index(max(self.logprobs))]


@dataclass(frozen=True, eq=False)
class ScoringPassResult:
    """One model's scores.

    Attributes:
        token_logprobs: Per answer, the natural log of each of its tokens' probability, its end last.
        best: Index of the likeliest answer; the first of equals.
        importance: Attention to the visual tokens, by the prompt's rows and those of the best answer; None
            where it was not asked for, or the prompt holds no image.
        stage_ms: Milliseconds: "vision", "prefill", "score".
        reused: What was known before.
    """

    token_logprobs: tuple[tuple[float, ...], ...]
    best: int
    importance: ImportanceMap | None
    stage_ms: dict[str, float]
    reused: Reused = NOTHING_REUSED

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Natural log of the probability of each whole answer."""
        return tuple(math.fsum(tokens) for tokens in self.token_logprobs)

    @property
    def forced_tokens(self) -> tuple[int, ...]:
        """Tokens of each answer that was fed, its end not counted; the best one's twice, if recorded."""
        fed = tuple(len(tokens) - 1 for tokens in self.token_logprobs)
        return fed if self.importance is None else (*fed, fed[self.best])

    @property
    def output_tokens(self) -> int:
        """Answer tokens that were scored, all answers together, their ends included."""
        return sum(len(tokens) for tokens in self.token_logprobs)


@dataclass(frozen=True, eq=False)
class ScoringRun:
    """What one request has produced; the large model's fields are None where it was not called."""

    answers: tuple[str, ...]
    decision: ExitDecision
    small_prompt: EncodedPrompt
    small: ScoringPassResult
    large_prompt: EncodedPrompt | None = None
    plan: PruningPlan | None = None
    large: ScoringPassResult | None = None


def answer_shares(logprobs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities normalised to sum to 1, from their natural logs; answers of 1e-400 keep their order."""
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    return tuple(weight / math.fsum(weights) for weight in weights)


def decision_confidence(result: ScoringPassResult) -> Confidence:
    """How sure a model is of what its scores decide, to be compared with the exit threshold.

    The score is the best answer's share among the given ones: max(p, 1 - p) for two. A single answer of
    probability p is weighed against everything else that could be said, so it is max(p, 1 - p) there, too.
    """
    logprobs = result.logprobs
    best = result.token_logprobs[result.best]
    alone = math.exp(logprobs[0])
    score = max(alone, 1 - alone) if len(logprobs) == 1 else max(answer_shares(logprobs))
    return Confidence(
        score=score, parts={"confidence": geometric_mean(best), "answer_probability": product(best)}
    )


def scoring_report(
    run: ScoringRun, small: VLM, large: VLM, *, engine_version: str, stage_ms: Mapping[str, float]
) -> RunReport:
    """The report of a scored request: its answers are the likeliest ones, its tokens those of all answers."""
    result, plan = run.large, run.plan
    confidence = decision_confidence(run.small)
    # Where the large model was not called, its own counts are unknown; the small model's stand in.
    vlm, prompt = (small, run.small_prompt) if run.large_prompt is None else (large, run.large_prompt)
    alone_flops = cost.scoring_flops(
        large.shape,
        patches=vlm.tower_patches(prompt),
        prompt=prompt,
        answer_tokens=[len(tokens) - 1 for tokens in (result or run.small).token_logprobs],
    )
    small_flops = _scoring_flops(small, run.small_prompt, run.small)
    large_flops = 0
    if result is not None:
        large_flops = _scoring_flops(large, prompt, result, plan)
    return RunReport(
        engine_version=engine_version,
        route="small" if result is None else "large",
        escalated=result is not None,
        score=run.decision.score,
        scorer=SCORER,
        threshold=run.decision.threshold,
        forced=run.decision.policy != "threshold",
        score_parts=dict(confidence.parts),
        calibration=run.decision.calibration,
        calibrated_probability=run.decision.calibrated_probability,
        uncovered=run.decision.uncovered,
        confidence=confidence.parts["confidence"],
        consistency=None,
        visual_tokens=prompt.num_visual_tokens,
        kept_visual_tokens=None if plan is None else plan.kept_visual_tokens,
        prune_layer=None if plan is None else plan.layer,
        keep_ratio=None if plan is None else plan.keep_ratio,
        average_retention=None if plan is None else cost.average_retention(plan, large.num_layers),
        small_tflops=small_flops / 1e12,
        large_tflops=large_flops / 1e12,
        large_alone_tflops=alone_flops / 1e12,
        saved_fraction=1 - (small_flops + large_flops) / alone_flops,
        stage_ms=dict(stage_ms),
        small_input_tokens=len(run.small_prompt),
        small_output_tokens=run.small.output_tokens,
        large_input_tokens=None if run.large_prompt is None else len(run.large_prompt),
        large_output_tokens=None if result is None else result.output_tokens,
        small_known_tokens=run.small.reused.tokens,
        small_known_pictures=run.small.reused.pictures,
        large_known_tokens=None if result is None else result.reused.tokens,
        large_known_pictures=None if result is None else result.reused.pictures,
        small_answer=None if result is None else run.answers[run.small.best],
        large_agreed=None if result is None else result.best == run.small.best,
        small_model=ModelInfo(name=small.name, revision=small.revision),
        large_model=ModelInfo(name=large.name, revision=large.revision),
    )


def _scoring_flops(
    vlm: VLM, prompt: EncodedPrompt, result: ScoringPassResult, plan: PruningPlan | None = None
) -> int:
    """Operations of a scoring pass as it ran."""
    patches = result.reused.tower_patches
    patches = vlm.tower_patches(prompt) if patches is None else patches
    return cost.scoring_pass_flops(vlm.shape, patches=patches, prompt=prompt, result=result, plan=plan)
