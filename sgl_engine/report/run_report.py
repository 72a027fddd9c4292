"""Defines the report that callers, and agents that reason about cost, get of one run.

The schema is versioned: a field is never renamed or given another meaning under the same ``schema_version``;
new fields may appear. ``RunReport.model_dump(mode="json")`` is plain JSON.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sgl_engine.report.hosted import SentReport
from sgl_engine.report.prices import RunCost

SCHEMA_VERSION: Literal["1"] = "1"


class ModelInfo(BaseModel):
    """Which model ran.

    Attributes:
        name: Path, hub id, or the name that it was given.
        revision: Commit on the hub; None for a local folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    revision: str | None = None


class RunReport(BaseModel):
    """How an answer came about and what it cost; the large model's fields are None if it was not called.

    Attributes:
        schema_version: Version of this schema.
        engine_version: Version of this package.
        route: Whose answer was returned.
        escalated: True when the large model was called; the same as ``route == "large"``, but where a hosted
            model has failed and the small answer was kept (``large_error``).
        score: The small model's score in [0, 1], higher = surer; with a calibration, the calibrated
            probability.
        scorer: What computed the score, before any calibration: a name in
            ``sgl_engine.exit.decision.SCORERS``; "answer_share" where given answers were scored.
        score_parts: What scores and calibrated probabilities are made of (``Confidence.parts``).
        calibration: Id of the calibration that was used; None without one.
        calibrated_probability: Probability that keeping the small answer is harmless, in the sense of the
            calibration's risk; None without a calibration, or where it does not cover the request.
        uncovered: Why the calibration does not cover the request, which then always goes to the large model.
        certified_risk: Target risk that the calibration certifies, over all requests like this one; None
            where it says nothing.
        threshold: What the score was compared with; not used when ``forced``.
        forced: True when the configuration, a budget or a calibration that does not cover the request, and
            not the score, chose the route.
        confidence: Geometric mean probability of the small answer's tokens.
        consistency: Probability of the small answer when only the most important visual tokens are seen; None
            when the request holds no image, given answers were scored, or nobody reads it
            (``ExitConfig.consistency``).
        visual_tokens: Visual tokens of the prompt, as the model of ``route`` sees it; the two may see other
            grids.
        kept_visual_tokens: How many of those the large model saw from ``prune_layer`` on.
        prune_layer: First pruned decoder layer of the large model.
        keep_ratio: Fraction of the visual tokens that it was to keep.
        retention: The operating point that the calibration chose for this question, by its name; None where
            the configuration says it, and where only everything would do (``keep_ratio`` is 1 then).
        neutral: Whether a neutral question's map was taken off the small model's before they were chosen
            (``PruningConfig.neutral``).
        average_retention: Visual tokens seen, averaged over the large model's layers, in (0, 1].
        tiles: Tiles that the pictures come in, for the large model: those that a picture is cut into, and the
            whole one beside them; a picture in one piece is one.
        kept_tiles: How many of those it was given; tokens of the others entered no layer
            (``PruningConfig.tiles``).
        encoded_tiles: How many of those went through its vision tower: the others were known.
        skipped_tower_tflops: 1e12 operations of the tower on the tiles that were left out.
        small_tflops: 1e12 floating-point operations of the small model, consistency pass and neutral question
            included where they ran. What was known from another request was not computed, and is not counted.
        large_tflops: The same of the large model, as it ran; 0 when it was not called.
        large_alone_tflops: The alternative: the large model alone, unpruned and with nothing known, for an
            answer of this length.
        saved_fraction: 1 - (small + large) / large_alone; negative when the cascade cost more.
        stage_ms: Milliseconds per stage; "queue" is waiting, "total" is the whole run. Time of work that
            requests do together is divided equally among them; the others' parts count as waiting.
        left_out_tokens: Special tokens that the model of ``route`` wrote and that are no part of the answer's
            text; ``skip_special_tokens=False`` keeps them.
        small_input_tokens: Prompt tokens of the small model.
        small_output_tokens: Tokens that it generated.
        small_reasoning_tokens: How many of those came before its answer: thoughts, and what parts the two.
        large_input_tokens: Prompt tokens of the large model, before pruning.
        large_output_tokens: Tokens that it generated.
        large_reasoning_tokens: How many of those came before its answer.
        drafted_tokens: Tokens of the small answer that the large model was given to check, instead of writing
            them itself; as its own tokenizer counts them, without the one that ends an answer. 0 where that
            is switched off; None also where given answers were scored.
        accepted_tokens: How many of these it would have written itself, and so took over.
        small_known_tokens: Prompt tokens of the small model whose keys and values were known from another
            request.
        small_known_pictures: Pictures that its vision tower did not run on, as they were known.
        large_known_tokens: The same of the large model; where it was pruned, of its layers below
            ``prune_layer``.
        large_known_pictures: The same of the large model.
        small_answer: The small model's answer, when the large model was called.
        large_agreed: Whether both answers are equal apart from case, surrounding space and a final full stop.
        large_hosted: Whether the large model is a hosted one. Its operations are not known: ``large_tflops``,
            ``large_alone_tflops`` and ``saved_fraction`` are 0 then, and its tokens are those that its
            provider tells, or None; ``large_known_tokens`` are those in the provider's cache.
        large_error: Why a hosted model has not answered, where the small answer was kept instead.
        large_answered_as: Which model answered, as its provider calls it.
        sent: What a hosted model was sent of the pictures; None where it was not asked.
        cost: What it cost, in the currency of the prices; None without ``EngineConfig.prices``, or where a
            hosted model is paid by the token and tells of none.
        small_model: Which small model ran.
        large_model: Which large model stood ready.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal["1"] = SCHEMA_VERSION
    engine_version: str
    route: Literal["small", "large"]
    escalated: bool
    score: float
    scorer: str
    score_parts: dict[str, float] = {}
    calibration: str | None = None
    calibrated_probability: float | None = None
    uncovered: str | None = None
    certified_risk: float | None = None
    threshold: float
    forced: bool
    confidence: float
    consistency: float | None
    visual_tokens: int
    kept_visual_tokens: int | None
    prune_layer: int | None
    keep_ratio: float | None
    retention: str | None = None
    neutral: bool | None = None
    average_retention: float | None
    small_tflops: float
    large_tflops: float
    large_alone_tflops: float
    saved_fraction: float
    stage_ms: dict[str, float]
    left_out_tokens: list[str] = []
    small_input_tokens: int
    small_output_tokens: int
    tiles: int | None = None
    kept_tiles: int | None = None
    encoded_tiles: int | None = None
    skipped_tower_tflops: float | None = None
    large_input_tokens: int | None
    large_output_tokens: int | None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    small_reasoning_tokens: int = 0
    large_reasoning_tokens: int | None = None
    small_known_tokens: int = 0
    small_known_pictures: int = 0
    large_known_tokens: int | None = None
    large_known_pictures: int | None = None
    large_hosted: bool = False
    large_error: str | None = None
    large_answered_as: str | None = None
    sent: SentReport | None = None
    cost: RunCost | None = None
    small_answer: str | None
    large_agreed: bool | None
    small_model: ModelInfo
    large_model: ModelInfo
