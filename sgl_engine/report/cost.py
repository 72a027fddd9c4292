"""Counts the floating-point operations of a pass, from shapes alone. Pure.

One multiply-add counts as two operations. Matrix products, convolutions and attention are counted (attention
as the full rectangle of queries times keys, as ``torch.utils.flop_counter`` counts it); norms, activations
and rotations are not: they are far below one percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # these load torch, and counting needs none of it
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.families.shape import DecoderShape, ModelShape, VisionShape
    from sgl_engine.passes.small import SmallPassResult
    from sgl_engine.prompt.encoded import EncodedPrompt
    from sgl_engine.pruning.plan import PruningPlan


def token_flops(shape: DecoderShape, layer: int = 0) -> int:
    """Counts the matrix products of one attention layer for one token."""
    if shape.token_values:
        return 2 * shape.token_values[layer]
    heads = (3 if shape.gated else 2) * shape.query_heads + 2 * shape.kv_heads
    return 2 * (shape.hidden * shape.head_dim * heads + 3 * shape.hidden * shape.intermediate)


def pair_flops(shape: DecoderShape, layer: int = 0) -> int:
    """Counts one query row against one key, both products, in one layer."""
    if shape.pair_values:
        return 2 * shape.pair_values[layer]
    return 4 * shape.query_heads * shape.head_dim


def layer_flops(shape: DecoderShape, layer: int, tokens: int, pairs: int) -> int:
    """Counts one layer: so many tokens, so many query rows times keys."""
    if layer not in shape.recurrent_layers:
        return tokens * token_flops(shape, layer) + pairs * pair_flops(shape, layer)
    if shape.token_values:
        return tokens * (token_flops(shape, layer) + 2 * shape.recurrent_values)
    return 2 * tokens * (shape.recurrent_values + 3 * shape.hidden * shape.intermediate)


def recorded_flops(shape: DecoderShape, pairs: int) -> int:
    """Counts what recording adds: one more query-key product for each of ``pairs``, in attention layers."""
    attending = (layer for layer in range(shape.layers) if layer not in shape.recurrent_layers)
    # A pair costs two products, with the key and with the value; reading repeats the first.
    return sum(pairs * pair_flops(shape, layer) // 2 for layer in attending)


def logit_flops(shape: DecoderShape) -> int:
    """Counts the LM head for one row."""
    return 2 * shape.hidden * shape.vocab


def tower_flops(shape: VisionShape, patches: int) -> int:
    """Counts an image or tile of that many patches through tower and projector."""
    tokens = patches + shape.class_tokens
    embed = 2 * patches * shape.patch_values * shape.hidden
    layer = 2 * tokens * (4 * shape.hidden**2 + shape.mlp_matrices * shape.hidden * shape.intermediate)
    layer += 4 * tokens**2 * shape.hidden
    return embed + shape.layers * layer + 2 * (patches // shape.patches_per_token) * shape.projector


def tokens_per_layer(prompt_tokens: int, plan: PruningPlan | None, layers: int) -> tuple[int, ...]:
    """Returns how many of the positions each decoder layer sees (L,); ``plan`` None is unpruned."""
    if plan is None:
        return (prompt_tokens,) * layers
    entering, pruned = plan.entering_of(prompt_tokens), plan.kept_of(prompt_tokens)
    return tuple(entering if layer < plan.layer else pruned for layer in range(layers))


def average_retention(plan: PruningPlan, layers: int) -> float:
    """Computes the fraction of visual tokens seen, averaged over ``layers`` layers; 1 if there are none."""
    if plan.visual_tokens == 0:
        return 1.0
    entering, kept = plan.entering_visual_tokens, plan.kept_visual_tokens
    first = min(plan.layer, layers)
    return (first * entering + (layers - first) * kept) / (layers * plan.visual_tokens)


def forward_flops(
    shape: DecoderShape,
    layer_tokens: Sequence[int],
    logit_rows: int,
    *,
    known_tokens: int = 0,
    known_layers: int = 0,
) -> int:
    """Counts one forward over ``layer_tokens`` (L,) positions per layer, ``logit_rows`` of them with logits.

    The first ``known_layers`` layers have keys and values of the first ``known_tokens`` positions already.
    """
    # Known positions have no rows to compute, but are still attended to.
    run = [n - known_tokens if layer < known_layers else n for layer, n in enumerate(layer_tokens)]
    layers = sum(
        layer_flops(shape, layer, rows, rows * n)
        for layer, (rows, n) in enumerate(zip(run, layer_tokens, strict=True))
    )
    return layers + logit_rows * logit_flops(shape)


def prefill_flops(
    shape: DecoderShape,
    layer_tokens: Sequence[int],
    plan: PruningPlan | None,
    known_tokens: int,
    logit_rows: int = 1,
) -> int:
    """Counts a prompt's forward; ``known_tokens`` are known to all layers that see the whole prompt."""
    whole = plan.layer if plan is not None and plan.prunes else shape.layers
    return forward_flops(shape, layer_tokens, logit_rows, known_tokens=known_tokens, known_layers=whole)


def capture_flops(shape: DecoderShape, prompt_tokens: int, prefill_queries: int, output_tokens: int) -> int:
    """Counts what reading attention adds: one more query-key product per row that is recorded."""
    steps = max(0, output_tokens - 1)  # the last token is not fed back
    # The prompt's rows are computed against all its keys; step t sees the prompt and t tokens after it.
    pairs = (prefill_queries + steps) * prompt_tokens + steps * (steps + 1) // 2
    return recorded_flops(shape, pairs)


