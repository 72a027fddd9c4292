"""Drops visual tokens from layer K of the large model on (SGL, section 3.2, SGP).

Planning is pure. ``prune_visual_tokens`` hooks the decoder layers from K on: on the first forward, layer K
gathers the kept rows, and every layer from K on gathers its positions and its mask, so that kept tokens keep
their original positions. Later steps run on a ragged cache (shorter from K on); the model builds its masks
for the first layers, so the layers from K on get their own. Recurrent layers read the kept rows as if the
others had never been there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_engine.errors import ConfigError
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.layer_inputs import LayerInputs
from sgl_engine.pruning.plan import KeptColumns, PruningPlan

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM


class _LayerReachedError(Exception):
    """Ends a forward pass; what comes after it is not needed."""


def run_lower_layers(
    vlm: VLM,
    embeddings: Tensor,
    *,
    prompt: EncodedPrompt,
    first_position: int,
    cache: DynamicCache,
    layer: int,
) -> LayerInputs:
    """A forward pass that ends before ``layer``; arguments as of ``VLM.forward``.

    Returns:
        What would have entered that layer.
    """
    reached: list[LayerInputs] = []

    def stop(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(LayerInputs.entering(args[0], kwargs))
        raise _LayerReachedError

    handle = vlm.family.decoder_layers(vlm.model)[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with suppress(_LayerReachedError):
            vlm.forward(embeddings, prompt=prompt, first_position=first_position, cache=cache)
    finally:
        handle.remove()
    [rows] = reached
    return rows


@contextmanager
def prune_visual_tokens(
    vlm: VLM, plan: PruningPlan | KeptColumns, lower: LayerInputs | None = None
) -> Iterator[None]:
    """Within the context, ``vlm`` runs as ``plan`` says; on leaving, also by an exception, no hook remains.

    What is pruned follows from each layer's cache, not from state of the context: it may be entered anew for
    every step of one generation. Positions are the caller's: decoding goes on at S, the unpruned length.
    A plan that keeps everything hooks nothing, so its output is bit-identical to the plain model's.

    Args:
        vlm: The model.
        plan: What is kept.
        lower: Where the first forward begins after the prompts' first columns: what enters layer K of these.
            The cache then holds their keys and values for the layers below K.

    Raises:
        ConfigError: The plan's layer does not exist, or this model cannot be pruned there.
    """
    if not plan.prunes:
        yield
        return
    kept = plan if isinstance(plan, KeptColumns) else KeptColumns.of([plan])
    layers = vlm.family.decoder_layers(vlm.model)
    implementation = _check_prunable(vlm, kept, len(layers))
    if not kept.is_even:
        recurrent = enumerate(vlm.new_cache().is_linear)
        kept = replace(kept, recurrent=frozenset(layer for layer, linear in recurrent if linear))
    with ExitStack() as hooks:
        for index in range(kept.layer, len(layers)):
            hook = _layer_hook(kept, index, implementation, lower)
            hooks.callback(layers[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
        adder = vlm.family.plane_adder
        if adder is not None:
            decoder = vlm.text_model
            setattr(decoder, adder, _pruned_adder(kept, getattr(decoder, adder)))
            hooks.callback(delattr, decoder, adder)  # the class's own method shows again
        yield


def _check_prunable(vlm: VLM, plan: KeptColumns, layers: int) -> str:
    """The attention implementation, where the plan can be carried out with it."""
    first = vlm.family.first_prunable_layer
    if not first <= plan.layer < layers:
        raise ConfigError(
            f"{vlm.name} cannot be pruned at layer {plan.layer}; it can at {first} to {layers - 1}.",
            remedy="Choose another PruningConfig.layer_fraction.",
        )
    config = vlm.text_model.config
    implementation: str = config._attn_implementation  # noqa: SLF001  # transformers has no public getter
    flash = "flash" in implementation
    if not (flash or implementation.endswith(("sdpa", "eager"))) or (flash and vlm.has_sliding_layers):
        raise ConfigError(
            f"{vlm.name} runs {implementation} attention{' in a sliding window' if flash else ''}, "
            "which cannot be told which tokens are left.",
            remedy='Use model.set_attn_implementation("sdpa").',
        )
    return implementation


def _layer_hook(
    kept: KeptColumns, index: int, implementation: str, lower: LayerInputs | None
) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
    flash, additive = "flash" in implementation, implementation.endswith("eager")

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = kwargs.get("cache")
        if cache is None or not _has_seen(cache, index):
            if lower is not None:
                args, kwargs = lower.complete(args, kwargs, with_hidden=index == kept.layer)
            columns = kwargs["position_embeddings"][0].shape[-2]
            args, kwargs = _prune_first_forward(kept, index, args, kwargs)
            if lower is not None and cache is not None and not flash and not cache.is_linear[index]:
                mask, layer = kwargs["attention_mask"], cache.layers[index]
                if additive or layer.is_sliding or mask is not None:  # else None, which means causal
                    mask = _completed_mask(kept, columns, mask, layer)
                kwargs["attention_mask"] = _as_mask(mask, args[0], additive=additive)
            # Flash attention takes gaps between positions for several packed prompts; rotation is done
            # already.
            return args, {**kwargs, "position_ids": None} if flash else kwargs
        if cache.is_linear[index]:
            return args, kwargs  # a recurrent state has no columns
        if flash:  # causal from the last key backwards, whatever the cache's length
            return args, {**kwargs, "attention_mask": None}
        visible = _visible(kept, cache.layers[index], args[0].shape[1])
        visible = None if visible is None else visible[:, None]
        return args, {**kwargs, "attention_mask": _as_mask(visible, args[0], additive=additive)}

    return hook


def _has_seen(cache: Any, index: int) -> bool:
    """Whether a layer's cache holds anything."""
    if cache.is_linear[index]:
        return bool(cache.has_previous_state(index))
    return bool(cache.get_seq_length(index))


