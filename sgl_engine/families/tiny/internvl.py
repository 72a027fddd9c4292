"""A tiny InternVL."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from sgl_engine.families.tiny.sizes import PATCH_SIZE, TinyOptions, text_settings
from sgl_engine.families.tiny.tokenizer import byte_tokenizer, chat_template

TinyDecoder: TypeAlias = Literal["qwen3", "qwen2"]
DEFAULT_DECODER: TinyDecoder = "qwen3"
_IMAGE = "<IMG_CONTEXT>"


def build_internvl(options: TinyOptions, decoder: TinyDecoder = DEFAULT_DECODER) -> tuple[Any, Any]:
    """One tile goes through a processor that loads without torchvision; several as checkpoints do it."""
    import torch
    from transformers import InternVLForConditionalGeneration

    tokenizer = byte_tokenizer(
        ["<img>", "</img>", _IMAGE, "<video>"],
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": _IMAGE,
            "video_token": "<video>",
        },
    )
    model = InternVLForConditionalGeneration(_config(options, decoder, tokenizer)).float()
    for name, parameter in model.named_parameters():
        # transformers starts these at zero, which would hide a tower that ignores position.
        if "position_embeddings" in name or "cls_token" in name:
            torch.nn.init.normal_(parameter)
    return model, _processor(tokenizer, options)


def _config(options: TinyOptions, decoder: str, tokenizer: Any) -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config, Qwen3Config

    text = text_settings(options, tokenizer)
    text["initializer_range"] = 0.25  # attention and answers that are neither flat nor certain
    if decoder == "qwen2":
        del text["head_dim"]
    edge = options.side_tokens * 2 * PATCH_SIZE
    return InternVLConfig(
        text_config=(Qwen3Config if decoder == "qwen3" else Qwen2Config)(**text),
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=options.size.vision_layers,
            num_attention_heads=4,
            image_size=(edge, edge),
            patch_size=(PATCH_SIZE, PATCH_SIZE),
            initializer_range=0.2,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=options.side_tokens**2,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def _processor(tokenizer: Any, options: TinyOptions) -> Any:
    from transformers import CLIPImageProcessorPil, InternVLProcessor, LlavaProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    from sgl_engine.families.processors import image_only

    edge = options.side_tokens * 2 * PATCH_SIZE
    size = {"height": edge, "width": edge}
    if options.max_tiles == 1:
        return LlavaProcessor(
            image_processor=CLIPImageProcessorPil(size=size, do_center_crop=False),
            tokenizer=tokenizer,
            patch_size=2 * PATCH_SIZE,
            vision_feature_select_strategy="full",
            image_token=_IMAGE,
            chat_template=chat_template(f"<img>{_IMAGE}</img>"),
        )
    return image_only(InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(
            size=size, crop_to_patches=True, max_patches=options.max_tiles
        ),
        tokenizer=tokenizer,
        image_seq_length=options.side_tokens**2,
        chat_template=chat_template(_IMAGE),
    )