def answer_flops(
    shape: ModelShape,
    *,
    patches: Sequence[int],
    prompt_tokens: int,
    output_tokens: int,
    plan: PruningPlan | None = None,
    known_tokens: int = 0,
) -> int:
    """Counts a whole answer that is written token by token: vision tower, prefill and decoding.

    Args:
        shape: The model.
        patches: Patches of each image or tile that goes through the vision tower.
        prompt_tokens: S, before pruning.
        output_tokens: T, the end-of-sequence token included.
        plan: What is pruned; None is nothing.
        known_tokens: Prompt tokens that the layers which see all of them need not be run on.
    """
    fed = ((0, 0), *((before, 1) for before in range(output_tokens - 1)))
    return pass_flops(
        shape,
        patches=patches,
        prompt_tokens=prompt_tokens,
        fed=fed,
        plan=plan,
        known_tokens=known_tokens,
    )


def pass_flops(
    shape: ModelShape,
    *,
    patches: Sequence[int],
    prompt_tokens: int,
    fed: Sequence[tuple[int, int]],
    plan: PruningPlan | None = None,
    known_tokens: int = 0,
) -> int:
    """Counts a whole answer, forward by forward as it ran.

    Args:
        shape: The model.
        patches: Patches of each image or tile that goes through the vision tower.
        prompt_tokens: S, before pruning.
        fed: Per forward, answer tokens in the cache before it, and answer tokens fed; the first forward takes
            the prompt, too (``LargePassResult.fed``). Every answer token that is fed has logits.
        plan: What is pruned; None is nothing.
        known_tokens: As in ``answer_flops``.
    """
    decoder = shape.decoder
    layer_tokens = tokens_per_layer(prompt_tokens, plan, decoder.layers)
    (_, drafted), *steps = fed
    prefill = prefill_flops(decoder, [n + drafted for n in layer_tokens], plan, known_tokens, 1 + drafted)
    # All steps at once: every token sees the n prompt keys of its layer, and the `before + count` answer keys
    # that are there after its step.
    tokens = sum(count for _, count in steps)
    keys_beyond_prompt = sum(count * (before + count) for before, count in steps)
    layers = sum(
        layer_flops(decoder, layer, tokens, tokens * n + keys_beyond_prompt)
        for layer, n in enumerate(layer_tokens)
    )
    return (
        sum(tower_flops(shape.vision, count) for count in patches)
        + prefill
        + layers
        + tokens * logit_flops(decoder)
    )


def consistency_flops(shape: DecoderShape, *, plan: PruningPlan, output_tokens: int) -> int:
    """Counts the teacher-forced pass over the pruned prompt and all but the last answer token."""
    sequence = plan.prompt_tokens + output_tokens - 1
    return forward_flops(shape, tokens_per_layer(sequence, plan, shape.layers), logit_rows=output_tokens)


def small_pass_flops(
    shape: ModelShape, *, patches: Sequence[int], prompt: EncodedPrompt, result: SmallPassResult
) -> int:
    """Counts a whole small pass: answer, attention capture, and consistency pass if there was one."""
    output = len(result.generation)
    answer = answer_flops(
        shape,
        patches=patches,
        prompt_tokens=len(prompt),
        output_tokens=output,
        known_tokens=result.reused.tokens,
    )
    if result.importance is None:
        return answer  # no visual tokens: nothing was recorded, and there was no consistency pass
    prefill_queries = result.importance.num_queries - (output - 1)
    recorded = answer + capture_flops(shape.decoder, len(prompt), prefill_queries, output)
    if result.consistency_plan is None:
        return recorded
    return recorded + consistency_flops(shape.decoder, plan=result.consistency_plan, output_tokens=output)


def recorded_prompt_flops(
    shape: ModelShape, *, patches: Sequence[int], prompt_tokens: int, queries: int, known_tokens: int = 0
) -> int:
    """Counts a prompt that is read, without logits, while ``queries`` rows of attention are recorded."""
    decoder = shape.decoder
    layer_tokens = tokens_per_layer(prompt_tokens, None, decoder.layers)
    return (
        sum(tower_flops(shape.vision, count) for count in patches)
        + prefill_flops(decoder, layer_tokens, None, known_tokens, logit_rows=0)
        + recorded_flops(decoder, queries * prompt_tokens)
    )


def scoring_flops(
    shape: ModelShape,
    *,
    patches: Sequence[int],
    prompt: EncodedPrompt,
    answer_tokens: Sequence[int],
    plan: PruningPlan | None = None,
    importance: ImportanceMap | None = None,
    known_tokens: int = 0,
) -> int:
    """Counts one prefill, then several answers that are each fed whole onto its cache.

    Args:
        shape: The model.
        patches: Patches of each image or tile that goes through the vision tower.
        prompt: The prompt, before pruning.
        answer_tokens: Tokens of each answer that is fed, without the one that ends it.
        plan: What is pruned; None is nothing.
        importance: The map, where attention was recorded: during the prefill and the last of these answers.
        known_tokens: As in ``answer_flops``.
    """
    decoder = shape.decoder
    layer_tokens = tokens_per_layer(len(prompt), plan, decoder.layers)
    prefill = sum(
        tower_flops(shape.vision, count) for count in patches
    )  # the vision tower, and then the prompt
    prefill += prefill_flops(decoder, layer_tokens, plan, known_tokens)
    # Each answer is fed on the prompt's cache alone: in a layer of `before` keys, its rows see before + rows.
    answers = sum(
        layer_flops(decoder, layer, rows, rows * (before + rows))
        for rows in answer_tokens
        for layer, before in enumerate(layer_tokens)
    )
    answers += sum(answer_tokens) * logit_flops(decoder)
    if importance is None:
        return prefill + answers
    # All recorded rows see the prompt's keys; those of the last answer see its own keys as well.
    recorded = answer_tokens[-1]
    pairs = importance.num_queries * len(prompt) + recorded * recorded
    return prefill + answers + recorded_flops(decoder, pairs)
