"""Configurations of any architecture, made tiny: every size that the default names gets a small value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from sgl_engine.families.tiny.tokenizer import byte_tokenizer

IMAGE, VIDEO, BEGIN, END, AUDIO = "<image>", "<video>", "<boi>", "<eoi>", "<audio>"
TOKENIZER = byte_tokenizer([IMAGE, VIDEO, BEGIN, END, AUDIO], {"image_token": IMAGE, "video_token": VIDEO})
VOCABULARY = (len(TOKENIZER) // 16 + 2) * 16
LAYERS = 4
LEAVE_OUT = object()
"""As a value: the setting keeps its default."""


def token(text: str) -> int:
    """The id of a special token."""
    return int(TOKENIZER.convert_tokens_to_ids(text))


TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "eos_token_id": TOKENIZER.eos_token_id,
    "bos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    # Recurrences, windows, indexers.
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "sliding_window": 32,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
}

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "patch_size": 4,
    "image_size": 32,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "in_channels": 3,
    "num_channels": 3,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "vision_use_head": False,
    "projection_dim": 32,
    "mlp_ratio": 2,
}

TOKENS: dict[str, Any] = {
    "image_token_id": token(IMAGE),
    "image_token_index": token(IMAGE),
    "video_token_id": token(VIDEO),
    "video_token_index": token(VIDEO),
    "vision_start_token_id": token(BEGIN),
    "vision_end_token_id": token(END),
    "image_start_token_id": token(BEGIN),
    "image_end_token_id": token(END),
    "boi_token_id": token(BEGIN),
    "eoi_token_id": token(END),
    "audio_token_id": token(AUDIO),
    "video_start_token_id": token(BEGIN),
    "video_end_token_id": token(END),
    "tie_word_embeddings": False,
}

MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
HALF_MROPE: dict[str, Any] = {**MROPE, "partial_rotary_factor": 0.5}


def default(name: str) -> Any:
    """The architecture's configuration, as transformers makes it of nothing."""
    return CONFIG_MAPPING[name]()


def shrunk(config: Any, sizes: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``config``'s class: those of ``sizes`` that it knows, then ``changes``."""
    known = {name: value for name, value in sizes.items() if _has(config, name)}
    for name in ("patch_size", "image_size"):
        if isinstance(getattr(config, name, None), list | tuple) and name in known:
            known[name] = [known[name]] * len(getattr(config, name))
    return {name: value for name, value in {**known, **changes}.items() if value is not LEAVE_OUT}


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # noqa: BLE001  # a setting that differs between layers cannot be read as one
        return True


def text_settings(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny decoder's, in which every kind of layer of the default occurs."""
    merged: dict[str, Any] = {}
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    if kinds:
        merged["layer_types"] = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    rotary = getattr(config, "rope_parameters", None)
    if isinstance(rotary, dict):
        merged["rope_parameters"] = {
            **rotary,
            **({"mrope_section": [2, 1, 1]} if "mrope_section" in rotary else {}),
        }
    merged |= changes
    slides = any("sliding" in str(kind) for kind in merged.get("layer_types") or ())
    if "sliding_window" not in merged and not slides:
        merged["sliding_window"] = LEAVE_OUT  # a window that no layer uses would still shape the cache
    return shrunk(config, TEXT, merged)


def build(name: str, text: Mapping[str, Any] = {}, vision: Mapping[str, Any] = {}, **changes: Any) -> Any:
    """A tiny model of an architecture, its weights as transformers starts them."""
    whole = default(name)
    inner = text_settings(whole.text_config, text)
    tower = getattr(whole, "vision_config", None)
    if tower is not None:
        tower = type(tower)(**shrunk(tower, VISION, vision))
    tokens = {key: value for key, value in TOKENS.items() if hasattr(whole, key)}
    for other, own in getattr(type(whole), "attribute_map", {}).items():
        if own in {*tokens, *changes}:
            tokens.pop(other, None)  # another name of a setting that is given
    parts = {"text_config": type(whole.text_config)(**inner), "vision_config": tower}
    config = type(whole)(**{**parts, **tokens, **changes})
    return getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])(config)


def randomize(model: Any) -> None:
    """Weights that make attention neither flat nor sharp, and every position and image matter."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.ndim > 2 and any(part in name for part in ("expert", "gate_up", "down_proj")):
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 / max(parameter[0].numel(), 1) ** 0.5)
        elif parameter.ndim == 1 and not any(part in name for part in ("norm", "ln", "A_log", "dt_bias")):
            torch.nn.init.normal_(parameter, std=0.3)  # biases, sinks
    torch.nn.init.normal_(model.get_input_embeddings().weight)
