"""Drops visual tokens from layer K of the large model on (SGL, section 3.2, SGP).

``prune_visual_tokens`` hooks the decoder layers from K on:

    layer     first forward                              later forwards
    0 .. K-1  S rows, S keys                             new rows, S + t keys
    K         S rows -> M kept ones, with their own      new rows, M + t keys; its own mask
              rotary positions and their part of
              the mask
    K+1 ..    M rows; positions and mask as in K         new rows, M + t keys; its own mask

So kept tokens keep their original positions, and the cache is ragged: shorter from K on. The model builds its
masks for the first layers, which is why the layers from K on get their own. Recurrent layers read the kept
rows as if the others had never been there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_engine.attention.capture import without_positions
from sgl_engine.errors import ConfigError
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.layer_inputs import LayerInputs
from sgl_engine.pruning.plan import KeptColumns, PruningPlan
from sgl_engine.pruning.planes import pruned_adder, pruned_planes

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM


class _LayerReachedError(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


def run_lower_layers(
    vlm: VLM,
    embeddings: Tensor,
    *,
    prompt: EncodedPrompt,
    first_position: int,
    cache: DynamicCache,
    layer: int,
) -> LayerInputs:
    """Runs a forward pass that ends before ``layer``; arguments as of ``VLM.forward``.

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
    vlm: VLM,
    plan: PruningPlan | KeptColumns,
    lower: LayerInputs | None = None,
    among: Tensor | None = None,
) -> Iterator[None]:
    """Makes ``vlm`` drop what ``plan`` drops, within the context; no hook remains, also after an exception.

    What a layer has to do follows from its cache, not from state of the context. So the context may be
    entered anew for every step of one generation. Positions are the caller's: decoding goes on at S, the
    unpruned length. A plan that keeps everything hooks nothing: the output is the plain model's, bit for bit.

    Args:
        vlm: The model.
        plan: What is kept.
        lower: What enters layer K for the prompts' first columns, where the first forward begins after these.
            The cache then holds their keys and values for the layers below K.
        among: Which tokens of a later forward each of them sees, bool (N, N); None is all before it.

    Raises:
        ConfigError: The plan's layer does not exist, or this model cannot be pruned there.
    """
    if not plan.prunes:
        yield
        return
    kept = plan if isinstance(plan, KeptColumns) else KeptColumns.of([plan])
    layers = vlm.family.decoder_layers(vlm.model)
    implementation = _check_prunable(vlm, kept)
    if not kept.is_even:  # only fillers have to be hidden from recurrent layers
        recurrent = enumerate(vlm.new_cache().is_linear)
        kept = replace(kept, recurrent=frozenset(layer for layer, linear in recurrent if linear))
    with ExitStack() as hooks:
        if "flash" in implementation:
            # It takes a gap between positions for the beginning of another prompt, and it needs none: queries
            # and keys are rotated already.
            hooks.enter_context(without_positions(vlm))
        for index in range(kept.layer, len(layers)):
            keys = vlm.family.keys_of(vlm.text_model.config, index)
            hook = _layer_hook(kept, index, implementation, lower, keys, among)
            hooks.callback(layers[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
        adder = vlm.family.plane_adder
        if adder is not None:
            # Such a decoder adds visual features between layers, also where some image tokens are gone.
            decoder = vlm.text_model
            setattr(decoder, adder, pruned_adder(kept, getattr(decoder, adder)))
            hooks.callback(delattr, decoder, adder)  # the class's own method shows again
        if vlm.family.plane_inputs is not None:
            given = pruned_planes(kept, vlm.family.plane_inputs)
            hooks.callback(vlm.text_model.register_forward_pre_hook(given, with_kwargs=True).remove)
        yield


def last_prunable_layer(vlm: VLM) -> int:
    """The greatest K: a layer that sees another's keys must see no more of them than that one keeps."""
    config, layers = vlm.text_model.config, range(vlm.num_layers)
    others = [keys for layer in layers if (keys := vlm.family.keys_of(config, layer)) != layer]
    return min(others, default=vlm.num_layers - 1)


def _check_prunable(vlm: VLM, plan: KeptColumns) -> str:
    """Returns the attention implementation, if the plan can be carried out with it; else raises."""
    first, last = vlm.family.first_prunable_layer, last_prunable_layer(vlm)
    if not first <= plan.layer <= last:
        raise ConfigError(
            f"{vlm.name} cannot be pruned at layer {plan.layer}; it can at {first} to {last}.",
            remedy="Choose another PruningConfig.layer_fraction.",
        )
    config = vlm.text_model.config
    implementation: str = config._attn_implementation  # noqa: SLF001  # transformers has no public getter
    flash = "flash" in implementation
    # Flash attention takes no mask, and its window counts the keys that are left, not original positions.
    if not (flash or implementation.endswith(("sdpa", "eager"))) or (flash and vlm.has_sliding_layers):
        raise ConfigError(
            f"{vlm.name} runs {implementation} attention{' in a sliding window' if flash else ''}, "
            "which cannot be told which tokens are left.",
            remedy='Use model.set_attn_implementation("sdpa").',
        )
    return implementation


def _layer_hook(
    kept: KeptColumns,
    index: int,
    implementation: str,
    lower: LayerInputs | None,
    keys: int,
    among: Tensor | None,
) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
    """Makes the hook that changes what decoder layer ``index``, K or later, is given.

    Its keys and values are in the cache of layer ``keys``, which may be an earlier one.
    """
    flash, additive = "flash" in implementation, implementation.endswith("eager")

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = kwargs.get("cache")
        rows = args[0].shape[1]
        # Keys of an earlier layer are there already, those of this forward, too.
        new = rows if keys != index else 0
        if cache is None or (cache.get_seq_length(keys) == new if new else not _has_seen(cache, index)):
            # The first forward: the prompt arrives, and the kept rows of it go on.
            if lower is not None:
                # The forward began after a known prefix. This layer has no keys of it yet: put it in front.
                args, kwargs = lower.complete(args, kwargs, with_hidden=index == kept.layer)
            columns = _columns(args[0], kwargs)
            args, kwargs = _prune_first_forward(kept, index, args, kwargs)
            if lower is not None and cache is not None and not flash and not cache.is_linear[index]:
                # The model's mask was for the columns after the prefix alone, so it is gone: make another.
                mask, layer = kwargs["attention_mask"], cache.layers[index]
                if additive or layer.is_sliding or mask is not None:  # SDPA without a mask is causal anyway
                    mask = _completed_mask(kept, columns, mask, layer)
                kwargs["attention_mask"] = _as_mask(mask, args[0], additive=additive)
            return args, kwargs
        # A later forward, on the kept rows' cache.
        if cache.is_linear[index]:
            return args, kwargs  # a recurrent state has no columns, so nothing is to be hidden
        if flash:
            # Causal from the last key backwards, however many keys there are: right without a mask.
            return args, {**kwargs, "attention_mask": None}
        # The model's mask has a column for every key of the unpruned layers: too many for this one.
        visible = _visible(kept, cache.layers[keys], rows, new, among)
        visible = None if visible is None else visible[:, None]
        return args, {**kwargs, "attention_mask": _as_mask(visible, args[0], additive=additive)}

    return hook


def _has_seen(cache: Any, index: int) -> bool:
    """Tells whether a layer's cache holds anything."""
    if cache.is_linear[index]:
        return bool(cache.has_previous_state(index))
    return bool(cache.get_seq_length(index))


def _prune_first_forward(
    kept: KeptColumns, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Picks the kept rows of a layer's arguments; tokens after the prompt (a forced answer) are all kept."""
    hidden, *rest = args
    columns, device = _columns(hidden, kwargs), hidden.device
    rows = kept.seen(columns, device)
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor):  # None means causal, and rows in ascending order stay causal
        if mask.ndim == 4:
            # (B, 1, Q, N), of an attention layer: both queries and keys are left out.
            at = rows.to(mask.device)
            mask = mask.take_along_dim(at[:, None, :, None], dim=-2).take_along_dim(at[:, None, None], dim=-1)
        else:
            mask = _pick(mask, rows, -1)  # (B, N), of a recurrent layer
    if not kept.is_even:
        # Prompts that keep fewer tokens begin with fillers, which no token may see.
        exist = kept.exist(rows.shape[1], device)
        hide = _without_fillers if index in kept.recurrent else _hiding_fillers
        mask = hide(mask, exist)
    others = {name: value for name, value in kwargs.items() if name not in {"attention_mask", *_ALONG}}
    pruned = {name: _own_rows(value, rows, columns) for name, value in others.items()}
    pruned |= {name: _along(kwargs[name], rows, axis) for name, axis in _ALONG.items() if name in kwargs}
    pruned["attention_mask"] = mask
    rest = [_own_rows(value, rows, columns) for value in rest]
    if index == kept.layer:
        # Later layers are given what this one returns, so their hidden states have M rows already.
        hidden = _pick(hidden, rows, 1)
    return (hidden, *rest), pruned


_ALONG = {"position_embeddings": -2, "position_ids": -1}
"""What layers are given of positions, and the axis along which columns lie in it; prompts lie before it."""


def _columns(hidden: Tensor, kwargs: dict[str, Any]) -> int:
    """Columns that the forward has; hidden states above layer K have fewer."""
    rotary = kwargs.get("position_embeddings")
    if rotary is None:
        ids = kwargs.get("position_ids")
        return int(hidden.shape[1] if ids is None else ids.shape[-1])
    return int((rotary if isinstance(rotary, Tensor) else rotary[0]).shape[-2])


def _pick(value: Tensor, rows: Tensor, axis: int) -> Tensor:
    """Takes the columns ``rows``, (B, M), along an axis behind that of the prompts."""
    axis %= value.ndim
    index = rows.reshape((1,) * (axis - 1) + tuple(rows.shape) + (1,) * (value.ndim - axis - 1))
    return value.take_along_dim(index.to(value.device), dim=axis)


def _along(value: Any, rows: Tensor, axis: int) -> Any:
    """The same of several tensors, and of none."""
    if isinstance(value, Tensor):
        return _pick(value, rows, axis)
    return value if value is None else tuple(_pick(part, rows, axis) for part in value)


def _own_rows(value: Any, rows: Tensor, columns: int) -> Any:
    """The same of whatever else has a row for each column, such as embeddings of a layer's own."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == columns:
        return _pick(value, rows, 1)
    return value


def _completed_mask(kept: KeptColumns, columns: int, mask: Tensor | None, layer: Any) -> Tensor:
    """Makes the mask of the kept columns for a first forward, bool (B or 1, 1, M, M); True = visible.

    Args:
        kept: What is kept.
        columns: How many columns there were before pruning.
        mask: A causal one that hides fillers, where there are any; None where there are none.
        layer: The layer's cache, which knows its window.
    """
    seen = kept.seen(columns, torch.device("cpu") if mask is None else mask.device)
    if mask is None:
        size = seen.shape[1]
        mask = torch.ones(size, size, dtype=torch.bool, device=seen.device).tril()[None, None]
    if layer.is_sliding:
        # A window goes by original columns: fewer tokens are left in it, not older ones.
        mask = mask & (seen[:, None, None] > seen[:, None, :, None] - layer.sliding_window)
    return mask


def _without_fillers(mask: Tensor | None, exist: Tensor) -> Tensor:
    """Hides fillers in a recurrent layer's mask (B, M); 1 = read."""
    return exist.long() if mask is None else mask * exist


def _hiding_fillers(mask: Tensor | None, exist: Tensor) -> Tensor:
    """Hides fillers in an attention layer's mask (B, 1, M, M)."""
    # A filler sees itself: in some kernels, a row that sees nothing becomes NaN.
    own = torch.eye(exist.shape[1], dtype=torch.bool, device=exist.device)
    if mask is None:
        mask = torch.ones_like(own).tril()
    fillers = ~exist[:, None, None]
    if mask.dtype == torch.bool:  # for SDPA; else added to the scores, by eager attention
        return (mask & ~fillers) | (own & fillers)
    mask = mask.masked_fill(fillers, torch.finfo(mask.dtype).min)
    return mask.masked_fill(own & fillers, 0.0)


def _visible(
    kept: KeptColumns, layer: Any, steps: int, new: int = 0, among: Tensor | None = None
) -> Tensor | None:
    """Tells which keys of a pruned layer each of ``steps`` new tokens sees, bool (B, Q, N); None is all.

    The last ``new`` of them are in the layer's cache already. Sliding windows go by original columns: fewer
    tokens are left in them, not older ones.
    """
    length = layer.get_seq_length() - new  # what is left of the prompt, and all tokens since
    window = layer.sliding_window if layer.is_sliding else None
    if steps == 1 and window is None and kept.is_even:
        return None  # the usual step: one token, which sees everything
    # The original column of the first new token.
    first = kept.tokens + length - kept.columns.shape[1]
    # A window's cache holds the last window - 1 tokens only. The new ones come after what is stored.
    stored = length if window is None else min(length, window - 1)
    keys = kept.seen(first + steps, torch.device("cpu"))[:, None, length - stored :]
    queries = torch.arange(first, first + steps)[:, None]
    visible = keys <= queries  # causal among the new tokens; each sees all older ones
    if window is not None:
        visible &= keys > queries - window
    # Fillers stand in front, with the column of another token.
    visible &= kept.exist(length + steps, visible.device)[:, None, length - stored :]
    if among is not None:
        visible[..., -steps:] &= among
    return None if bool(visible.all()) else visible


def _as_mask(visible: Tensor | None, hidden: Tensor, *, additive: bool) -> Tensor | None:
    """Makes a mask of what is visible, (B, 1, Q, N): boolean for SDPA, 0 or very negative for eager."""
    if visible is None:
        return None
    visible = visible.to(hidden.device)
    if not additive:
        return visible
    nothing = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
    return nothing.masked_fill(~visible, torch.finfo(hidden.dtype).min)
