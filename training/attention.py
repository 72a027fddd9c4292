"""Attention over a packed row: the picture causally, and each slot over the picture and itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

NAME = "sgl_packed"


@dataclass
class _Packing:
    prefix: int
    slots: int


_current = _Packing(0, 0)


@contextmanager
def packed(prefix: int, slots: int) -> Iterator[None]:
    """Within this context the rows are laid out as ``prefix`` tokens and then ``slots`` equal slots."""
    _current.prefix, _current.slots = prefix, slots
    yield


def use_packed_attention(model: PreTrainedModel) -> None:
    """Switch the text model to packed attention (for training only; nothing of it is saved)."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    model.model.language_model.config._attn_implementation = NAME  # noqa: SLF001  # no public setter


def _no_mask(**_: object) -> None:
    """The layout of the row is all that is masked by, and :func:`_attend` knows it."""


def _attend(
    module: Any,  # noqa: ARG001  # the interface's arguments
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query (B, heads, S, D), key and value (B, kv heads, S, D) -> (B, S, heads, D), None."""
    prefix, slots = _current.prefix, _current.slots
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    batch, heads, length, dim = query.shape
    each = (length - prefix) // slots
    picture = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True, scale=scaling
    )
    asked, own_keys, own_values = (t[:, :, prefix:] for t in (query, key, value))
    to_picture = torch.matmul(asked, key[:, :, :prefix].transpose(2, 3)).view(
        batch, heads, slots, each, prefix
    )
    shape = (batch, heads, slots, each, dim)
    to_self = torch.matmul(asked.reshape(shape), own_keys.reshape(shape).transpose(-1, -2))
    future = torch.ones(each, each, dtype=torch.bool, device=to_self.device).triu(1)
    to_self = to_self.masked_fill(future, torch.finfo(to_self.dtype).min)
    weights = torch.softmax(torch.cat([to_picture, to_self], -1) * scaling, -1)
    from_picture = torch.matmul(
        weights[..., :prefix].reshape(batch, heads, slots * each, prefix), value[:, :, :prefix]
    )
    from_self = torch.matmul(weights[..., prefix:], own_values.reshape(shape)).view_as(from_picture)
    return torch.cat([picture, from_picture + from_self], 2).transpose(1, 2), None
