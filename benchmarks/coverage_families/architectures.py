"""Tiny models of all image-text architectures: a recipe for each, by its ``model_type``.

Where a recipe says nothing, the default configuration is shrunk as it is; what a real checkpoint sets apart
from the default, and what the default lacks to run at all, is set here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionConfig

from benchmarks.coverage_families.pictures import (
    CountingProcessor,
    Inputs,
    grid,
    kinds,
    patch_rows,
    square,
)
from benchmarks.coverage_families.sizes import (
    AUDIO,
    BEGIN,
    END,
    HALF_MROPE,
    IMAGE,
    LEAVE_OUT,
    MROPE,
    TOKENIZER,
    VIDEO,
    VISION,
    VOCABULARY,
    build,
    shrunk,
    token,
)

Built: TypeAlias = tuple[Any, CountingProcessor]
Recipe: TypeAlias = Callable[[], Built]
WRAPPED = BEGIN + IMAGE + END


def of_grids(
    name: str,
    text: Mapping[str, Any] = {},
    vision: Mapping[str, Any] = {},
    *,
    temporal: int = 2,
    as_pictures: bool = False,
    more: Any = None,
    also: Mapping[str, Tensor] = {},
    **changes: Any,
) -> Recipe:
    """A picture is one grid of patches of any size."""

    def recipe() -> Built:
        model, patches = build(name, text, vision, **changes), grid(temporal, as_pictures=as_pictures)

        def one(picture: Image.Image) -> Inputs:
            return {**patches(picture), **also}

        return model, CountingProcessor(model, one, wrap=WRAPPED, more=more)

    return recipe


def of_squares(
    name: str,
    text: Mapping[str, Any] = {},
    vision: Mapping[str, Any] = {},
    *,
    reshape: Callable[[Tensor], Tensor] = lambda values: values,
    also: Mapping[str, Tensor] = {},
    wrap: str = IMAGE,
    more: Any = None,
    **changes: Any,
) -> Recipe:
    """A picture is one square."""

    def recipe() -> Built:
        model, pixels = build(name, text, vision, **changes), square()

        def one(picture: Image.Image) -> Inputs:
            return {"pixel_values": reshape(pixels(picture)["pixel_values"]), **also}

        return model, CountingProcessor(model, one, wrap=wrap, more=more)

    return recipe


def of_patch_rows(
    make: Callable[[], Any], also: Mapping[str, Tensor], *, more: Any = None, wrap: str = IMAGE
) -> Recipe:
    """A picture is a padded sequence of patches, with a table that says where each stands."""

    def recipe() -> Built:
        model = make()

        def one(picture: Image.Image) -> Inputs:
            return {"pixel_values": patch_rows(picture), **also}

        return model, CountingProcessor(model, one, wrap=wrap, more=more)

    return recipe


def of_packed(name: str, text: Mapping[str, Any], *, more: Any = None, **changes: Any) -> Recipe:
    """A picture is a strip of patches, (1, 3, patch, N * patch), beside its grid."""

    def recipe() -> Built:
        model = build(name, text, {"window_kernel_size": (2, 2), "insert_layer_id": 0}, **changes)

        def one(picture: Image.Image) -> Inputs:
            rows = patch_rows(picture).reshape(64, 4, 4, 3)
            strip = rows.permute(3, 1, 0, 2).reshape(1, 3, 4, 256)
            return {"pixel_values": strip, "target_sizes": torch.tensor([[8, 8]])}

        return model, CountingProcessor(model, one, wrap=WRAPPED, more=more, joined={"pixel_values": -1})

    return recipe


def of_pooled(name: str, text: Mapping[str, Any], vision: Mapping[str, Any], **changes: Any) -> Recipe:
    """A picture is patches, and a table that says which of them each token is made of."""

    def recipe() -> Built:
        model = build(name, text, vision, **changes)
        table = torch.arange(64).reshape(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 4)
        grids = torch.tensor([[2, 4, 2, 4]])

        def one(picture: Image.Image) -> Inputs:
            return {"pixel_values": patch_rows(picture), "image_token_pooling": table, "image_grids": grids}

        def more(inputs: Mapping[str, Tensor]) -> Inputs:
            kinds = torch.isin(
                inputs["input_ids"], torch.tensor([token(each) for each in (BEGIN, IMAGE, END)])
            )
            made: Inputs = {"mm_token_type_ids": kinds.long()}
            if "image_token_pooling" in inputs:  # patches of all pictures are numbered through
                rows = inputs["image_token_pooling"]
                made["image_token_pooling"] = rows + 64 * (torch.arange(len(rows)) // 16)[:, None]
            return made

        return model, CountingProcessor(model, one, wrap=WRAPPED, more=more)

    return recipe


def _places() -> Tensor:
    axes = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy")
    return torch.stack(axes, -1).reshape(1, 64, 2)


def gemma4(**text: Any) -> Any:
    """With per-layer embeddings where ``text`` says so; its larger heads are those of full attention."""
    settings = {
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "pad_token_id": TOKENIZER.pad_token_id,
        **text,
    }
    from transformers import Gemma4VisionConfig

    own = {"head_dim": 8, "num_key_value_heads": 4, "pooling_kernel_size": 2, "position_embedding_size": 64}
    vision = Gemma4VisionConfig(**shrunk(Gemma4VisionConfig(), VISION, own))
    return build("gemma4", settings, audio_config=None, vision_config=vision)


def _small_gemma4() -> Any:
    """As E2B and E4B: embeddings of each layer's own, and last layers that share keys and values."""
    kinds_of_layers = ["sliding_attention", "full_attention"] * 3
    return gemma4(
        num_hidden_layers=6,
        layer_types=kinds_of_layers,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        use_double_wide_mlp=True,
    )


