"""The two models of the bundled pair: configurations, dense heads, growing in depth."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.internvl import InternVLVisionConfig

from sgl_engine.demo.drawing import PATCH, SIZE
from sgl_engine.demo.vocabulary import FACTS
from training.tokenizer import END, IMAGE, PAD

VISION_WIDTH = 128
# vision layers, then width, layers, heads and key-value heads of the text model, before growing
SHAPES = {"small": (3, 128, 3, 2, 1), "large": (6, 192, 5, 4, 2)}


def build_model(name: str, tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    """A model with random weights: "small" or "large", before growing."""
    vision_layers, width, text_layers, heads, kv_heads = SHAPES[name]
    vision = InternVLVisionConfig(
        hidden_size=VISION_WIDTH,
        num_hidden_layers=vision_layers,
        num_attention_heads=VISION_WIDTH // 64,
        intermediate_size=4 * VISION_WIDTH,
        image_size=(SIZE, SIZE),
        patch_size=(PATCH, PATCH),
        layer_scale_init_value=1.0,
    )
    text = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=width,
        intermediate_size=int(width * 2.75) // 32 * 32,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIZE // PATCH) ** 2,
        downsample_ratio=1.0,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    # Waves over rows and columns let attention find neighbouring patches from the first step on.
    with torch.no_grad():
        embeddings = model.model.vision_tower.embeddings
        embeddings.position_embeddings[0, 1:] = 0.5 * _waves(SIZE // PATCH, VISION_WIDTH)
        embeddings.cls_token.normal_(std=0.5)
    return model


def _waves(side: int, width: int) -> torch.Tensor:
    """Sine and cosine of row and column at geometric wavelengths, float32 (side * side, width)."""
    angles = (
        torch.arange(side)[:, None]
        * torch.pi
        / torch.logspace(0, torch.log10(torch.tensor(2.0 * side)), width // 4)
    )
    axis = torch.cat([angles.sin(), angles.cos()], -1)
    half = width // 2
    rows, columns = axis[:, None].expand(side, side, half), axis[None].expand(side, side, half)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


class DenseHeads(nn.Module):
    """Throwaway linear readers of what each visual token holds (demo recipe, stage 1)."""

    def __init__(self, width: int) -> None:
        """One linear map for all facts; ``width`` is that of the projector's output."""
        super().__init__()
        self.sizes = list(FACTS.values())
        # Reading whole words and values takes several patches together: what is learnt last weighs most.
        heavy = [2.5 if name.startswith(("label", "value")) else 1.0 for name in FACTS]
        self.weights = torch.tensor(heavy) / sum(heavy)
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, sum(self.sizes))

    def forward(self, features: torch.Tensor, facts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and accuracy on patches that hold something, per fact.

        Args:
            features: float (pictures, patches, width).
            facts: int64 (pictures, patches, number of facts), 0 where nothing is there.
        """
        logits = self.read(self.norm(features)).split(self.sizes, dim=-1)
        losses, hits = [], []
        for index, scores in enumerate(logits):
            target = facts[..., index].flatten()
            there = target > 0
            # Most patches hold nothing: half of the loss looks at those that do.
            every = nn.functional.cross_entropy(scores.flatten(0, 1), target, reduction="none")
            count = there.sum().clamp(min=1)
            losses.append((every * there).sum() / count + 0.5 * (every * ~there).mean())
            hits.append(((scores.flatten(0, 1).argmax(-1) == target) & there).sum() / count)
        return torch.stack(losses) @ self.weights.to(features.device), torch.stack(hits)


def grow(model: InternVLForConditionalGeneration) -> InternVLForConditionalGeneration:
    """Double the decoder's depth without changing its function.

    Before each layer stands a copy of it whose two output projections are zero, so that it adds nothing yet.
    """
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers *= 2
    config.text_config.layer_types = None
    config.text_config.__post_init__()
    grown = InternVLForConditionalGeneration(config)
    silent = ("self_attn.o_proj", "mlp.down_proj")
    grown.load_state_dict(_deepen(model.state_dict(), ".language_model.layers.", silent))
    return grown


def adopt_vision(model: InternVLForConditionalGeneration, state: dict[str, torch.Tensor]) -> None:
    """Start the vision tower from one with as many layers, or half as many: its function is unchanged."""
    prefix = "model.vision_tower."
    tower = {name: value for name, value in state.items() if name.startswith(prefix)}
    silent = ("attention.projection_layer", "mlp.fc2")
    deeper = tower if len(tower) == len(model.model.vision_tower.state_dict()) else None
    deeper = deeper or _deepen(tower, ".encoder.layer.", silent)
    model.model.vision_tower.load_state_dict(
        {name.removeprefix(prefix): value for name, value in deeper.items()}
    )


def _deepen(state: dict[str, torch.Tensor], layers: str, silent: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Weights of twice as many layers: before each one a copy of it whose ``silent`` projections are zero."""
    deeper = {}
    for name, value in state.items():
        if layers not in name:
            deeper[name] = value
            continue
        before, after = name.split(layers)
        index, rest = after.split(".", 1)
        deeper[f"{before}{layers}{2 * int(index) + 1}.{rest}"] = value
        copied = torch.zeros_like(value) if rest.startswith(silent) else value.clone()
        deeper[f"{before}{layers}{2 * int(index)}.{rest}"] = copied
    return deeper
