"""Tiny Idefics3, SmolVLM, Gemma 3 and Mistral 3."""

from __future__ import annotations

from typing import Any

from sgl_engine.families.tiny.sizes import PATCH_SIZE, TinyOptions, randomize, text_settings
from sgl_engine.families.tiny.tokenizer import byte_tokenizer, chat_template

_WINDOW_TOKENS = 32  # of Gemma 3's sliding layers: shorter than any prompt with an image


def build_idefics3(options: TinyOptions) -> tuple[Any, Any]:
    """Tiles with markers of their own."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _idefics(
        options,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )


def build_smolvlm(options: TinyOptions) -> tuple[Any, Any]:
    """The same under another name."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    from sgl_engine.families.processors import image_only_class

    return _idefics(
        options,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        image_only_class("SmolVLMProcessor"),
    )


def _idefics(options: TinyOptions, config: Any, model: Any, images: Any, processor: Any) -> tuple[Any, Any]:
    from transformers import LlamaConfig

    cells = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    tokenizer = byte_tokenizer(
        ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *cells]
    )
    edge = options.side_tokens * 2 * PATCH_SIZE
    across = next(count for count in range(1, 7) if count**2 >= options.max_tiles)
    built = model(
        config(
            text_config=LlamaConfig(**text_settings(options, tokenizer)),
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": options.size.vision_layers,
                "num_attention_heads": 4,
                "image_size": edge,
                "patch_size": PATCH_SIZE,
            },
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
            pad_token_id=None,
        )
    )
    randomize(built)
    return built, processor(
        image_processor=images(
            size={"longest_edge": across * edge},
            max_image_size={"longest_edge": edge},
            do_image_splitting=options.max_tiles > 1,
        ),
        tokenizer=tokenizer,
        image_seq_len=options.side_tokens**2,
        chat_template=chat_template("<image>"),
    )


def build_gemma3(options: TinyOptions) -> tuple[Any, Any]:
    """Two sliding layers, then one that sees everything; one tile per image."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        Gemma3TextConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    begin, image, end = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
    tokenizer = byte_tokenizer(
        [begin, image, end], {"boi_token": begin, "image_token": image, "eoi_token": end}
    )
    edge = options.side_tokens * 2 * PATCH_SIZE
    text = text_settings(options, tokenizer)
    kinds = [
        "full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(options.size.layers)
    ]
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            **text, layer_types=kinds, sliding_window=_WINDOW_TOKENS, query_pre_attn_scalar=text["head_dim"]
        ),
        vision_config=_siglip(options, edge),
        mm_tokens_per_image=options.side_tokens**2,
        image_token_index=tokenizer.convert_tokens_to_ids(image),
        boi_token_index=tokenizer.convert_tokens_to_ids(begin),
        eoi_token_index=tokenizer.convert_tokens_to_ids(end),
        tie_word_embeddings=False,
    )
    model = Gemma3ForConditionalGeneration(config)
    randomize(model)
    return model, Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": edge, "width": edge}),
        tokenizer=tokenizer,
        image_seq_length=options.side_tokens**2,
        chat_template=chat_template(begin),
    )


def _siglip(options: TinyOptions, edge: int) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=options.size.vision_layers,
        num_attention_heads=4,
        image_size=edge,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )


def build_mistral3(options: TinyOptions) -> tuple[Any, Any]:
    """Rows with break tokens."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralVisionConfig,
    )
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    from sgl_engine.families.processors import image_only_class

    tokenizer = byte_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    across = next(count for count in range(1, 7) if count**2 >= options.max_tiles)
    edge = options.side_tokens * 2 * PATCH_SIZE * across
    config = Mistral3Config(
        text_config=MistralConfig(**text_settings(options, tokenizer), sliding_window=None),
        vision_config=PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=options.size.vision_layers,
            num_attention_heads=4,
            image_size=edge,
            patch_size=PATCH_SIZE,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    model = Mistral3ForConditionalGeneration(config)
    randomize(model)
    return model, image_only_class("PixtralProcessor")(
        image_processor=PixtralImageProcessorPil(size={"longest_edge": edge}, patch_size=PATCH_SIZE),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        spatial_merge_size=2,
        chat_template=chat_template("[IMG]"),
    )