def _token_types(inputs: Mapping[str, Tensor]) -> Inputs:
    return {"token_type_ids": (inputs["input_ids"] == token(IMAGE)).long()}


def _two_kinds(inputs: Mapping[str, Tensor]) -> Inputs:
    """Ernie's: which tokens are of a picture, and which go to the experts for pictures."""
    own = kinds(inputs)["mm_token_type_ids"]
    routed = own.clone()
    routed[(inputs["input_ids"] == token(BEGIN)) | (inputs["input_ids"] == token(END))] = 1
    return {"mm_token_type_ids": own, "moe_mm_token_type_ids": routed}


def _deepseek_ocr2() -> Built:
    first = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [0],
        "mlp_dim": 64,
        "downsample_channels": [16, 32],
    }
    second = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    second |= {"num_hidden_layers": 1, "num_key_value_heads": 4, "vocab_size": 8}
    tower = {"sam_config": first, "encoder_config": second}
    experts = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "head_dim": LEAVE_OUT}
    model = build("deepseek_ocr2", experts, vision_config=tower)
    return model, CountingProcessor(model, square(64))


def with_siglip(
    name: str, vision: Mapping[str, Any], reshape: Callable[[Tensor], Tensor], **changes: Any
) -> Recipe:
    """A checkpoint's tower is one of timm's; what the decoder makes of it does not depend on that."""

    def recipe() -> Built:
        tower = {**shrunk(SiglipVisionConfig(), VISION, vision), "model_type": "siglip_vision_model"}
        model, pixels = build(name, vision_config=tower, **changes), square()

        def one(picture: Image.Image) -> Inputs:
            return {"pixel_values": reshape(pixels(picture)["pixel_values"])}

        return model, CountingProcessor(model, one)

    return recipe


def _hybrid() -> Built:
    high = {
        "model_type": "sam_vision_model",
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [0],
        "mlp_dim": 64,
        "num_pos_feats": 8,
    }
    model, low, large = build("deepseek_vl_hybrid", high_res_vision_config=high), square(32), square(64)

    def one(picture: Image.Image) -> Inputs:
        return {**low(picture), "high_res_pixel_values": large(picture)["pixel_values"]}

    return model, CountingProcessor(model, one)


def thinker(name: str, config: str, **text: Any) -> Recipe:
    """The half of an omni model that sees and writes."""

    def recipe() -> Built:
        import importlib

        import transformers
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES,
        )

        from benchmarks.coverage_families.sizes import TEXT, TOKENS, VISION

        module, _, cls = config.partition(":")
        made = getattr(importlib.import_module(f"transformers.models.{module}"), cls)
        plain = made()
        audio = {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "output_dim": 32,
            "num_mel_bins": 16,
        }
        whole = made(
            text_config=shrunk(plain.text_config, TEXT, {"rope_parameters": MROPE, **text}),
            vision_config=shrunk(plain.vision_config, VISION, {}),
            audio_config=audio,
            vision_start_token_id=token(BEGIN),
            **{key: value for key, value in TOKENS.items() if hasattr(plain, key)},
        )
        model = getattr(transformers, NAMES[name])(whole)
        return model, CountingProcessor(model, grid(), wrap=WRAPPED)

    return recipe


def _batched(values: Tensor) -> Tensor:
    """(1, pictures, 3, height, width)."""
    return values[None]


