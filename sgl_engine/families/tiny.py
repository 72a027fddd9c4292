"""Tiny models of each family, with random weights, built offline in well under a second; for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_FAMILY = "internvl"
TINY_FAMILIES = (DEFAULT_FAMILY,)
TinyDecoder: TypeAlias = Literal["qwen3", "qwen2"]
DEFAULT_DECODER: TinyDecoder = "qwen3"

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
)
_PAD, _EOS, _IMAGE = "<|endoftext|>", "<|im_end|>", "<IMG_CONTEXT>"
_VOCAB_SIZE = 272  # 256 bytes, the special tokens, and a padding such as real models have
_IMAGE_SIZE, _PATCH_SIZE = 32, 4

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinySize:
    """Sizes of a tiny model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vision_layers: int


TINY_SIZES = {
    "small": TinySize(layers=3, hidden=32, heads=4, kv_heads=2, vision_layers=1),
    "large": TinySize(layers=6, hidden=48, heads=6, kv_heads=2, vision_layers=2),
}


def build_tiny(
    size: TinySize,
    *,
    decoder: TinyDecoder,
    max_tiles: int,
    side_tokens: int,
    seed: int,
    context_tokens: int,
) -> tuple[PreTrainedModel, Any]:
    """An InternVL model in float32 and its processor.

    Args:
        size: Depth and width.
        decoder: Which text model.
        max_tiles: 1 resizes every image to one tile, through a processor that loads without torchvision; more
            cuts images as InternVL checkpoints do.
        side_tokens: A tile is side_tokens x side_tokens visual tokens.
        seed: Of the weights; the global random state is left as it was.
        context_tokens: Longest sequence.
    """
    import torch
    from transformers import InternVLForConditionalGeneration

    tokenizer = _tokenizer()
    config = _config(size, decoder, side_tokens, context_tokens, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config).float()
        for name, parameter in model.named_parameters():
            # transformers starts these at zero, which would hide a tower that ignores position.
            if "position_embeddings" in name or "cls_token" in name:
                torch.nn.init.normal_(parameter)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(_EOS)
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(_PAD)
    return model, _processor(tokenizer, max_tiles, side_tokens)


def _config(size: TinySize, decoder: str, side_tokens: int, context_tokens: int, tokenizer: Any) -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config, Qwen3Config

    text: dict[str, Any] = {
        "vocab_size": _VOCAB_SIZE,
        "hidden_size": size.hidden,
        "intermediate_size": 2 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": context_tokens,
        "initializer_range": 0.25,  # attention and answers that are neither flat nor certain
        "eos_token_id": tokenizer.convert_tokens_to_ids(_EOS),
        "pad_token_id": None,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    if decoder == "qwen3":
        text["head_dim"] = size.hidden // size.heads
    text_config = (Qwen3Config if decoder == "qwen3" else Qwen2Config)(**text)
    image_size = side_tokens * 2 * _PATCH_SIZE
    vision_config = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=4,
        image_size=(image_size, image_size),
        patch_size=(_PATCH_SIZE, _PATCH_SIZE),
        initializer_range=0.2,
    )
    return InternVLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=side_tokens**2,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def _tokenizer() -> Any:
    """One token per byte; no training, no files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=_EOS,
        pad_token=_PAD,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": _IMAGE,
            "video_token": "<video>",
        },
    )


def _processor(tokenizer: Any, max_tiles: int, side_tokens: int) -> Any:
    from transformers import CLIPImageProcessorPil, InternVLProcessor, LlavaProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    from sgl_engine.families.processors import image_only

    side = side_tokens * 2 * _PATCH_SIZE
    size = {"height": side, "width": side}
    if max_tiles == 1:
        return LlavaProcessor(
            image_processor=CLIPImageProcessorPil(size=size, do_center_crop=False),
            tokenizer=tokenizer,
            patch_size=2 * _PATCH_SIZE,
            vision_feature_select_strategy="full",
            image_token=_IMAGE,
            chat_template=_CHAT_TEMPLATE.replace("IMAGE", f"<img>{_IMAGE}</img>"),
        )
    return image_only(InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=max_tiles),
        tokenizer=tokenizer,
        image_seq_length=side_tokens**2,
        chat_template=_CHAT_TEMPLATE.replace("IMAGE", _IMAGE),
    )
