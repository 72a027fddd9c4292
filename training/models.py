"""The two models of the bundled pair: read from a folder, made deeper, and run over packed pages."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from transformers import InternVLForConditionalGeneration

from training.attention import packed
from training.packing import Batch

BOUND = 8
"""Behind so many decoder layers, visual tokens can be asked what they belong to."""
SILENT = ("self_attn.o_proj", "mlp.down_proj")
"""What a new layer adds to its input goes through these; while they are zero it adds nothing."""


def deepen(model: InternVLForConditionalGeneration) -> InternVLForConditionalGeneration:
    """Double the decoder's depth without changing its function: a silent copy behind each layer.

    Behind, not before: what is left out after layer K = int(0.05 * 24) = 1 has then gone through a layer
    that works.
    """
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers *= 2
    config.text_config.layer_types = None
    config.text_config.__post_init__()
    deeper = InternVLForConditionalGeneration(config)
    state = {}
    for name, value in model.state_dict().items():
        before, layers, after = name.partition(".language_model.layers.")
        if not layers:
            state[name] = value
            continue
        index, _, rest = after.partition(".")
        state[f"{before}{layers}{2 * int(index)}.{rest}"] = value
        copied = torch.zeros_like(value) if rest.startswith(SILENT) else value.clone()
        state[f"{before}{layers}{2 * int(index) + 1}.{rest}"] = copied
    deeper.load_state_dict(state)
    return deeper


def visual_tokens(model: InternVLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """What tower and projector make of all tokens of each page, float (pages, tokens, width)."""
    features = model.model.get_image_features(batch.pixels, return_dict=True).pooler_output
    pages: torch.Tensor = features.reshape(len(batch.kept), -1, features.shape[-1])
    return pages


class Read(NamedTuple):
    """What the decoder makes of a batch.

    Attributes:
        logits: float (answer tokens, vocabulary), of every answer.
        labels: int64 (answer tokens,).
        bound: float (pages, tokens, width), of the visual tokens behind layer :data:`BOUND`.
        facts: int64 (pages, tokens, sorts), what these hold.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    bound: torch.Tensor
    facts: torch.Tensor


def answer_logits(
    model: InternVLForConditionalGeneration, batch: Batch, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (answer tokens, vocabulary) and labels (answer tokens,) of every answer of a batch."""
    return read(model, batch, features)[:2]


def read(model: InternVLForConditionalGeneration, batch: Batch, features: torch.Tensor) -> Read:
    """Runs the decoder.

    Of the visual tokens ``features`` (pages, tokens, width) the decoder sees those that the batch keeps, and
    behind layer ``after`` those that it leaves.
    """
    features = features.take_along_dim(batch.kept[..., None], dim=1)
    embedded = model.get_input_embeddings()(batch.ids)
    behind = embedded[:, batch.prefix - 1 :]
    rows = torch.cat([embedded[:, :2], features.to(embedded.dtype), behind], dim=1)
    decoder, positions, prefix = model.model.language_model, batch.positions, batch.prefix
    shown, bound, facts = batch.kept, rows[:, :0], batch.bound[:, :0]
    places = decoder.rotary_emb(rows, positions)
    for index, layer in enumerate(decoder.layers):
        if batch.left is not None and index == batch.after:
            prefix, columns, shown = batch.left.shape[1] + 3, _left_columns(batch), batch.left
            rows = rows.take_along_dim(columns[..., None], dim=1)
            positions = positions.take_along_dim(columns, dim=1)
            places = decoder.rotary_emb(rows, positions)
        with packed(prefix, batch.slots):
            rows = layer(rows, position_embeddings=places, position_ids=positions, use_cache=False)
        if index + 1 == BOUND:
            bound, facts = rows[:, 2 : prefix - 1], batch.bound.take_along_dim(shown[..., None], dim=1)
    asked = batch.labels >= 0
    return Read(model.lm_head(decoder.norm(rows)[:, prefix:][asked]), batch.labels[asked], bound, facts)


def _left_columns(batch: Batch) -> torch.Tensor:
    """Which tokens of each row go on behind layer ``after``, int64 (rows, S): all text, and what is left."""
    count, prefix = len(batch.ids), batch.prefix
    first = torch.arange(2).expand(count, -1)
    last = torch.arange(prefix - 1, batch.ids.shape[1]).expand(count, -1)
    kept = torch.searchsorted(batch.kept, batch.left)
    return torch.cat([first, kept + 2, last], dim=1)


def towers(model: InternVLForConditionalGeneration) -> list[nn.Parameter]:
    """Parameters of tower and projector."""
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    return [parameter for part in parts for parameter in part.parameters()]
