"""Tiny Qwen-VLs of four generations."""

from __future__ import annotations

from typing import Any

from sgl_engine.families.tiny.sizes import PATCH_SIZE, TinyOptions, randomize, text_settings
from sgl_engine.families.tiny.tokenizer import byte_tokenizer, chat_template

_IMAGE, _VIDEO, _BEGIN, _END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def build_qwen2_vl(options: TinyOptions) -> tuple[Any, Any]:
    """Rotary positions with three axes."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = _tokenizer()
    vision = {"depth": options.size.vision_layers, "embed_dim": 32, "hidden_size": options.size.hidden}
    config = Qwen2VLConfig(
        text_config=_text(options, tokenizer),
        vision_config={**vision, "mlp_ratio": 2, **_PATCHES},
        **_tokens(tokenizer),
    )
    return _finish(Qwen2VLForConditionalGeneration(config), Qwen2VLProcessor, tokenizer, options)


def build_qwen2_5_vl(options: TinyOptions) -> tuple[Any, Any]:
    """The same, with windows in the tower."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    tokenizer = _tokenizer()
    config = Qwen2_5_VLConfig(
        text_config=_text(options, tokenizer),
        vision_config={
            **_tower(options),
            "window_size": 4 * PATCH_SIZE,
            "fullatt_block_indexes": [options.size.vision_layers - 1],
        },
        **_tokens(tokenizer),
    )
    return _finish(Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor, tokenizer, options)


def build_qwen3_vl(options: TinyOptions) -> tuple[Any, Any]:
    """DeepStack: features of every tower layer, added after the decoder's first layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _tokenizer()
    config = Qwen3VLConfig(
        text_config=_text(options, tokenizer),
        vision_config={
            **_tower(options),
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(range(options.size.vision_layers)),
        },
        **_tokens(tokenizer),
    )
    return _finish(Qwen3VLForConditionalGeneration(config), Qwen3VLProcessor, tokenizer, options)


def build_qwen3_5(options: TinyOptions) -> tuple[Any, Any]:
    """Recurrent layers, and attention in every third, beginning with the second."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

    tokenizer = _tokenizer()
    kinds = [
        "full_attention" if layer % 3 == 1 else "linear_attention" for layer in range(options.size.layers)
    ]
    config = Qwen3_5Config(
        text_config={
            **_text(options, tokenizer),
            "head_dim": 16,
            "rope_parameters": {**_SECTIONS, "partial_rotary_factor": 0.5},
            "layer_types": kinds,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        vision_config={**_tower(options), "num_position_embeddings": 64},
        **_tokens(tokenizer),
    )
    return _finish(Qwen3_5ForConditionalGeneration(config), Qwen3VLProcessor, tokenizer, options)


_PATCHES = {"num_heads": 4, "patch_size": PATCH_SIZE, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _tower(options: TinyOptions) -> dict[str, Any]:
    return {
        **_PATCHES,
        "depth": options.size.vision_layers,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": options.size.hidden,
    }


def _text(options: TinyOptions, tokenizer: Any) -> dict[str, Any]:
    return {**text_settings(options, tokenizer), "rope_parameters": dict(_SECTIONS)}


def _tokenizer() -> Any:
    return byte_tokenizer(
        [_BEGIN, _END, _IMAGE, _VIDEO],
        {
            "image_token": _IMAGE,
            "video_token": _VIDEO,
            "vision_bos_token": _BEGIN,
            "vision_eos_token": _END,
        },
    )


def _tokens(tokenizer: Any) -> dict[str, Any]:
    names = {
        "image_token_id": _IMAGE,
        "video_token_id": _VIDEO,
        "vision_start_token_id": _BEGIN,
        "vision_end_token_id": _END,
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _finish(model: Any, processor: Any, tokenizer: Any, options: TinyOptions) -> tuple[Any, Any]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from sgl_engine.families.processors import image_only

    randomize(model)
    tile = (options.side_tokens * 2 * PATCH_SIZE) ** 2
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        merge_size=2,
        size={"shortest_edge": tile // 2, "longest_edge": tile * options.max_tiles},
    )
    return model, image_only(processor)(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=chat_template(f"{_BEGIN}{_IMAGE}{_END}"),
    )
