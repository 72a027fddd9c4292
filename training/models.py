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
from sgl_engine.demo.vocabulary import BARS, COLORS, FACTS, FIELDS, ITEMS
from sgl_engine.demo.vocabulary import SHAPES as SHAPE_WORDS
from training.packing import nearest_cells
from training.tokenizer import END, IMAGE, PAD

# width of tower and decoder, vision layers, text layers before growing, heads, key-value heads
SHAPES = {"small": (128, 3, 3, 2, 1), "large": (128, 6, 6, 2, 1)}


def build_model(
    name: str, tokenizer: PreTrainedTokenizerFast, *, patch: int = PATCH
) -> InternVLForConditionalGeneration:
    """A model with random weights: "small" or "large", before growing, for patches of this size."""
    width, vision_layers, text_layers, heads, kv_heads = SHAPES[name]
    vision = InternVLVisionConfig(
        hidden_size=width,
        num_hidden_layers=vision_layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        image_size=(SIZE, SIZE),
        patch_size=(patch, patch),
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
        image_seq_length=(SIZE // patch) ** 2,
        downsample_ratio=1.0,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    # Waves over rows and columns let attention find neighbouring patches from the first step on.
    with torch.no_grad():
        embeddings = model.model.vision_tower.embeddings
        embeddings.position_embeddings[0, 1:] = 0.5 * _waves(SIZE // patch, width)
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
    """Throwaway linear readers of what each visual token holds."""

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


def on_patches(state: dict[str, torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    """The same weights for patches of another size: kernel and position embeddings are interpolated."""
    kernel_name, positions_name = (
        f"model.vision_tower.embeddings.{name}"
        for name in ("patch_embeddings.projection.weight", "position_embeddings")
    )
    kernel, positions = state[kernel_name], state[positions_name]
    old, new = SIZE // kernel.shape[-1], SIZE // patch
    scaled = nn.functional.interpolate(kernel, size=(patch, patch), mode="bilinear", antialias=True)
    plane = positions[:, 1:].mT.reshape(1, -1, old, old)
    plane = nn.functional.interpolate(plane, size=(new, new), mode="bilinear")
    return (
        state
        | {
            kernel_name: scaled
            * (kernel.shape[-1] / patch) ** 2,  # as bright a patch gives as large an output
            positions_name: torch.cat([positions[:, :1], plane.flatten(2).mT], 1),
        }
    )


def copying_loss(features: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of visual tokens from those of a teacher with another grid, by its variance.

    Each token copies the teacher's token in which its centre lies.

    Args:
        features: float (pictures, patches, width).
        teacher: float (pictures, other number of patches, width).
    """
    side, other = (round(tokens.shape[1] ** 0.5) for tokens in (features, teacher))
    target = teacher[:, torch.from_numpy(nearest_cells(side, other))]
    return (features - target).square().mean() / target.var()


ALIGNED: dict[str, tuple[str, ...]] = {"label": ITEMS + FIELDS + BARS, "color": COLORS, "shape": SHAPE_WORDS}
"""Facts that are words, and the words of their classes 1, 2, ...; each word is one token."""


def alignment_loss(
    features: torch.Tensor, facts: torch.Tensor, embeddings: torch.Tensor, word_ids: dict[str, torch.Tensor]
) -> torch.Tensor:
    """How badly visual tokens point at the embeddings of the words that they hold.

    A question that names a word finds its patch by attention from the word's embedding. Where patches lie in
    the same directions as words, one alignment serves every word; otherwise each has to be found by chance.

    Args:
        features: float (pictures, patches, width), the projector's output.
        facts: int64 (pictures, patches, number of facts).
        embeddings: float (vocabulary, width), the text model's.
        word_ids: Token ids of the words of each fact in ``ALIGNED``.
    """
    normed = nn.functional.normalize(features, dim=-1)
    losses = []
    for fact, ids in word_ids.items():
        target = facts[..., list(FACTS).index(fact)]
        there = (target > 0) & (target <= len(ids))
        words = nn.functional.normalize(embeddings[ids], dim=-1)
        if there.any():
            losses.append(nn.functional.cross_entropy(10 * normed[there] @ words.T, target[there] - 1))
    return torch.stack(losses).mean()


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


def grow_both(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the large model from those of the small one: twice the layers in tower and decoder."""
    deeper = _deepen(state, ".encoder.layer.", ("attention.projection_layer", "mlp.fc2"))
    return _deepen(deeper, ".language_model.layers.", ("self_attn.o_proj", "mlp.down_proj"))


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
