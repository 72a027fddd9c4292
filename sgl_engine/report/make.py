"""What a run has used, stage by stage, and the report that callers get of it."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.decoding.reader import AnswerReader, agree, read_answer
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.exit.scorers import SCORER, decision_confidence
from sgl_engine.passes.embedding import Reused
from sgl_engine.passes.large import LargePassResult
from sgl_engine.passes.scoring import ScoringPassResult
from sgl_engine.passes.small import SmallPassResult
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.report import cost
from sgl_engine.report.run_report import ModelInfo, RunReport
from sgl_engine.request import Decoding, Request

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM
    from sgl_engine.report.run_report import RunReport


class Clock:
    """Milliseconds per stage of one request.

    What lies between stages is "queue": waiting for the models, for the others in a batch, or for whoever
    reads the stream. So the stages add up to the total, but for what comes after the last one.
    """

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._stages: dict[str, float] = {}

    def resume(self) -> None:
        """Begins a stage here: what came between was waiting."""
        self._wait(0.0)

    def lap(self, stage: str) -> None:
        """Ends a stage that began where the last one ended."""
        now = time.perf_counter()
        self._stages[stage] = 1e3 * (now - self._last)
        self._last = now

    def add(self, prefix: str, stages: Mapping[str, float]) -> None:
        """Takes over the stages that a pass has measured itself; what it took beyond them was waiting."""
        self._wait(sum(stages.values()))
        self._stages.update({f"{stage}_{prefix}": ms for stage, ms in stages.items()})

    def stage_ms(self) -> dict[str, float]:
        """All stages so far, and "total" since the beginning."""
        return {**self._stages, "total": 1e3 * (time.perf_counter() - self._started)}

    def _wait(self, worked_ms: float) -> None:
        """Ends a wait here, during which work was done for this request, too."""
        now = time.perf_counter()
        waited_ms = max(0.0, 1e3 * (now - self._last) - worked_ms)
        self._stages["queue"] = self._stages.get("queue", 0.0) + waited_ms
        self._last = now


@dataclass(frozen=True, eq=False)
class Asked:
    """A request, its images loaded, as one model reads it.

    Attributes:
        request: What is asked.
        clock: Its own.
        decoding: How tokens are chosen, whichever model answers.
        reader: Of this model's answer.
        task: What this model is given.
    """

    request: Request
    clock: Clock
    decoding: Decoding
    reader: AnswerReader
    task: AnswerTask


@dataclass(frozen=True)
class Run:
    """What one request, its images loaded, has produced so far."""

    request: Request
    clock: Clock
    small_prompt: EncodedPrompt
    small: SmallPassResult
    decision: ExitDecision
    large_prompt: EncodedPrompt | None = None
    large: LargePassResult | None = None


def run_report(run: Run, answer: ParsedAnswer, small_vlm: VLM, large_vlm: VLM, *, scorer: str) -> RunReport:
    """The report of a finished run.

    Args:
        run: What it produced.
        answer: The answer that is returned.
        small_vlm: The small model.
        large_vlm: The large model.
        scorer: What computed the score.
    """
    small, large, plan = run.small, run.large, None if run.large is None else run.large.plan
    small_flops, large_flops, alone_flops = _flops(run, small_vlm, large_vlm)
    return RunReport(
        engine_version=engine_version(),
        route="small" if large is None else "large",
        escalated=large is not None,
        score=run.decision.score,
        scorer=scorer,
        threshold=run.decision.threshold,
        forced=run.decision.policy != "threshold",
        score_parts=dict(small.parts),
        calibration=run.decision.calibration,
        calibrated_probability=run.decision.calibrated_probability,
        uncovered=run.decision.uncovered,
        confidence=small.parts["confidence"],
        consistency=small.parts.get("consistency_product"),
        visual_tokens=(run.large_prompt or run.small_prompt).num_visual_tokens,
        kept_visual_tokens=None if plan is None else plan.kept_visual_tokens,
        prune_layer=None if plan is None else plan.layer,
        keep_ratio=None if plan is None else plan.keep_ratio,
        average_retention=None if plan is None else cost.average_retention(plan, large_vlm.num_layers),
        small_tflops=small_flops / 1e12,
        large_tflops=large_flops / 1e12,
        large_alone_tflops=alone_flops / 1e12,
        saved_fraction=1 - (small_flops + large_flops) / alone_flops,
        stage_ms=run.clock.stage_ms(),
        small_input_tokens=len(run.small_prompt),
        small_output_tokens=len(small.generation),
        large_input_tokens=None if run.large_prompt is None else len(run.large_prompt),
        large_output_tokens=None if large is None else len(large.generation),
        drafted_tokens=None if large is None else large.drafted_tokens,
        accepted_tokens=None if large is None else large.accepted_tokens,
        small_known_tokens=small.reused.tokens,
        small_known_pictures=small.reused.pictures,
        large_known_tokens=None if large is None else large.reused.tokens,
        large_known_pictures=None if large is None else large.reused.pictures,
        small_answer=None if large is None else small.generation.text,
        large_agreed=None if large is None else agree(_small_answer(run, small_vlm), answer),
        small_model=ModelInfo(name=small_vlm.name, revision=small_vlm.revision),
        large_model=ModelInfo(name=large_vlm.name, revision=large_vlm.revision),
    )


def _small_answer(run: Run, vlm: VLM) -> ParsedAnswer:
    return read_answer(vlm, run.request, run.small_prompt, run.small.generation)


def _flops(run: Run, small_vlm: VLM, large_vlm: VLM) -> tuple[int, int, int]:
    """Small pass as it ran, large pass as it ran, and the large model alone instead of both.

    Where the large model was not called, its own token counts are unknown; the small model's stand in.
    """
    small, large = run.small, run.large
    small_patches = small_vlm.tower_patches(run.small_prompt)
    small_flops = cost.small_pass_flops(
        small_vlm.shape,
        patches=_run_patches(small.reused, small_patches),
        prompt=run.small_prompt,
        result=small,
    )
    prompt = run.large_prompt or run.small_prompt
    patches = small_patches if run.large_prompt is None else large_vlm.tower_patches(prompt)
    answer = small.generation if large is None else large.generation

    sizes: dict[str, Any] = {"prompt_tokens": len(prompt)}
    alone_flops = cost.answer_flops(large_vlm.shape, **sizes, patches=patches, output_tokens=len(answer))
    if large is None:
        return small_flops, 0, alone_flops
    spent = cost.pass_flops(
        large_vlm.shape,
        **sizes,
        patches=_run_patches(large.reused, patches),
        fed=large.fed,
        plan=large.plan,
        known_tokens=large.reused.tokens,
    )
    return small_flops, spent, alone_flops


def _run_patches(reused: Reused, patches: tuple[int, ...]) -> tuple[int, ...]:
    """Of the prompt's, those that went through the vision tower."""
    return patches if reused.tower_patches is None else reused.tower_patches


@cache
def engine_version() -> str:
    """The installed version of this package."""
    try:
        return importlib.metadata.version("langchain-sgl")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "0+uninstalled"


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
