"""Tiny models of each family, with random weights, built offline in well under a second; for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sgl_engine.families.tiny import internvl, llava, others, qwen
from sgl_engine.families.tiny.internvl import DEFAULT_DECODER, TinyDecoder
from sgl_engine.families.tiny.sizes import TINY_SIZES, TinyOptions, TinySize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "DEFAULT_DECODER",
    "DEFAULT_FAMILY",
    "TINY_FAMILIES",
    "TINY_SIZES",
    "TinyDecoder",
    "TinyOptions",
    "TinySize",
    "build_tiny",
]

DEFAULT_FAMILY = "internvl"
_BUILDERS: Mapping[str, Callable[[TinyOptions], tuple[Any, Any]]] = {
    "internvl": internvl.build_internvl,
    "gemma3": others.build_gemma3,
    "idefics3": others.build_idefics3,
    "llava": llava.build_llava,
    "llava_next": llava.build_llava_next,
    "llava_onevision": llava.build_llava_onevision,
    "mistral3": others.build_mistral3,
    "qwen2_5_vl": qwen.build_qwen2_5_vl,
    "qwen2_vl": qwen.build_qwen2_vl,
    "qwen3_5": qwen.build_qwen3_5,
    "qwen3_vl": qwen.build_qwen3_vl,
    "smolvlm": others.build_smolvlm,
}
TINY_FAMILIES = tuple(_BUILDERS)


def build_tiny(
    family: str, options: TinyOptions, *, decoder: TinyDecoder, seed: int
) -> tuple[PreTrainedModel, Any]:
    """A model in float32 and its processor.

    Args:
        family: One of ``TINY_FAMILIES``.
        options: Sizes.
        decoder: Which text model, where the family has a choice here.
        seed: Of the weights; the global random state is left as it was.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == DEFAULT_FAMILY:
            model, processor = internvl.build_internvl(options, decoder)
        else:
            model, processor = _BUILDERS[family](options)
    model = model.float()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor
