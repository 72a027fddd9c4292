"""How large tiny models are, and their random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PATCH_SIZE = 4


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vision_layers: int


TINY_SIZES = {
    "small": TinySize(layers=3, hidden=32, heads=4, kv_heads=2, vision_layers=1),
    "large": TinySize(layers=6, hidden=48, heads=6, kv_heads=2, vision_layers=2),
}


@dataclass(frozen=True)
class TinyOptions:
    """What a tiny model is asked for.

    Attributes:
        size: Depth and width.
        max_tiles: Most tiles, or tiles' worth of tokens, that one image becomes.
        side_tokens: A tile is side_tokens x side_tokens visual tokens.
        context_tokens: Longest sequence.
    """

    size: TinySize
    max_tiles: int
    side_tokens: int
    context_tokens: int


def text_settings(options: TinyOptions, tokenizer: Any) -> dict[str, Any]:
    """What the configurations of most decoders take."""
    size = options.size
    return {
        "vocab_size": padded_vocabulary(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.hidden // size.heads,
        "max_position_embeddings": options.context_tokens,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }


def padded_vocabulary(tokenizer: Any) -> int:
    """A few rows more than there are tokens, as real models have."""
    return (len(tokenizer) // 16 + 1) * 16


def randomize(model: Any) -> None:
    """Weights that make attention neither flat nor sharp, and every position and image matter.

    transformers starts some at zero or close to it, which would hide faults.
    """
    import torch

    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
