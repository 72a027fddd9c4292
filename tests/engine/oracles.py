"""The slow, obvious way: whole sequences, eager attention, explicit masks, nothing cached, nothing reused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from sgl_engine import VLM
from sgl_engine.prompt.encoded import EncodedPrompt


@torch.no_grad()
def plain_logits(vlm: VLM, prompt: EncodedPrompt, answer: list[int]) -> Tensor:
    """Logits of every position of prompt + answer, from the model's own forward."""
    ids = torch.cat((prompt.input_ids, torch.tensor([answer], dtype=torch.int64)), dim=1)
    return vlm.model(input_ids=ids, pixel_values=prompt.inputs.get("pixel_values")).logits[0].float()


@torch.no_grad()
def attention_sum(vlm: VLM, prompt: EncodedPrompt, answer: list[int]) -> Tensor:
    """Sum of eager attention that each visual token receives from the rows that count, (V,)."""
    vlm.model.set_attn_implementation("eager")
    fed_back = answer[:-1]
    ids = torch.cat((prompt.input_ids, torch.tensor([fed_back], dtype=torch.int64)), dim=1)
    output = vlm.model(input_ids=ids, pixel_values=prompt.inputs["pixel_values"], output_attentions=True)
    vlm.model.set_attn_implementation("sdpa")
    visual = [i for i, token in enumerate(prompt.input_ids[0].tolist()) if token == vlm.config.image_token_id]
    total = torch.zeros(len(visual), dtype=torch.float64)
    for layer in output.attentions:  # (1, H, N, N)
        for row in range(visual[-1], ids.shape[1]):
            total += layer[0, :, row, visual].double().sum(dim=0)
    return total


@torch.no_grad()
def masked_logits(
    vlm: VLM, prompt: EncodedPrompt, answer: list[int], *, layer: int, keep: list[int]
) -> Tensor:
    """Logits of every position, where layers from `layer` on do not see prompt tokens outside `keep`.

    Rows of dropped tokens are computed as well; nobody reads them.
    """
    text = vlm.model.model.language_model
    ids = torch.cat((prompt.input_ids, torch.tensor([answer], dtype=torch.int64)), dim=1)
    hidden = vlm.model.get_input_embeddings()(ids)
    features = vlm.model.get_image_features(pixel_values=prompt.inputs["pixel_values"]).pooler_output
    hidden = hidden.masked_scatter((ids == vlm.config.image_token_id)[..., None], features)
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    rotation = text.rotary_emb(hidden, positions)
    hidden_from = [i for i in range(len(prompt)) if i not in set(keep)]
    for index, decoder_layer in enumerate(text.layers):
        visible = torch.ones(length, length).tril().bool()
        if index >= layer:
            visible[:, hidden_from] = False
            visible |= torch.eye(length).bool()  # dropped rows need something to look at
        mask = torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        hidden = decoder_layer(
            hidden, attention_mask=mask, position_embeddings=rotation, position_ids=positions
        )
    return vlm.model.lm_head(text.norm(hidden))[0].float()


@contextmanager
def exploding(module: torch.nn.Module) -> Iterator[None]:
    """Within the context, running `module` raises."""

    def explode(*_: Any) -> None:
        raise RuntimeError("in the middle")

    handle = module.register_forward_pre_hook(explode)
    try:
        yield
    finally:
        handle.remove()


def traces(vlm: VLM) -> dict[str, Any]:
    """Whatever a pass could leave behind on a model: hooks, attention settings, attributes.

    transformers adds hooks of its own to the vision tower on its first run, so a model must have run before.
    """
    found: dict[str, Any] = {}
    for name, module in vlm.model.named_modules():
        found[f"{name} hooks"] = (
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            len(module._forward_pre_hooks_with_kwargs),
        )
        found[f"{name} attributes"] = sorted(vars(module))
    for config in (vlm.config, vlm.config.text_config, vlm.config.vision_config):
        found[f"{type(config).__name__} attention"] = config._attn_implementation
    return found


def count_processed(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Image processors, as they process pictures."""
    kind, seen = vlm.processor.image_processor.__class__, list[object]()
    original = kind.preprocess

    def preprocess(self: Any, *given: Any, **settings: Any) -> Any:
        seen.append(self)
        return original(self, *given, **settings)

    monkeypatch.setattr(kind, "preprocess", preprocess)
    return seen
