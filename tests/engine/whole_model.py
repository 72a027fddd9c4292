"""Oracles for any architecture: the model's own forward over whole sequences, nothing cached or reused.

What a pruned layer must not see is hidden inside attention itself, by an attention function of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from sgl_engine import VLM
from sgl_engine.prompt.encoded import EncodedPrompt

_TOKEN_KINDS = ("attention_mask", "mm_token_type_ids", "token_type_ids")


@torch.no_grad()
def whole_logits(vlm: VLM, prompt: EncodedPrompt, answer: Sequence[int]) -> Tensor:
    """Logits of every position of prompt + answer."""
    inputs = dict(prompt.inputs)
    tail = torch.tensor([list(answer)], dtype=torch.int64)
    inputs["input_ids"] = torch.cat((prompt.input_ids, tail), dim=1)
    for name in _TOKEN_KINDS:
        if name in inputs:  # an answer is text, and seen
            value = int(name == "attention_mask")
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(answer)), value=value)
    return vlm.model(**inputs, use_cache=False).logits[0].float()


def visual_positions(vlm: VLM, prompt: EncodedPrompt) -> list[int]:
    """Positions of the image token that do not hold the learned newline vector."""
    ids = prompt.input_ids[0]
    positions = (ids == vlm.config.image_token_id).nonzero()[:, 0].tolist()
    newline = getattr(vlm.model.model, "image_newline", None)
    if newline is None:
        return positions
    embeddings = vlm.embed(prompt)[0]
    return [position for position in positions if not torch.equal(embeddings[position], newline.data)]


@contextmanager
def attention_of(vlm: VLM, implementation: str) -> Iterator[None]:
    """The whole model runs an attention implementation."""
    vlm.model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        vlm.model.set_attn_implementation("sdpa")


def attention_sum(vlm: VLM, prompt: EncodedPrompt, answer: Sequence[int]) -> Tensor:
    """Eager attention that each visual token receives from the rows that count, (V,), over all layers."""
    visual = visual_positions(vlm, prompt)
    total = torch.zeros(len(visual), dtype=torch.float64)

    def add(_: Any, __: Any, output: tuple[Tensor, Tensor]) -> None:
        probabilities = output[1]  # (1, H, N, N)
        total.add_(probabilities[0, :, visual[-1] :][..., visual].double().sum(dim=(0, 1)))

    attention = [module for module in vlm.text_model.modules() if hasattr(module, "layer_idx")]
    attention = [module for module in attention if hasattr(module, "scaling")]
    handles = [module.register_forward_hook(add) for module in attention]
    try:
        with attention_of(vlm, "eager"):
            whole_logits(vlm, prompt, answer[:-1])
    finally:
        for handle in handles:
            handle.remove()
    return total


def masked_logits(
    vlm: VLM,
    prompt: EncodedPrompt,
    answer: Sequence[int],
    *,
    layer: int,
    keep: Sequence[int],
    skip: Sequence[int] = (),
) -> Tensor:
    """Logits of every position, where layers from `layer` on do not see prompt tokens outside `keep`.

    No layer sees those in `skip`.
    """
    hidden = sorted(set(range(len(prompt))) - set(keep))
    seen = [*keep, *range(len(prompt), len(prompt) + len(answer))]
    config = vlm.text_model.config
    before = config._attn_implementation
    recurrent = [
        decoder_layer.linear_attn
        for index, decoder_layer in enumerate(vlm.family.decoder_layers(vlm.model))
        if index >= layer and hasattr(decoder_layer, "linear_attn")
    ]
    AttentionMaskInterface.register("oracle", eager_mask)
    AttentionInterface.register("oracle", _hiding(layer, hidden, list(skip)))
    config._attn_implementation = "oracle"
    try:
        for module in recurrent:
            module.forward = _on_rows(module.forward, seen)
        return whole_logits(vlm, prompt, answer)
    finally:
        config._attn_implementation = before
        for module in recurrent:
            del module.forward


def _hiding(layer: int, hidden: list[int], skip: list[int]) -> Any:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling + mask
        unseen = hidden if module.layer_idx >= layer else skip
        if unseen:
            own = torch.diagonal(scores, dim1=-2, dim2=-1).clone()
            scores[..., unseen] = torch.finfo(scores.dtype).min
            scores.diagonal(dim1=-2, dim2=-1).copy_(own)  # hidden rows need something to look at
        probabilities = scores.softmax(dim=-1)
        return torch.einsum("bhqk,bhkd->bqhd", probabilities, value), probabilities

    return attend


def _on_rows(forward: Any, rows: list[int]) -> Any:
    """A recurrence over some rows only; the others, which nobody reads, become zero."""

    def run(hidden_states: Tensor, **settings: Any) -> Tensor:
        settings.pop("attention_mask", None)
        output = torch.zeros_like(hidden_states)
        output[:, rows] = forward(hidden_states=hidden_states[:, rows], attention_mask=None, **settings)
        return output

    return run
