"""Tiny LLaVAs of three generations."""

from __future__ import annotations

from typing import Any

from sgl_engine.families.tiny.sizes import PATCH_SIZE, TinyOptions, randomize, text_settings
from sgl_engine.families.tiny.tokenizer import byte_tokenizer, chat_template

_IMAGE, _VIDEO = "<image>", "<video>"


def build_llava(options: TinyOptions) -> tuple[Any, Any]:
    """A class token in the tower that is left out, and the last layer but one, as in checkpoints."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = byte_tokenizer([_IMAGE])
    edge = options.side_tokens * PATCH_SIZE
    config = LlavaConfig(
        text_config=LlamaConfig(**text_settings(options, tokenizer)),
        vision_config=CLIPVisionConfig(**_tower(options)),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=options.side_tokens**2,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    randomize(model)
    return model, LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat_template(_IMAGE),
    )


def build_llava_next(options: TinyOptions) -> tuple[Any, Any]:
    """The whole image, then tiles with newlines."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        MistralConfig,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = byte_tokenizer([_IMAGE])
    edge = options.side_tokens * PATCH_SIZE
    config = LlavaNextConfig(
        text_config=MistralConfig(**text_settings(options, tokenizer), sliding_window=None),
        vision_config=CLIPVisionConfig(**_tower(options)),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=options.side_tokens**2,
        image_grid_pinpoints=_pinpoints(options),
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    randomize(model)
    return model, LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": edge},
            crop_size={"height": edge, "width": edge},
            image_grid_pinpoints=_pinpoints(options),
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat_template(_IMAGE),
    )


def build_llava_onevision(options: TinyOptions) -> tuple[Any, Any]:
    """Tiles are shrunk beyond three tiles' worth of tokens."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    from sgl_engine.families.processors import image_only

    tokenizer = byte_tokenizer([_IMAGE, _VIDEO])
    edge = options.side_tokens * PATCH_SIZE
    text = text_settings(options, tokenizer)
    del text["head_dim"]
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**text),
        vision_config=SiglipVisionConfig(**_tower(options), vision_use_head=False),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(_VIDEO),
        image_grid_pinpoints=_pinpoints(options),
        vision_aspect_ratio="anyres_max_3",
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    randomize(model)
    return model, image_only(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": edge, "width": edge}, image_grid_pinpoints=_pinpoints(options)
        ),
        tokenizer=tokenizer,
        num_image_tokens=options.side_tokens**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_3",
        chat_template=chat_template(_IMAGE),
    )


def _tower(options: TinyOptions) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": max(2, options.size.vision_layers),
        "num_attention_heads": 4,
        "image_size": options.side_tokens * PATCH_SIZE,
        "patch_size": PATCH_SIZE,
    }


def _pinpoints(options: TinyOptions) -> list[list[int]]:
    """(height, width) in pixels of all rectangles of at most so many tiles."""
    edge, most = options.side_tokens * PATCH_SIZE, options.max_tiles
    counts = range(1, most + 1)
    return [[rows * edge, cols * edge] for rows in counts for cols in counts if rows * cols <= most]
