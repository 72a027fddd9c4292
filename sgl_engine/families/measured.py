"""Sizes of a decoder as its weights tell them: mixtures of experts, latent attention, layers that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sgl_engine.families.shape import DecoderShape

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from transformers import PreTrainedConfig

_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token")


def measured(shape: DecoderShape, layers: Sequence[Module], config: PreTrainedConfig) -> DecoderShape:
    """The shape, with what each layer multiplies a token with, and pairs of a query and a key.

    Args:
        shape: As the configuration alone tells it.
        layers: The decoder's.
        config: Of the decoder.
    """
    chosen = next((getattr(config, name) for name in _CHOSEN if getattr(config, name, None)), 1)
    values = [sum(_values(layer, int(chosen))) for layer in layers]
    attending = [sum(_values(_attention(layer), int(chosen))) for layer in layers]
    return replace(
        shape,
        # An MLP of three matrices that multiplies a token with as many values.
        intermediate=max(a - b for a, b in zip(values, attending, strict=True)) // (3 * shape.hidden),
        attention_values=max(_attention_values(layer, shape) for layer in layers),
        token_values=tuple(values),
        pair_values=tuple(shape.query_heads * sum(_widths(layer, shape)) for layer in layers),
    )


def _values(layer: Module | None, chosen: int) -> Iterator[int]:
    """Multiply-adds of each weight for one token, of which so many experts are run."""
    if layer is None:
        return
    for path, module in layer.named_modules():
        own: Iterator[tuple[str, Parameter]] = module.named_parameters(recurse=False)
        for _, weight in own:
            several = weight.ndim == 3 and "expert" in f"{path} {type(module).__name__}".lower()
            if several:  # (experts, out, in)
                yield int(weight.numel() * min(chosen, len(weight)) // len(weight))
            elif weight.ndim in {2, 3} and type(module).__name__ != "Embedding":  # a matrix, a convolution
                yield weight.numel()


def _attention(layer: Module) -> Any:
    """A layer's attention; None where it has a recurrence instead."""
    return next((part for part in layer.modules() if hasattr(part, "scaling")), None)


def _widths(layer: Module, shape: DecoderShape) -> tuple[int, int]:
    """Of a key, and of its value, in one head."""
    attention = _attention(layer)
    keys: Any = getattr(attention, "qk_head_dim", None) or getattr(attention, "head_dim", shape.head_dim)
    return int(keys), int(getattr(attention, "v_head_dim", keys))


def _attention_values(layer: Module, shape: DecoderShape) -> int:
    """Queries, keys and values of one token; latent attention makes keys and values for every head."""
    keys, values = _widths(layer, shape)
    is_latent = hasattr(_attention(layer), "v_head_dim")
    return shape.query_heads * keys + (shape.query_heads if is_latent else shape.kv_heads) * (keys + values)
