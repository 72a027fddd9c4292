"""Tiny models for tests of code that uses this package: real architectures, random weights, no downloads.

from sgl_engine import Request, SGLEngine
from sgl_engine.testing import tiny_vlm

engine = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))
"""

from __future__ import annotations

from typing import Literal

from sgl_engine.errors import ConfigError
from sgl_engine.families.tiny import (
    DEFAULT_DECODER,
    DEFAULT_FAMILY,
    TINY_FAMILIES,
    TINY_SIZES,
    TinyDecoder,
    build_tiny,
)
from sgl_engine.families.tiny.sizes import TinyOptions
from sgl_engine.vlm import VLM


def tiny_vlm(
    family: str = DEFAULT_FAMILY,
    *,
    size: Literal["small", "large"] = "small",
    decoder: TinyDecoder = DEFAULT_DECODER,
    max_tiles: int = 1,
    side_tokens: int = 4,
    seed: int = 0,
    context_tokens: int = 2048,
) -> VLM:
    """A VLM of 60 to 180 thousand parameters, float32, on the CPU. Its answers are gibberish, and repeatable.

    Args:
        family: Architecture family, by its ``config.model_type``.
        size: "small" has 3 decoder layers, "large" 6 wider ones; both see the same grid.
        decoder: Which text model, for the default family, whose checkpoints come with several.
        max_tiles: 1 makes one tile of every image; more cuts large images into tiles, as the family does it,
            or makes their one grid larger.
        side_tokens: A tile is side_tokens x side_tokens visual tokens.
        seed: Of the weights; the global random state is left as it was.
        context_tokens: Longest sequence.

    Raises:
        ConfigError: There is no tiny model of this family.
    """
    if family not in TINY_FAMILIES:
        raise ConfigError(
            f"There is no tiny model of the family {family!r}.",
            remedy=f"Use one of {', '.join(TINY_FAMILIES)}.",
        )
    options = TinyOptions(
        size=TINY_SIZES[size], max_tiles=max_tiles, side_tokens=side_tokens, context_tokens=context_tokens
    )
    model, processor = build_tiny(family, options, decoder=decoder, seed=seed)
    return VLM(model, processor, name=f"tiny-{family}-{size}")
