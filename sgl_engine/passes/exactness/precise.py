"""A copy of a model's first decoder layers in float32, for checks that rounding must not blur.

In half precision, what rounding does grows with depth, and can be as large as a real fault. The copy has as
many layers as there are kinds of them; everything else of the model is shared with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

_LEAST_LAYERS = 4
_MOST_LOGITS = 1024  # columns of the LM head: enough to compare, and small


def is_precise(vlm: VLM) -> bool:
    """Whether the decoder's layers compute in float32 or better."""
    layers = vlm.family.decoder_layers(vlm.model)
    dtypes = {each.dtype for each in layers[0].parameters()}
    return dtypes <= {torch.float32, torch.float64}


def float32_copy(vlm: VLM) -> VLM | None:
    """The model with its first layers in float32, on the same device.

    Returns:
        None where the model itself is as precise, where it does not run with some of its layers, or where
        weights cannot be copied (quantized ones).
    """
    if is_precise(vlm) or not vlm.family.can_be_shortened(vlm.text_model.config):
        return None
    from sgl_engine.model.vlm import VLM as Model  # noqa: N811  # the name above is for annotations alone

    layers = vlm.family.decoder_layers(vlm.model)
    first = layers[: max(_LEAST_LAYERS, _kinds_seen(layers), vlm.family.first_plain_layer(vlm.config) + 1)]
    if not all(each.is_floating_point() for layer in first for each in layer.parameters()):
        return None
    own = {id(each) for layer in first for each in layer.parameters()}
    norms = [name for name, _ in vlm.text_model.named_children() if "norm" in name]
    own |= {id(each) for name in norms for each in getattr(vlm.text_model, name).parameters()}
    # What is in the memo is shared and not copied.
    shared: dict[int, Any] = {id(each): each for each in vlm.model.parameters() if id(each) not in own}
    model = copy.deepcopy(vlm.model, shared)
    decoder: Any = vlm.family.text_model(model)
    decoder.layers = nn.ModuleList(list(decoder.layers)[: len(first)]).float()
    for name in norms:
        getattr(decoder, name).float()
    # The cache is made by the configuration, and has as many layers.
    decoder.config.num_hidden_layers = len(first)
    if getattr(decoder.config, "layer_types", None):
        decoder.config.layer_types = list(decoder.config.layer_types)[: len(first)]
    head = vlm.model.get_output_embeddings()
    rows = head.weight[:_MOST_LOGITS].float()
    short = nn.Linear(rows.shape[1], rows.shape[0], bias=head.bias is not None, device=rows.device)
    short.weight = nn.Parameter(rows, requires_grad=False)
    if head.bias is not None:
        short.bias = nn.Parameter(head.bias[:_MOST_LOGITS].float(), requires_grad=False)
    model.set_output_embeddings(short)
    decoder.forward = _in_float32(decoder.forward)
    return Model(model, vlm.processor, name=vlm.name)


def _kinds_seen(layers: Sequence[nn.Module]) -> int:
    """How many layers there are up to the first of the last kind."""
    kinds = [
        (
            tuple(type(part).__name__ for part in layer.modules()),
            *(
                getattr(part, name, None)
                for part in layer.modules()
                for name in ("layer_type", "sliding_window", "is_sliding", "use_rope", "attention_type")
            ),
        )
        for layer in layers
    ]
    named = [str(kind) for kind in kinds]
    return max(named.index(kind) for kind in set(named)) + 1


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The decoder's forward, given in float32 what the rest of the model computes in less."""

    def run(**settings: Any) -> Any:
        return forward(**{name: _wide(value) for name, value in settings.items()})

    return run


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if type(value) in {list, tuple}:
        return type(value)(_wide(part) for part in value)
    if type(value) is dict:
        return {name: _wide(part) for name, part in value.items()}
    return value
