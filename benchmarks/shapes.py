"""Pairs of models at realistic sizes, random weights, made in memory: for time, never for answers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from sgl_engine.testing import tiny_vlm

if TYPE_CHECKING:
    import torch

_POOL = 2**24  # random values that weights are filled with, over and over
_CONTEXT_TOKENS = 8192


@dataclass(frozen=True)
class Decoder:
    """Sizes of a Qwen2 decoder; heads are ``head_dim`` wide, and the LM head shares the embeddings."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool = True


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision tower of square patches, four of which become one visual token."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    patch: int = 14


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        family: "internvl": tiles of ``tile_tokens`` visual tokens; "qwen2_5_vl": one grid per picture.
        decoder: Its decoder.
        tower: Its tower.
        tile_tokens: Visual tokens of one tile, a square number; for "qwen2_5_vl" only a unit of size.
    """

    family: Literal["internvl", "qwen2_5_vl"]
    decoder: Decoder
    tower: Tower
    tile_tokens: int = 256


@dataclass(frozen=True)
class Pair:
    """A small and a large model of one family, which cut pictures alike."""

    small: Shape
    large: Shape
    note: str


_INTERNVIT = Tower(layers=24, hidden=1024, heads=16, intermediate=4096)
_QWEN_VIT = Tower(layers=32, hidden=1280, heads=16, intermediate=3420)
PAIRS = {
    "cpu": Pair(
        Shape("internvl", Decoder(16, 768, 12, 2, 2816, 49_152), Tower(12, 384, 6, 1536)),
        Shape("internvl", Decoder(28, 1536, 12, 2, 8960, 49_152), Tower(12, 768, 12, 3072)),
        "0.19B -> 1.5B: the layers of Qwen2-1.5B with a ViT-B, and a small one with a ViT-S",
    ),
    "internvl3-1b-8b": Pair(
        Shape("internvl", Decoder(24, 896, 14, 2, 4864, 151_674), _INTERNVIT),
        Shape("internvl", Decoder(28, 3584, 28, 4, 18_944, 151_674, tied=False), _INTERNVIT),
        "InternVL3-1B -> InternVL3-8B",
    ),
    "qwen2.5-vl-3b-32b": Pair(
        Shape("qwen2_5_vl", Decoder(36, 2048, 16, 2, 11_008, 151_936), _QWEN_VIT),
        Shape(
            "qwen2_5_vl",
            Decoder(64, 5120, 40, 8, 27_648, 152_064, tied=False),
            replace(_QWEN_VIT, intermediate=3456),
        ),
        "Qwen2.5-VL-3B -> Qwen2.5-VL-32B",
    ),
    "tiny": Pair(
        Shape("internvl", Decoder(2, 32, 2, 1, 64, 512), Tower(1, 32, 2, 64, patch=4), tile_tokens=16),
        Shape("internvl", Decoder(5, 48, 2, 1, 96, 512), Tower(1, 32, 2, 64, patch=4), tile_tokens=16),
        "too small to say anything; for tests of this benchmark",
    ),
}
"""Decoders are (layers, width, heads, key-value heads, MLP width, vocabulary)."""


def build(shape: Shape, *, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Any:
    """A model whose answers never end."""
    import torch

    tiny = tiny_vlm(shape.family)
    config = (_internvl if shape.family == "internvl" else _qwen)(shape, tiny.config)
    with torch.device(device):
        model = type(tiny.model)._from_config(config, dtype=dtype)  # noqa: SLF001  # the only one that takes a dtype
    _fill(model, seed)
    # The last row of the embeddings is all zeros, which keeps this id from being chosen.
    model.generation_config.eos_token_id = shape.decoder.vocab - 1
    model.generation_config.pad_token_id = shape.decoder.vocab - 1
    return model


def processor(shape: Shape, tokens: int) -> Any:
    """One that makes ``tokens`` visual tokens of a ``picture``."""
    tiles = tokens // shape.tile_tokens
    if tokens % shape.tile_tokens or tiles < 1 or (shape.family == "internvl" and tiles == 2):
        raise SystemExit(f"{tokens} visual tokens are not one tile of {shape.tile_tokens}, or three or more.")
    made = tiny_vlm(shape.family, max_tiles=max(2, tiles), side_tokens=_side(shape)).processor
    images, edge = made.image_processor, 2 * _side(shape) * shape.tower.patch
    if shape.family == "internvl":
        images.size = type(images.size)(height=edge, width=edge)
        images.min_patches = images.max_patches = max(1, tiles - 1)  # beside the thumbnail
    else:
        images.patch_size = shape.tower.patch
        images.size = type(images.size)(shortest_edge=tiles * edge**2 // 2, longest_edge=tiles * edge**2)
    _name_tokens(made.tokenizer, shape.decoder.vocab)
    return made


def _side(shape: Shape) -> int:
    """Visual tokens along an edge of a tile."""
    return math.isqrt(shape.tile_tokens)


def _text(shape: Shape, known: Any, **more: Any) -> dict[str, Any]:
    decoder = shape.decoder
    return {
        **known.text_config.to_dict(),
        "vocab_size": decoder.vocab,
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.intermediate,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "max_position_embeddings": _CONTEXT_TOKENS,
        "max_window_layers": decoder.layers,
        "tie_word_embeddings": decoder.tied,
        "layer_types": None,
        **more,
    }


def _internvl(shape: Shape, known: Any) -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    tower, edge = shape.tower, 2 * _side(shape) * shape.tower.patch
    text = _text(shape, known)
    del text["head_dim"]
    return InternVLConfig(
        text_config=Qwen2Config(**text),
        vision_config=InternVLVisionConfig(
            hidden_size=tower.hidden,
            intermediate_size=tower.intermediate,
            num_hidden_layers=tower.layers,
            num_attention_heads=tower.heads,
            image_size=(edge, edge),
            patch_size=(tower.patch, tower.patch),
        ),
        image_token_id=known.image_token_id,
        image_seq_length=shape.tile_tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=shape.decoder.tied,
    )


def _qwen(shape: Shape, known: Any) -> Any:
    decoder, tower = shape.decoder, shape.tower
    head = decoder.hidden // decoder.heads
    sections = {**known.text_config.rope_parameters, "mrope_section": [head // 8, *[3 * head // 16] * 2]}
    vision = {
        **known.vision_config.to_dict(),
        "depth": tower.layers,
        "hidden_size": tower.hidden,
        "num_heads": tower.heads,
        "intermediate_size": tower.intermediate,
        "out_hidden_size": decoder.hidden,
        "patch_size": tower.patch,
        "window_size": 8 * tower.patch,
        "fullatt_block_indexes": list(range(tower.layers // 4 - 1, tower.layers, tower.layers // 4)),
    }
    return type(known)(
        **{name: value for name, value in known.to_dict().items() if name.endswith("_token_id")},
        text_config=_text(shape, known, head_dim=head, rope_parameters=sections),
        vision_config=vision,
        tie_word_embeddings=decoder.tied,
    )


def _fill(model: Any, seed: int) -> None:
    """Random matrices, as wide as keeps activations about as large as they were; norms and biases stay."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(_POOL, generator=generator).to(model.dtype).to(model.device)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        flat = parameter.data.view(-1)
        for start in range(0, flat.numel(), _POOL):
            part = flat[start : start + _POOL]
            part.copy_(pool[: part.numel()])
        flat.mul_(0.7 / parameter[0].numel() ** 0.5)
    model.get_output_embeddings().weight.data[-1] = 0


def _name_tokens(tokenizer: Any, vocab: int) -> None:
    """Gives every id a text, so that reading an answer costs what it costs with a real vocabulary."""
    from tokenizers import Tokenizer

    written = json.loads(tokenizer.backend_tokenizer.to_str())
    written["model"]["vocab"] |= tokenizer.get_vocab()  # added tokens keep their ids only if they are in it
    written["model"]["vocab"] |= {f"\u0120{number:x}": number for number in range(len(tokenizer), vocab)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))  # noqa: SLF001  # no public setter


def picture(shape: Shape, tokens: int, number: int) -> Image.Image:
    """Noise that becomes ``tokens`` visual tokens, and is the same picture for no two numbers."""
    side = 2 * _side(shape) * shape.tower.patch
    tiles = tokens // shape.tile_tokens
    across = max(1, tiles - 1) if shape.family == "internvl" else tiles  # one is the thumbnail
    pixels = np.random.default_rng(number).integers(0, 256, (side, side * across, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
