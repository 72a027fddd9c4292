"""Drops visual tokens from layer K of the large model on (SGL, section 3.2, SGP).

Planning is pure. ``prune_visual_tokens`` hooks the decoder layers from K on: on the first forward, layer K
gathers the kept rows, and every layer from K on gathers its positions and its mask, so that kept tokens keep
their original positions. Later steps run on a ragged cache (shorter from K on); the model builds one mask,
sized for layer 0, so the layers from K on get its columns for the tokens that they have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_engine.errors import ConfigError, IncompatiblePairError
from sgl_engine.types import EncodedPrompt, ImportanceMap, PruningPlan

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM


def plan_pruning(
    prompt: EncodedPrompt, importance: ImportanceMap, *, layer: int, keep_ratio: float
) -> PruningPlan:
    """Keeps all text and the most important visual tokens. Pure.

    Args:
        prompt: The prompt that will be pruned; it need not be the one that the map was taken from.
        importance: (V,), higher = more important; ties go to the lower index.
        layer: K, the first layer that sees only the kept tokens.
        keep_ratio: max(1, floor(V * keep_ratio)) visual tokens are kept.

    Raises:
        IncompatiblePairError: The map's grids are not the prompt's.
        ConfigError: A ratio outside (0, 1], or a negative layer.
    """
    if not 0.0 < keep_ratio <= 1.0 or layer < 0:
        raise ConfigError(
            f"Cannot keep {keep_ratio} of the visual tokens from layer {layer} on.",
            remedy="Give a keep_ratio in (0, 1] and a layer of at least 0.",
        )
    check_same_grids(importance, prompt)
    total = prompt.num_visual_tokens
    kept = min(total, max(1, math.floor(total * keep_ratio)))
    ranking = torch.sort(importance.mass, descending=True, stable=True).indices
    mask = torch.ones(len(prompt), dtype=torch.bool)
    mask[torch.tensor(prompt.visual_positions, dtype=torch.int64)[ranking[kept:]]] = False
    return PruningPlan(
        keep=mask.nonzero()[:, 0],
        layer=layer,
        prompt_tokens=len(prompt),
        visual_tokens=total,
        kept_visual_tokens=kept,
        keep_ratio=keep_ratio,
    )


def keep_everything(prompt: EncodedPrompt) -> PruningPlan:
    """The plan that prunes nothing: a prompt without images, or the model on its own. Pure."""
    return PruningPlan(
        keep=torch.arange(len(prompt)),
        layer=0,
        prompt_tokens=len(prompt),
        visual_tokens=prompt.num_visual_tokens,
        kept_visual_tokens=prompt.num_visual_tokens,
        keep_ratio=1.0,
    )


def check_same_grids(importance: ImportanceMap, prompt: EncodedPrompt) -> None:
    """Refuses a map whose images, tiles or grids are not the prompt's.

    Raises:
        IncompatiblePairError: They differ.
    """
    theirs = [(span.image, span.grid) for span in importance.spans]
    ours = [(span.image, span.grid) for span in prompt.spans]
    if theirs != ours:
        raise IncompatiblePairError(
            f"The importance map covers {_describe(theirs)}, but the prompt {_describe(ours)}.",
            remedy="Use two models that cut images into the same tiles and tokens: two sizes of one family.",
        )


def _describe(spans: list[tuple[int, tuple[int, int]]]) -> str:
    grids = ", ".join(sorted({f"{rows} x {cols}" for _, (rows, cols) in spans})) or "none"
    return f"{len({image for image, _ in spans})} images in {len(spans)} tiles of {grids} tokens"


@contextmanager
def prune_visual_tokens(vlm: VLM, plan: PruningPlan) -> Iterator[None]:
    """Within the context, ``vlm`` runs as ``plan`` says; on leaving, also by an exception, no hook remains.

    What is pruned follows from each layer's cache, not from state of the context: it may be entered anew for
    every step of one generation. Positions are the caller's: decoding goes on at S, the unpruned length.
    A plan that keeps everything hooks nothing, so its output is bit-identical to the plain model's.

    Raises:
        ConfigError: The plan's layer does not exist, or this architecture cannot be pruned there.
    """
    first, layers = vlm.family.first_prunable_layer, vlm.family.decoder_layers(vlm.model)
    if plan.prunes and not first <= plan.layer < len(layers):
        raise ConfigError(
            f"{vlm.name} cannot be pruned at layer {plan.layer}; it can at {first} to {len(layers) - 1}.",
            remedy="Choose another PruningConfig.layer_fraction.",
        )
    with ExitStack() as hooks:
        if plan.prunes:
            for index in range(plan.layer, len(layers)):
                handle = layers[index].register_forward_pre_hook(_layer_hook(plan, index), with_kwargs=True)
                hooks.callback(handle.remove)
        yield


def _layer_hook(plan: PruningPlan, index: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length(index) == 0:
            return _prune_first_forward(plan, index, args, kwargs)
        return args, {**kwargs, "attention_mask": _own_columns(plan, kwargs["attention_mask"])}

    return hook


def _prune_first_forward(
    plan: PruningPlan, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gathers the kept rows; tokens after the prompt (a teacher-forced answer) are all kept."""
    hidden, *rest = args
    cos, sin = kwargs["position_embeddings"]
    rows = _seen(plan, cos.shape[-2], cos.device)
    mask = kwargs["attention_mask"]
    pruned = {
        **kwargs,
        "position_embeddings": (cos.index_select(-2, rows), sin.index_select(-2, rows)),
        "position_ids": kwargs["position_ids"].index_select(-1, rows),
        # No mask means causal, and rows in ascending order stay causal.
        "attention_mask": None if mask is None else mask.index_select(-2, rows).index_select(-1, rows),
    }
    if index == plan.layer:
        hidden = hidden.index_select(1, rows.to(hidden.device))
    return (hidden, *rest), pruned


def _own_columns(plan: PruningPlan, mask: Tensor | None) -> Tensor | None:
    """The columns of layer 0's mask (1, 1, Q, N) that a pruned layer's cache has.

    With K = 0, layer 0 is itself pruned, and its mask already has the right columns.
    """
    if mask is None or plan.layer == 0:
        return mask
    return mask.index_select(-1, _seen(plan, mask.shape[-1], mask.device))


def _seen(plan: PruningPlan, tokens: int, device: torch.device) -> Tensor:
    """Which of the first ``tokens`` positions a pruned layer sees, int64, ascending."""
    return torch.cat((plan.keep, torch.arange(plan.prompt_tokens, tokens))).to(device)
