"""Architectures that cannot be run exactly, in words that tell a user why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ENCODER = "it is an encoder and a decoder: what it sees is no part of its prompt, so nothing can be pruned"
_CROSS = "its decoder looks at pictures by cross-attention: there are no visual tokens in its prompt to prune"
_QUERIES = "it turns every picture into a few dozen queries, in a prompt part of its own: nothing to prune"
_DISCRETE = "it writes pictures as words of its vocabulary, which no other model's map fits"
_MASK = "it marks pictures by a mask of positions instead of an image token"
_INDEXER = "an indexer chooses the keys that its tokens see, so pruning would change what is chosen"
_MIXED = "its layers mix convolutions or recurrences into attention, in a way that pruning does not know"

REFUSED: Mapping[str, str] = {
    "apertus1p5": _DISCRETE,
    "blip": _ENCODER,
    "blip-2": _QUERIES,
    "chameleon": _DISCRETE,
    "diffusion_gemma": "it writes blocks by diffusion, not token by token",
    "dots3_note": _INDEXER,
    "emu3": _DISCRETE,
    "evolla": "it reads proteins, not pictures",
    "florence2": _ENCODER,
    "fuyu": "it has no vision tower: patches go into the decoder as they are",
    "gemma3n": "layers of its decoder share keys and values, and mix several streams",
    "gemma4_unified": "it has no vision tower: patches go into the decoder as they are",
    "git": "it puts pictures in front of the prompt inside the model, where they cannot be pruned",
    "glm5_next": _INDEXER,
    "hy_v4_vl": _INDEXER,
    "idefics": _CROSS,
    "inkling2": _MIXED,
    "inkling2_loop": _MIXED,
    "inkling_mm_model": _MIXED,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": _MASK,
    "kosmos-2.5": _MASK,
    "mistral4": "it is a text model: it sees no pictures",
    "mistral_large4": _INDEXER,
    "mllama": _CROSS,
    "nemotron_h_omni": "some layers of its decoder have neither attention nor a state of their own",
    "pi0": "it writes robot actions, not text",
    "pix2struct": _ENCODER,
    "pp_formulanet": _ENCODER,
    "qwen4_exp": _INDEXER,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "unlimited_ocr": "a window of its decoder always shows the whole picture, which pruning does not know",
    "vision-encoder-decoder": _ENCODER,
}
"""``model_type`` -> why."""


def why_refused(config: PreTrainedConfig) -> str | None:
    """What speaks against an architecture, before its weights are read; None where nothing is known to."""
    known = REFUSED.get(config.model_type)
    if known is not None:
        return known
    if getattr(config, "is_encoder_decoder", False):
        return _ENCODER
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None):
        return _CROSS
    if getattr(text, "num_kv_shared_layers", None) and config.model_type != "gemma4":
        return "layers of its decoder share keys and values, which pruning would set apart"
    return None


FOREIGN_FORMATS: Mapping[str, str] = {
    "internvl_chat": 'Use the repository in transformers format: the same name, ending in "-hf".',
    "llava_llama": "Use the repository in transformers format: llava-hf/...",
    "llava_qwen": "Use the repository in transformers format: llava-hf/...",
    "minicpmv": "Use a MiniCPM-V repository in transformers format (4.6 or later).",
    "ovis": "Use an Ovis repository in transformers format, whose model_type is ovis2.",
}
"""``model_type`` of repositories that only run with code of their own -> what to use instead."""
