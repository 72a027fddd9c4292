"""Counts what a run has used, and makes the report that callers get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from sgl_engine.config import Price
from sgl_engine.report import cost
from sgl_engine.report.hosted import HostedCost
from sgl_engine.report.prices import Alone, RunCost, Spent, run_cost
from sgl_engine.report.run_report import ModelInfo, RunReport
from sgl_engine.report.version import engine_version

if TYPE_CHECKING:  # these load torch; a report is arithmetic on what they hold
    from sgl_engine.exit.decision import Confidence, ExitDecision
    from sgl_engine.hosted.model import HostedModel
    from sgl_engine.model.vlm import VLM
    from sgl_engine.passes.large import LargePassResult
    from sgl_engine.passes.neutral import NeutralMap
    from sgl_engine.passes.pictures import Reused
    from sgl_engine.passes.scored_texts import ScoringPassResult
    from sgl_engine.passes.small import SmallPassResult
    from sgl_engine.prompt.encoded import EncodedPrompt
    from sgl_engine.pruning.plan import PruningPlan


@dataclass(frozen=True, eq=False)
class PassCost:
    """What one model's pass has used. Nothing of a model or a picture is in it: it may go to another machine.

    Attributes:
        input_tokens: Of the prompt that it ran on.
        visual_tokens: How many of them are visual.
        output_tokens: Tokens that it generated, thoughts included, or scored.
        flops: Floating-point operations as it ran; what was known is not among them.
        reused: What was known before.
        plan: What was pruned; None where nothing could be.
        drafted_tokens: Tokens of the draft; None where answers were scored.
        accepted_tokens: How many of them were taken over; None where answers were scored.
        reasoning_tokens: How many of the generated tokens came before the answer.
        left_out: Special tokens of the answer that are no part of its text.
        patches: Of each tile of the prompt, whether the vision tower ran on it or not.
    """

    input_tokens: int
    visual_tokens: int
    output_tokens: int
    flops: int
    reused: Reused
    plan: PruningPlan | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    reasoning_tokens: int = 0
    left_out: tuple[str, ...] = ()
    patches: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one request.

    Attributes:
        decision: Whether the small answer was kept.
        confidence: The small model's, before any calibration.
        scorer: What computed it.
        small: The small model's pass.
        large: The large model's pass; None where it was not called.
        alone_flops: Operations of the alternative: the large model alone, for an answer of this length.
        small_answer: The small model's answer.
        large_agreed: Whether the large model gave the same answer; None where it was not called.
        hosted: What became of the turn of a hosted large model; None where it is loaded here.
        neutral: Whether a neutral question's map was taken off the small model's.
    """

    decision: ExitDecision
    confidence: Confidence
    scorer: str
    small: PassCost
    large: PassCost | None
    alone_flops: int
    small_answer: str
    large_agreed: bool | None
    hosted: HostedCost | None = None
    neutral: bool = False


def make_report(
    outcome: Outcome,
    small_vlm: VLM,
    large_model: VLM | HostedModel,
    stage_ms: Mapping[str, float],
    prices: Mapping[str, Price],
) -> RunReport:
    """Makes the report of a request that is answered.

    Args:
        outcome: What became of the request.
        small_vlm: The small model.
        large_model: The large model.
        stage_ms: Milliseconds per stage, from the request's clock.
        prices: What models cost, by name.
    """
    decision, parts = outcome.decision, outcome.confidence.parts
    small, large = outcome.small, outcome.large
    large_flops, hosted = 0 if large is None else large.flops, outcome.hosted
    by_large = large is not None or (hosted is not None and hosted.answer is not None)
    fields = _large_fields(large, cast("VLM", large_model)) | ({} if hosted is None else hosted.fields())
    return RunReport(
        engine_version=engine_version(),
        route="large" if by_large else "small",
        escalated=by_large or fields.get("large_error") is not None,
        score=decision.score,
        scorer=outcome.scorer,
        threshold=decision.threshold,
        forced=decision.policy != "threshold",  # then the score was not compared with anything
        score_parts=dict(parts),
        calibration=decision.calibration,
        calibrated_probability=decision.calibrated_probability,
        uncovered=decision.uncovered,
        certified_risk=decision.risk if decision.policy == "threshold" else None,
        confidence=parts["confidence"],
        consistency=parts.get("consistency_product"),
        # The two models may cut a picture differently: the count is that of the model whose answer this is.
        visual_tokens=(large or small).visual_tokens,
        small_tflops=small.flops / 1e12,
        large_tflops=large_flops / 1e12,
        large_alone_tflops=outcome.alone_flops / 1e12,
        saved_fraction=1 - (small.flops + large_flops) / outcome.alone_flops if outcome.alone_flops else 0.0,
        stage_ms=dict(stage_ms),
        left_out_tokens=list((large or small).left_out) if large is not None or not by_large else [],
        # Where the small answer was kept, it is the response's text already.
        small_answer=outcome.small_answer if by_large else None,
        large_agreed=outcome.large_agreed,
        small_model=ModelInfo(name=small_vlm.name, revision=small_vlm.revision),
        large_model=ModelInfo(name=large_model.name, revision=getattr(large_model, "revision", None)),
        retention=None if large is None or decision.rung is None else decision.rung.name,
        neutral=None if large is None else outcome.neutral,
        cost=_cost(outcome, small_vlm.name, large_model.name, stage_ms, prices, fields),
        **fields,
        **_small_fields(small),
    )


