"""What the model itself says: whole sequences, eager attention, nothing cached, nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sgl_engine import VLM
from sgl_engine.prompt.encoded import EncodedPrompt

RECURRENT = ("linear_attn", "conv", "mamba")
_TOKEN_KINDS = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


@torch.no_grad()
def own_logits(vlm: VLM, prompt: EncodedPrompt, answer: Sequence[int]) -> Tensor:
    """Logits of the prompt's last token and of each answer token, float32 (T + 1, vocab)."""
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat(
        (prompt.input_ids, torch.tensor([list(answer)], dtype=torch.int64)), dim=1
    )
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in _TOKEN_KINDS:
        if name in inputs:  # an answer is text
            kind = vlm.family.kind_of_answers
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(answer)), value=kind)
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(vlm.model.dtype)
    logits = vlm.family.whole_logits(vlm.model, inputs)
    return logits[0, len(prompt) - 1 :].float()


@contextmanager
def eager(vlm: VLM) -> Iterator[None]:
    """The whole model attends as its own file writes it out."""
    before = vlm.text_model.config._attn_implementation  # noqa: SLF001  # there is no public getter
    vlm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        vlm.model.set_attn_implementation(before)


def masked_logits(
    vlm: VLM, prompt: EncodedPrompt, answer: Sequence[int], *, layer: int, keep: Sequence[int]
) -> Tensor:
    """``own_logits``, where layers from ``layer`` on do not see prompt tokens outside ``keep``.

    No mask hides a token from a recurrence, so recurrent layers run over the other rows.
    """
    hidden = sorted(set(range(len(prompt))) - set(keep))
    rows = [*keep, *range(len(prompt), len(prompt) + len(answer))]

    def hide(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if mask is None or mask.ndim != 4:
            raise AssertionError("eager attention is given no mask of rows and keys")
        lowest = torch.finfo(torch.float32).min
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, lowest)
        lowest = torch.finfo(mask.dtype).min
        mask = mask.clone()
        own = mask.diagonal(dim1=-2, dim2=-1).clone()
        mask[..., hidden] = lowest
        mask.diagonal(dim1=-2, dim2=-1).copy_(own)  # a row that sees nothing would be NaN
        return args, {**kwargs, "attention_mask": mask}

    with ExitStack() as undo, eager(vlm):
        for each in list(vlm.family.decoder_layers(vlm.model))[layer:]:
            mixers = [getattr(each, name) for name in RECURRENT if hasattr(each, name)]
            if mixers:
                mixers[0].forward = _on_rows(mixers[0].forward, rows)
                undo.callback(delattr, mixers[0], "forward")
            else:
                undo.callback(each.register_forward_pre_hook(hide, with_kwargs=True).remove)
        return own_logits(vlm, prompt, answer)


def _on_rows(forward: Any, rows: list[int]) -> Any:
    """A recurrence over some rows only; the others, which nobody reads, become zero."""

    def run(hidden_states: Tensor, *args: Any, **settings: Any) -> Tensor:
        settings = {**settings, "attention_mask": None} if "attention_mask" in settings else settings
        output = torch.zeros_like(hidden_states)
        output[:, rows] = forward(hidden_states[:, rows], *args, **settings)
        return output

    return run


def received_attention(vlm: VLM, prompt: EncodedPrompt) -> dict[int, Tensor]:
    """Per layer, eager attention that visual tokens receive from the last on, heads added up: (V,)."""
    visual, found = list(prompt.visual_positions), dict[int, Tensor]()

    def add(layer: int) -> Any:
        def look(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
                paid = output[1]
                if paid.ndim == 4:
                    found[layer] = paid[0, :, visual[-1] :][..., visual].float().sum(dim=(0, 1))

        return look

    with ExitStack() as undo, eager(vlm):
        for index, layer in enumerate(vlm.family.decoder_layers(vlm.model)):
            for module in layer.modules():
                if type(module).__name__.endswith("Attention"):
                    undo.callback(module.register_forward_hook(add(index)).remove)
                    break
        own_logits(vlm, prompt, [])
    return found
