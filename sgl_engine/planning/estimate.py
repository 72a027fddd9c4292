"""Counts what a page costs in each model, with the arithmetic of the engine's own reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import PRESETS, EngineConfig
from sgl_engine.decoding.answer import Generation
from sgl_engine.exit.calibration_file import load_calibration
from sgl_engine.exit.decision import consistency_keep_ratio
from sgl_engine.passes.large import LargePassResult, plan_large
from sgl_engine.passes.small import SmallPassResult
from sgl_engine.planning.outline import DTYPES
from sgl_engine.planning.result import CascadeCheck, PresetCheck, Saving
from sgl_engine.pruning.plan import plan_pruning
from sgl_engine.report import cost
from sgl_engine.report.make import alone_flops, large_cost, small_cost

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM
    from sgl_engine.prompt.encoded import EncodedPrompt
    from sgl_engine.pruning.plan import PruningPlan

ESCALATED_FRACTIONS = (0.2, 0.4, 0.6)
"""How often a cascade may call its large model, in ``PresetCheck.savings``."""


def small_flops(vlm: VLM, prompt: EncodedPrompt, output_tokens: int, config: EngineConfig) -> int:
    """Operations of a whole small pass whose answer has ``output_tokens``, the one that ends it included."""
    path = config.exit.calibration
    reads = path is not None and load_calibration(path).reads_consistency
    even, ratio = (
        even_map(prompt, output_tokens),
        consistency_keep_ratio(config.exit, calibration_reads=reads),
    )
    layer = vlm.family.first_prunable_layer
    plan = None if ratio is None else plan_pruning(prompt, even, layer=layer, keep_ratio=ratio)
    result = SmallPassResult(_generation(output_tokens), {}, even, plan, {})
    return small_cost(vlm, prompt, result).flops


def large_flops(
    vlm: VLM, prompt: EncodedPrompt, plan: PruningPlan, fed: Sequence[tuple[int, int]], output_tokens: int
) -> int:
    """Operations of a large pass; ``fed`` as in ``LargePassResult``."""
    result = LargePassResult(_generation(output_tokens), plan, (), {}, tuple(fed))
    return large_cost(vlm, prompt, result).flops


def token_by_token(output_tokens: int, *, drafted_tokens: int = 0) -> list[tuple[int, int]]:
    """What is fed where nothing of a draft is taken over."""
    return [(0, drafted_tokens), *((before, 1) for before in range(output_tokens - 1))]


def even_map(prompt: EncodedPrompt, output_tokens: int) -> ImportanceMap:
    """A map in which all visual tokens count the same, of as many rows as are recorded."""
    rows = len(prompt) - max(prompt.visual_positions) + output_tokens - 1
    return ImportanceMap(torch.ones(prompt.num_visual_tokens), prompt.spans, rows)


def count_cascade(
    models: tuple[VLM, VLM], prompts: tuple[EncodedPrompt, EncodedPrompt], tokens: int, config: EngineConfig
) -> CascadeCheck:
    """Counts the page with every preset.

    Args:
        models: Small and large.
        prompts: The same request, encoded by each.
        tokens: Of every answer, the one that ends it included.
        config: How the engine is set up.

    Raises:
        IncompatiblePairError: The small model's map cannot be carried onto the large one's tokens.
    """
    small = small_flops(models[0], prompts[0], tokens, config)
    alone = alone_flops(models[1], models[1], prompts[1], tokens)
    presets = []
    for name, pruning in PRESETS.items():
        # Which tokens the large model would see is unknown; their number is not.
        plan = plan_large(models[1], prompts[1], even_map(prompts[0], 1), pruning)
        drafted = tokens - 1 if config.generation.draft else 0
        rejected = large_flops(
            models[1], prompts[1], plan, token_by_token(tokens, drafted_tokens=drafted), tokens
        )
        accepted = large_flops(models[1], prompts[1], plan, [(0, tokens - 1)], tokens)
        savings = tuple(
            Saving(escalated_fraction=rate, saved_fraction=1 - (small + rate * rejected) / alone)
            for rate in ESCALATED_FRACTIONS
        )
        presets.append(
            PresetCheck(
                retention=name,
                layer=plan.layer,
                kept_visual_tokens=plan.kept_visual_tokens,
                average_retention=cost.average_retention(plan, models[1].num_layers),
                large_tflops=rejected / 1e12,
                accepted_tflops=accepted / 1e12,
                savings=savings,
            )
        )
    return CascadeCheck(
        small_tflops=small / 1e12,
        large_alone_tflops=alone / 1e12,
        cost_ratio=small / alone,
        presets=tuple(presets),
    )


def working_bytes(vlm: VLM, prompt: EncodedPrompt, output_tokens: int) -> dict[str, int]:
    """Memory by dtype of what one layer computes at once, at most: an MLP's rows, or heads, and logits."""
    decoder, vision = vlm.shape.decoder, vlm.shape.vision
    heads = decoder.attention_values or (decoder.query_heads + 2 * decoder.kv_heads) * decoder.head_dim
    rows = len(prompt) * (2 * decoder.hidden + max(3 * decoder.intermediate, heads))
    patches = sum(vlm.tower_patches(prompt)) * (2 * vision.hidden + vision.mlp_matrices * vision.intermediate)
    values = max(rows, patches)
    # Logits are read in float32, whatever they were computed in.
    logits = output_tokens * decoder.vocab * torch.float32.itemsize
    return {name: values * dtype.itemsize + logits for name, dtype in DTYPES.items()}


def _generation(tokens: int) -> Generation:
    """An answer of which only the length is known."""
    nothing = torch.zeros(tokens)
    return Generation("", nothing.long(), nothing, nothing, "length")