def _small_fields(small: PassCost) -> dict[str, Any]:
    """Returns the fields that say something of the small pass."""
    return {
        "small_input_tokens": small.input_tokens,
        "small_output_tokens": small.output_tokens,
        "small_reasoning_tokens": small.reasoning_tokens,
        "small_known_tokens": small.reused.tokens,
        "small_known_pictures": small.reused.pictures,
    }


_LARGE_FIELDS = (
    "kept_visual_tokens prune_layer keep_ratio average_retention large_input_tokens large_output_tokens "
    "large_reasoning_tokens "
    "drafted_tokens accepted_tokens large_known_tokens large_known_pictures "
    "tiles kept_tiles encoded_tiles skipped_tower_tflops"
).split()


def _cost(
    outcome: Outcome,
    small_name: str,
    large_name: str,
    stage_ms: Mapping[str, float],
    prices: Mapping[str, Price],
    fields: Mapping[str, Any],
) -> RunCost | None:
    """Returns the money: what was used, and what the large model alone would have used."""
    small, large, hosted = outcome.small, outcome.large, outcome.hosted
    ms = {
        side: sum(each for name, each in stage_ms.items() if name.endswith(side))
        for side in ("small", "large")
    }
    spent = Spent(small_name, small.input_tokens, small.output_tokens, ms=ms["small"])
    given, written = fields["large_input_tokens"], fields["large_output_tokens"]
    cached = 0 if hosted is None else fields["large_known_tokens"] or 0
    # A hosted model may answer and not tell its tokens; it took its time all the same.
    has_answered = given is not None or (hosted is not None and hosted.answer is not None)
    asked = Spent(large_name, given, written, cached, ms["large"]) if has_answered else None
    if given is None:  # an estimate: the small model's tokens stand in
        text, full = (
            small.input_tokens - small.visual_tokens,
            0 if hosted is None else hosted.full_tokens,
        )
        visual = small.visual_tokens if hosted is None else full
        alone = Alone(None if visual is None else text + visual, small.output_tokens)
    else:
        sent = fields.get("sent")
        more = 0 if sent is None or not sent.saved_pixels else sent.saved_tokens
        times = outcome.alone_flops / large.flops if large is not None and large.flops else None
        alone = Alone(None if more is None else given + more, written, cached, times)
    return run_cost(prices, spent, asked, large_name, alone)


def _large_fields(large: PassCost | None, vlm: VLM) -> dict[str, Any]:
    """Returns the fields that say something of the large pass; all None where there was none."""
    if large is None:
        return dict.fromkeys(_LARGE_FIELDS)
    plan = large.plan
    assert plan is not None, "the large model is always given a plan"
    return {
        "kept_visual_tokens": plan.kept_visual_tokens,
        "prune_layer": plan.layer,
        "keep_ratio": plan.keep_ratio,
        "average_retention": cost.average_retention(plan, vlm.num_layers),
        "large_input_tokens": large.input_tokens,
        "large_output_tokens": large.output_tokens,
        "large_reasoning_tokens": large.reasoning_tokens,
        "drafted_tokens": large.drafted_tokens,
        "accepted_tokens": large.accepted_tokens,
        "large_known_tokens": large.reused.tokens,
        "large_known_pictures": large.reused.pictures,
        **_tile_fields(large, vlm),
    }


def _tile_fields(large: PassCost, vlm: VLM) -> dict[str, Any]:
    """Returns the fields that say what of the pictures went through the large model's vision tower."""
    every, run = large.patches, large.reused.tower_patches
    seen = _seen(every, large.plan)
    flops = [sum(cost.tower_flops(vlm.shape.vision, count) for count in some) for some in (every, seen)]
    return {
        "tiles": len(every),
        "kept_tiles": len(seen),
        "encoded_tiles": len(every if run is None else run),
        "skipped_tower_tflops": (flops[0] - flops[1]) / 1e12,
    }