def _prune_first_forward(
    kept: KeptColumns, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gathers the kept rows; tokens after the prompt (a teacher-forced answer) are all kept."""
    hidden, *rest = args
    cos, sin = kwargs["position_embeddings"]
    rows = _seen(kept, cos.shape[-2], cos.device)
    mask, position_ids = kwargs["attention_mask"], kwargs.get("position_ids")
    if mask is not None:  # None means causal, and rows in ascending order stay causal
        if mask.ndim == 4:  # else (B, S), of a recurrent layer
            mask = mask.take_along_dim(rows[:, None, :, None], dim=-2).take_along_dim(
                rows[:, None, None], dim=-1
            )
        else:
            mask = mask.take_along_dim(rows, dim=-1)
    if not kept.is_even:
        exist = kept.exist(rows.shape[1], cos.device)
        hide = _without_fillers if index in kept.recurrent else _hiding_fillers
        mask = hide(mask, exist)
    pruned = {
        **kwargs,
        "position_embeddings": tuple(part.take_along_dim(rows[..., None], dim=-2) for part in (cos, sin)),
        "position_ids": None if position_ids is None else position_ids.take_along_dim(rows, dim=-1),
        "attention_mask": mask,
    }
    if index == kept.layer:
        hidden = hidden.take_along_dim(rows.to(hidden.device)[..., None], dim=1)
    return (hidden, *rest), pruned


def _completed_mask(kept: KeptColumns, columns: int, mask: Tensor | None, layer: Any) -> Tensor:
    """Which of the kept of the first ``columns`` each of them sees, bool (B or 1, 1, M, M).

    Args:
        kept: What is kept.
        columns: How many there were.
        mask: The same without a sliding window, where there are fillers; None without them.
        layer: The layer's cache.
    """
    seen = _seen(kept, columns, torch.device("cpu") if mask is None else mask.device)
    if mask is None:
        mask = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device=seen.device).tril()[
            None, None
        ]
    if layer.is_sliding:
        mask = mask & (seen[:, None, None] > seen[:, None, :, None] - layer.sliding_window)
    return mask


def _without_fillers(mask: Tensor | None, exist: Tensor) -> Tensor:
    """A recurrent layer's mask (B, M), 1 = read, in which fillers are not read."""
    return exist.long() if mask is None else mask * exist


def _hiding_fillers(mask: Tensor | None, exist: Tensor) -> Tensor:
    """An attention layer's mask (B, 1, M, M) in which fillers see themselves, and nobody else does."""
    own = torch.eye(exist.shape[1], dtype=torch.bool, device=exist.device)
    if mask is None:
        mask = torch.ones_like(own).tril()
    fillers = ~exist[:, None, None]
    if mask.dtype == torch.bool:
        return (mask & ~fillers) | (own & fillers)
    mask = mask.masked_fill(fillers, torch.finfo(mask.dtype).min)
    return mask.masked_fill(own & fillers, 0.0)


def _visible(kept: KeptColumns, layer: Any, steps: int) -> Tensor | None:
    """Which keys of a pruned layer's cache each of ``steps`` new tokens sees, bool (B, Q, N); None is all.

    Sliding windows go by original positions: fewer tokens are left in them, not older ones.
    """
    length = layer.get_seq_length()  # what is left of the prompt, and all tokens since
    window = layer.sliding_window if layer.is_sliding else None
    if steps == 1 and window is None and kept.is_even:
        return None
    first = kept.tokens + length - kept.columns.shape[1]
    stored = length if window is None else min(length, window - 1)
    keys = _seen(kept, first + steps, torch.device("cpu"))[:, None, length - stored :]
    queries = torch.arange(first, first + steps)[:, None]
    visible = keys <= queries
    if window is not None:
        visible &= keys > queries - window
    visible &= kept.exist(length + steps, visible.device)[:, None, length - stored :]
    return None if bool(visible.all()) else visible


def _as_mask(visible: Tensor | None, hidden: Tensor, *, additive: bool) -> Tensor | None:
    """As attention takes it, (B, 1, Q, N): boolean for SDPA, added to the scores by eager attention."""
    if visible is None:
        return None
    visible = visible.to(hidden.device)
    if not additive:
        return visible
    nothing = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
    return nothing.masked_fill(~visible, torch.finfo(hidden.dtype).min)


def _pruned_adder(
    kept: KeptColumns, original: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Adds a plane of visual features to what is left of the image tokens."""

    def add(hidden: Tensor, is_image: Tensor, plane: Tensor) -> Tensor:
        """Hidden states (B, N, hidden), which of the padded prompts are visual (B, S), (V, hidden)."""
        if hidden.shape[1] == is_image.shape[1]:  # every plan drops something, so these are not pruned
            return original(hidden, is_image, plane)
        rows = _seen(kept, is_image.shape[1], is_image.device)
        left = is_image.take_along_dim(rows, dim=1) & kept.exist(rows.shape[1], is_image.device)
        planes = (is_image.flatten().cumsum(dim=0) - 1).reshape(is_image.shape)
        planes = planes.take_along_dim(rows, dim=1)[left]
        return original(hidden, left, plane[planes.to(plane.device)])

    return add


def _seen(kept: KeptColumns, tokens: int, device: torch.device) -> Tensor:
    """Which of the first ``tokens`` columns a pruned layer sees, int64 (B, N); fillers, then ascending."""
    after = torch.arange(kept.tokens, tokens).expand(len(kept.columns), -1)
    return torch.cat((kept.columns, after), dim=1).to(device)