_SIZES = {"image_sizes": torch.tensor([[32, 32]])}
_FULL = ["full_attention"] * 4
_MIXED = ["linear_attention", "full_attention"] * 2
_QWEN3_5 = {"head_dim": 16, "layer_types": _MIXED, "rope_parameters": HALF_MROPE}
_LFM = {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}

RECIPES: dict[str, Recipe] = {
    "aria": of_squares("aria", {"head_dim": 8}, projector_patch_to_query_dict={64: 16}),
    "aya_vision": of_squares("aya_vision"),
    "cohere2_vision": of_squares("cohere2_vision"),
    "cohere_compass": of_grids(
        "cohere_compass",
        {"layer_types": _FULL, "head_dim": LEAVE_OUT, "rope_parameters": {"full_attention": MROPE}},
        more=kinds,
    ),
    "cosmos3_edge": of_grids("cosmos3_edge", {"rope_parameters": MROPE}, temporal=1, more=kinds),
    "cosmos3_omni": of_grids("cosmos3_omni", more=kinds),
    "deepseek_ocr2": _deepseek_ocr2,
    "deepseek_vl": of_squares("deepseek_vl"),
    "deepseek_vl_hybrid": _hybrid,
    "ernie4_5_vl_moe": of_grids(
        "ernie4_5_vl_moe",
        {
            "moe_intermediate_size": [16, 16],
            "head_dim": LEAVE_OUT,
            "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
        },
        {"temporal_merge_size": 2},
        temporal=1,
        more=_two_kinds,
    ),
    "exaone4_5": of_grids("exaone4_5", {}, {"num_key_value_heads": 4}),
    # Its tower gives channels of a map: of as many tokens as channels, here.
    "fast_vlm": with_siglip("fast_vlm", {"hidden_size": 64}, lambda values: values),
    "gemma4": of_patch_rows(_small_gemma4, {"image_position_ids": _places()}, more=kinds, wrap=WRAPPED),
    "glm46v": of_grids("glm46v", {"head_dim": 16, "rope_parameters": HALF_MROPE}, more=kinds),
    "glm4v": of_grids("glm4v", {"head_dim": 16, "rope_parameters": HALF_MROPE}, more=kinds),
    "glm4v_moe": of_grids("glm4v_moe", {"head_dim": 16, "rope_parameters": HALF_MROPE}, more=kinds),
    "glm_ocr": of_grids("glm_ocr", {"head_dim": 8, "rope_parameters": MROPE}, more=kinds),
    "glmga": of_grids("glmga", {"head_dim": 16, "rope_parameters": HALF_MROPE}, more=kinds),
    "got_ocr2": of_squares("got_ocr2"),
    "granite4_vision": of_squares(
        "granite4_vision",
        {"num_hidden_layers": 6, "embedding_multiplier": 2.0, "logits_scaling": 4.0},
        {"hidden_size": 64},
        reshape=lambda values: torch.stack([values[0], values[0].flip(-1)])[None],
        also=_SIZES,
        image_grid_pinpoints=[[32, 32]],
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0], [-2, 1]],
        spatial_target_layers=[2, 3, 4, 5],
    ),
    "granite_docling": of_squares(
        "granite_docling",
        {},
        {"image_size": 32},
        reshape=_batched,
        also={"pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)},
        scale_factor=2,
    ),
    "hunyuan_vl": of_grids(
        "hunyuan_vl", {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}}, temporal=1, more=kinds
    ),
    "hyperclovax_vision_v2": of_grids("hyperclovax_vision_v2", {"logits_scaling": 0.25}),
    "idefics2": of_squares(
        "idefics2",
        {"sliding_window": 32},
        {"image_size": 32},
        reshape=_batched,
        perceiver_config={
            "resampler_n_latents": 8,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "hidden_size": 32,
        },
    ),
    "janus": of_squares("janus"),
    "kimi_k25": of_grids(
        "kimi_k25",
        {"num_key_value_heads": 4, "head_dim": LEAVE_OUT},
        {"pos_emb_height": 8, "pos_emb_width": 8},
        temporal=1,
        as_pictures=True,
        projection_hidden_size=32,
    ),
    "lfm2_vl": of_patch_rows(
        lambda: build("lfm2_vl", _LFM, {"num_patches": 64}, projector_hidden_size=32),
        {
            "spatial_shapes": torch.tensor([[8, 8]]),
            "pixel_attention_mask": torch.ones(1, 64, dtype=torch.int64),
        },
    ),
    "lfm3_vl": of_grids("lfm3_vl"),
    "lighton_ocr": of_squares("lighton_ocr", also=_SIZES, spatial_merge_size=2),
    "llama4": of_squares(
        "llama4",
        {
            "intermediate_size_mlp": 64,
            "attention_chunk_size": 1024,
            "floor_scale": 1024,
            "no_rope_layers": [1, 0, 1, 0],
            "moe_layers": [1, 2, 3],
        },
        {
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
    ),
    "llava_next_video": of_squares(
        "llava_next_video",
        reshape=lambda values: torch.stack([values[0]] * 2)[None],
        also=_SIZES,
        image_grid_pinpoints=[[32, 32], [64, 32], [32, 64]],
    ),
    "minicpmv4_6": of_packed("minicpmv4_6", _QWEN3_5),
    "minicpmv4_7": of_packed("minicpmv4_7", _QWEN3_5, more=kinds),
    "minicpm_ocr": of_packed("minicpm_ocr", _QWEN3_5),
    "minimax_m3_vl": of_grids("minimax_m3_vl", {"layer_types": _FULL}),
    "molmo2": of_pooled(
        "molmo2",
        {"additional_vocab_size": 16},
        {"head_dim": 8, "num_key_value_heads": 4},
        image_patch_id=token(IMAGE),
        adapter_config={
            "vision_feature_layer": [-1],
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "intermediate_size": 32,
            "text_hidden_size": 32,
        },
    ),
    "muse_glimmer": of_grids("muse_glimmer", out_hidden_size=128, projector_hidden_size=32),
    "muse_spark": of_grids(
        "muse_spark", out_hidden_size=128, projector_hidden_size=32, audio_config={"out_hidden_size": 32}
    ),
    "ovis2": of_squares(
        "ovis2",
        wrap=WRAPPED,
        hidden_size=32,
        vocab_size=VOCABULARY,
        visual_indicator_token_ids=[token(each) for each in (BEGIN, END, AUDIO, VIDEO, BEGIN)],
    ),
    "paddleocr_vl": of_grids(
        "paddleocr_vl", {"rope_parameters": MROPE}, temporal=1, as_pictures=True, more=kinds
    ),
    "paligemma": of_squares(
        "paligemma",
        more=lambda inputs: {"token_type_ids": torch.zeros_like(inputs["input_ids"])},
        hidden_size=32,
        projection_dim=32,
    ),
    "perception_lm": with_siglip(
        "perception_lm", {"model_args": {"embed_dim": 32}}, _batched, vision_use_cls_token=False
    ),
    "pp_chart2table": of_squares("pp_chart2table"),
    "qianfan_ocr": of_squares("qianfan_ocr"),
    "qwen2_5_omni_thinker": thinker(
        "qwen2_5_omni_thinker",
        "qwen2_5_omni.configuration_qwen2_5_omni:Qwen2_5OmniThinkerConfig",
        layer_types=_FULL,
    ),
    "qwen3_5_moe": of_grids("qwen3_5_moe", _QWEN3_5, more=kinds),
    "qwen3_omni_moe_thinker": thinker(
        "qwen3_omni_moe_thinker",
        "qwen3_omni_moe.configuration_qwen3_omni_moe:Qwen3OmniMoeThinkerConfig",
        mlp_only_layers=[],
        decoder_sparse_step=1,
        sliding_window=LEAVE_OUT,
    ),
    "qwen3_vl_moe": of_grids("qwen3_vl_moe", {"mlp_only_layers": [], "decoder_sparse_step": 1}, more=kinds),
    "shieldgemma2": of_squares(
        "shieldgemma2", {}, {"image_size": 32}, more=_token_types, mm_tokens_per_image=16
    ),
    "step3p7": of_squares(
        "step3p7",
        {
            "pad_token_id": 0,
            "share_expert_dim": 16,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        {"mlp_ratio": 2.0},
    ),
    "video_llama_3": of_grids("video_llama_3", temporal=1, also={"image_merge_sizes": torch.tensor([2])}),
    "video_llava": of_squares("video_llava"),
    "vipllava": of_squares(
        "vipllava",
        {},
        {"num_hidden_layers": 3},
        vision_feature_layers=(-1, -2),
        vision_feature_layer=(-1, -2),
    ),
}

REMARKS: Mapping[str, str] = {
    "fast_vlm": "run with a SigLIP tower, as timm is not installed",
    "gemma4": "run as its small sizes are, whose layers share keys and values",
    "llama4": "its own generate fails in transformers 5.24.0: compared with that of its language model",
    "minimax_m3_vl": "run with full attention; checkpoints with sparse layers are refused",
    "perception_lm": "run with a SigLIP tower, as timm is not installed",
}
"""What was run, where a checkpoint may be another."""