def seen_patches(vlm: VLM, prompt: EncodedPrompt, plan: PruningPlan | None) -> tuple[int, ...]:
    """Returns the patches of each tile that a plan gives to the vision tower."""
    return _seen(vlm.tower_patches(prompt), plan)


def _seen(patches: tuple[int, ...], plan: PruningPlan | None) -> tuple[int, ...]:
    chosen = None if plan is None else plan.chosen_tiles
    return patches if chosen is None else tuple(patches[tile] for tile in chosen)


def small_cost(vlm: VLM, prompt: EncodedPrompt, result: SmallPassResult) -> PassCost:
    """Counts a small pass as it ran."""
    patches = _run_patches(vlm, prompt, result.reused)
    flops = cost.small_pass_flops(vlm.shape, patches=patches, prompt=prompt, result=result)
    said = result.generation
    return PassCost(
        *(len(prompt), prompt.num_visual_tokens, len(said), flops, result.reused),
        reasoning_tokens=said.reasoning_tokens,
        left_out=said.left_out,
    )


def with_neutral(small: PassCost, vlm: VLM, neutral: NeutralMap) -> PassCost:
    """Adds the operations of a neutral question to those of the small pass; it may have been known."""
    if not neutral.ran:
        return small
    flops = cost.recorded_prompt_flops(
        vlm.shape,
        patches=_run_patches(vlm, neutral.prompt, neutral.reused),
        prompt_tokens=len(neutral.prompt),
        queries=neutral.importance.num_queries,
        known_tokens=neutral.reused.tokens,
    )
    return replace(small, flops=small.flops + flops)


def large_cost(vlm: VLM, prompt: EncodedPrompt, result: LargePassResult) -> PassCost:
    """Counts a large pass as it ran."""
    flops = cost.pass_flops(
        vlm.shape,
        patches=_run_patches(vlm, prompt, result.reused),
        prompt_tokens=len(prompt),
        fed=result.fed,
        plan=result.plan,
        known_tokens=result.reused.tokens,
    )
    return PassCost(
        len(prompt),
        prompt.num_visual_tokens,
        len(result.generation),
        flops,
        result.reused,
        plan=result.plan,
        drafted_tokens=result.drafted_tokens,
        accepted_tokens=result.accepted_tokens,
        reasoning_tokens=result.generation.reasoning_tokens,
        left_out=result.generation.left_out,
        patches=vlm.tower_patches(prompt),
    )


def scoring_cost(
    vlm: VLM, prompt: EncodedPrompt, result: ScoringPassResult, plan: PruningPlan | None = None
) -> PassCost:
    """Counts a scoring pass as it ran."""
    flops = cost.scoring_flops(
        vlm.shape,
        patches=_run_patches(vlm, prompt, result.reused),
        prompt=prompt,
        answer_tokens=result.forced_tokens,
        plan=plan,
        importance=result.importance,
        known_tokens=result.reused.tokens,
    )
    sizes = len(prompt), prompt.num_visual_tokens
    patches = vlm.tower_patches(prompt)
    return PassCost(*sizes, result.output_tokens, flops, result.reused, plan, patches=patches)


def alone_flops(large: VLM, vlm: VLM, prompt: EncodedPrompt, output_tokens: int) -> int:
    """Counts the alternative: the large model alone, unpruned and with nothing known.

    Args:
        large: The large model.
        vlm: The model that the prompt was encoded by; where the large one was not called, the small one.
        prompt: The prompt.
        output_tokens: Tokens of the answer.
    """
    patches = vlm.tower_patches(prompt)
    return cost.answer_flops(
        large.shape, prompt_tokens=len(prompt), patches=patches, output_tokens=output_tokens
    )


def scoring_alone_flops(large: VLM, vlm: VLM, prompt: EncodedPrompt, result: ScoringPassResult) -> int:
    """Counts the same alternative where answers are scored: those of ``result``, by the large model alone."""
    fed = [len(tokens) - 1 for tokens in result.token_logprobs]
    patches = vlm.tower_patches(prompt)
    return cost.scoring_flops(large.shape, patches=patches, prompt=prompt, answer_tokens=fed)


def _run_patches(vlm: VLM, prompt: EncodedPrompt, reused: Reused) -> tuple[int, ...]:
    """Returns the patches in each pass of the vision tower that was made."""
    return vlm.tower_patches(prompt) if reused.tower_patches is None else reused.tower_patches
