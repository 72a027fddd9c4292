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
    return replace(
        shape,
        token_values=tuple(sum(_values(layer, int(chosen))) for layer in layers),
        pair_values=tuple(_pair_values(layer, shape) for layer in layers),
    )


def _values(layer: Module, chosen: int) -> Iterator[int]:
    """Multiply-adds of each weight for one token, of which so many experts are run."""
    for path, module in layer.named_modules():
        own: Iterator[tuple[str, Parameter]] = module.named_parameters(recurse=False)
        for _, weight in own:
            several = weight.ndim == 3 and "expert" in f"{path} {type(module).__name__}".lower()
            if several:  # (experts, out, in)
                yield int(weight.numel() * min(chosen, len(weight)) // len(weight))
            elif weight.ndim in {2, 3} and type(module).__name__ != "Embedding":  # a matrix, a convolution
                yield weight.numel()


def _pair_values(layer: Module, shape: DecoderShape) -> int:
    """Multiply-adds of one query row against one key, and of its share of the value; all heads."""
    attention: Any = next((part for part in layer.modules() if hasattr(part, "scaling")), None)
    keys: Any = getattr(attention, "qk_head_dim", None) or getattr(attention, "head_dim", shape.head_dim)
    return int(shape.query_heads * (keys + getattr(attention, "v_head_dim", keys)))
