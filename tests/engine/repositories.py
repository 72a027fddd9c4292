"""Folders laid out as the families' repositories are: which files there are, and which keys they hold.

Real repositories differ from what ``save_pretrained`` writes today: some name the processor's class beside
the image processor's settings only, some keep the template in chat_template.json, others in
chat_template.jinja; tokenizers add a first token that templates write too. Weights are tiny and random,
tokenizers are trained on a few words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import repository_templates as templates
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sgl_engine import VLM
from sgl_engine.testing import tiny_vlm

_WORDS = ["system user assistant the quick brown fox is blue and what do you see here?", "ein é ß 你好 \n\n"]
_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CELLS = tuple(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))
_QWEN = (
    *_CHAT,
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN_WRITTEN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


@dataclass(frozen=True)
class Layout:
    """How one repository is laid out.

    Attributes:
        family: Whose tiny model it holds.
        template: The chat template.
        template_in: The file that holds it.
        processor_class: The processor's.
        image_processor: The image processor's.
        tokenizer_class: As tokenizer_config.json names it.
        scheme: How the tokenizer splits: "bytes", "first" (a space before the text, as Llama 2) or "gemma".
        special: Special tokens.
        written: Other added tokens.
        bos: The first token, which the tokenizer adds; None where it adds none.
        eos: The last one.
        pad: What fills.
        tokenizer_says: Further keys of tokenizer_config.json.
        processor_says: Keys of processor_config.json, copied from the processor; None is no such file.
        image_says: Keys of preprocessor_config.json that are written in another way than today.
        class_in_images: Whether preprocessor_config.json names the processor's class.
        generation: generation_config.json, ids as tokens.
    """

    family: str
    template: str
    template_in: str
    processor_class: str
    image_processor: str
    tokenizer_class: str = "PreTrainedTokenizerFast"
    scheme: str = "bytes"
    special: tuple[str, ...] = _CHAT
    written: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = "<|im_end|>"
    pad: str = "<|endoftext|>"
    tokenizer_says: Mapping[str, Any] = field(default_factory=dict)
    processor_says: tuple[str, ...] | None = None
    image_says: Mapping[str, Any] = field(default_factory=dict)
    class_in_images: bool = True
    generation: Mapping[str, Any] = field(default_factory=dict)


def _qwen(family: str, template: str, processor: str, images: str, where: str, **more: Any) -> Layout:
    return Layout(
        family,
        template,
        where,
        processor,
        images,
        tokenizer_class="Qwen2Tokenizer",
        special=_QWEN,
        written=_QWEN_WRITTEN,
        tokenizer_says={"additional_special_tokens": list(_QWEN[1:]), "split_special_tokens": False},
        generation={"do_sample": True, "eos_token_id": ["<|im_end|>", "<|endoftext|>"], "temperature": 1e-6},
        **more,
    )


_ONEVISION = (
    "num_image_tokens",
    "vision_aspect_ratio",
    "vision_feature_select_strategy",
    "image_token",
    "video_token",
)
_LLAVA = ("image_token", "num_additional_image_tokens", "patch_size", "vision_feature_select_strategy")
_PIXTRAL = ("image_token", "image_break_token", "image_end_token", "patch_size", "spatial_merge_size")
_MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
_LLAMA = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
_IMG = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
_DOCTAGS = (
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|pad|>", "<|unk|>"),
    *("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *_CELLS),
    *("<doctag>", "</doctag>", "<text>", "</text>", "<title>", "</title>", "<loc_1>", "<loc_2>", "<loc_3>"),
)

LAYOUTS: Mapping[str, Layout] = {
    "qwen2_vl": _qwen(
        *("qwen2_vl", templates.QWEN2_VL, "Qwen2VLProcessor", "Qwen2VLImageProcessor", "chat_template.json"),
        image_says={"min_pixels": 512, "max_pixels": 4096, "size": None},
    ),
    "qwen2_5_vl": _qwen(
        *("qwen2_5_vl", templates.QWEN2_VL, "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor"),
        "chat_template.json",
        image_says={"min_pixels": 512, "max_pixels": 4096, "size": None},
    ),
    "qwen3_vl": _qwen(
        *("qwen3_vl", templates.QWEN3_VL, "Qwen3VLProcessor", "Qwen2VLImageProcessorFast"),
        "chat_template.json",
    ),
    "qwen3_vl thinking": _qwen(
        *("qwen3_vl", templates.QWEN3_VL_THINKING, "Qwen3VLProcessor", "Qwen2VLImageProcessorFast"),
        "chat_template.json",
    ),
    "qwen3_5": _qwen(
        *("qwen3_5", templates.QWEN3_5, "Qwen3VLProcessor", "Qwen2VLImageProcessorFast"),
        "chat_template.jinja",
    ),
    "internvl": Layout(
        *("internvl", templates.INTERNVL, "chat_template.jinja", "InternVLProcessor"),
        "GotOcr2ImageProcessorFast",
        tokenizer_class="Qwen2Tokenizer",
        special=(*_CHAT, *_IMG),
        written=_QWEN_WRITTEN,
        tokenizer_says={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        processor_says=("image_seq_length",),
    ),
    "llava": Layout(
        *("llava", templates.LLAVA, "chat_template.json", "LlavaProcessor", "CLIPImageProcessor"),
        tokenizer_class="LlamaTokenizer",
        scheme="first",
        special=_LLAMA,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        tokenizer_says={"add_bos_token": True, "add_eos_token": False, "legacy": False},
        processor_says=_LLAVA,
    ),
    "llava_next": Layout(
        *("llava_next", templates.LLAVA_NEXT, "chat_template.json", "LlavaNextProcessor"),
        "LlavaNextImageProcessor",
        tokenizer_class="LlamaTokenizer",
        scheme="first",
        special=_LLAMA,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        tokenizer_says={"add_bos_token": True, "add_eos_token": False, "legacy": True},
        processor_says=_LLAVA,
    ),
    "llava_onevision": Layout(
        *("llava_onevision", templates.LLAVA_ONEVISION, "chat_template.json", "LlavaOnevisionProcessor"),
        "LlavaOnevisionImageProcessor",
        tokenizer_class="Qwen2Tokenizer",
        special=(*_CHAT, "<image>", "<video>"),
        processor_says=_ONEVISION,
    ),
    "idefics3": Layout(
        *(
            "idefics3",
            templates.IDEFICS3,
            "chat_template.json",
            "Idefics3Processor",
            "Idefics3ImageProcessor",
        ),
        special=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<fake_token_around_image>", "<image>"),
            *("<end_of_utterance>", "<global-img>", *_CELLS),
        ),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|end_of_text|>",
        processor_says=("image_seq_len",),
        generation={"eos_token_id": ["<|end_of_text|>", "<end_of_utterance>"]},
    ),
    "idefics3 doctags": Layout(
        *(
            "idefics3",
            templates.DOCTAGS,
            "chat_template.jinja",
            "Idefics3Processor",
            "Idefics3ImageProcessor",
        ),
        tokenizer_class="GPT2Tokenizer",
        special=_DOCTAGS,
        eos="<|end_of_text|>",
        pad="<|pad|>",
        tokenizer_says={"bos_token": "<|start_of_role|>", "add_bos_token": False, "add_prefix_space": False},
        processor_says=("image_seq_len",),
        generation={"eos_token_id": "<|end_of_text|>"},
    ),
    "smolvlm": Layout(
        *("smolvlm", templates.SMOLVLM, "chat_template.json", "SmolVLMProcessor", "SmolVLMImageProcessor"),
        tokenizer_class="GPT2Tokenizer",
        special=(
            *_CHAT,
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *_CELLS,
        ),
        eos="<end_of_utterance>",
        tokenizer_says={"bos_token": "<|im_start|>", "add_prefix_space": False},
        processor_says=("image_seq_len",),
    ),
    "gemma3": Layout(
        *("gemma3", templates.GEMMA3, "chat_template.json", "Gemma3Processor", "Gemma3ImageProcessor"),
        tokenizer_class="GemmaTokenizer",
        scheme="gemma",
        special=(
            *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
            *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        ),
        bos="<bos>",
        eos="<end_of_turn>",
        pad="<pad>",
        tokenizer_says={
            "add_bos_token": True,
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
            "extra_special_tokens": {
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
        },
        processor_says=("image_seq_length",),
        generation={
            "do_sample": True,
            "eos_token_id": ["<eos>", "<end_of_turn>"],
            "top_k": 64,
            "top_p": 0.95,
        },
    ),
    "mistral3": Layout(
        *(
            "mistral3",
            templates.MISTRAL3,
            "chat_template.json",
            "PixtralProcessor",
            "PixtralImageProcessorFast",
        ),
        tokenizer_class="LlamaTokenizerFast",
        special=(*_MISTRAL, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        processor_says=_PIXTRAL,
    ),
    "pixtral": Layout(
        *("mistral3", templates.PIXTRAL, "chat_template.json", "PixtralProcessor", "PixtralImageProcessor"),
        special=(*_MISTRAL, "<pad>"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        processor_says=_PIXTRAL,
    ),
}


def write(name: str, folder: Path, *, size: Any = "small", seed: int = 0) -> Path:
    """Writes the repository, weights included, and returns its folder."""
    layout = LAYOUTS[name]
    own = tiny_vlm(layout.family, size=size, max_tiles=4, seed=seed, context_tokens=4096)
    tokenizer = _tokenizer(layout)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_model(own, layout, tokenizer, folder)
    _write_tokenizer_config(layout, tokenizer, folder)
    _write_processor(own.processor, layout, folder)
    if layout.template_in == "chat_template.json":
        _dump(folder / layout.template_in, {"chat_template": layout.template})
    elif layout.template_in.endswith(".jinja"):
        (folder / layout.template_in).write_text(layout.template)
    return folder


def _write_model(own: VLM, layout: Layout, tokenizer: Tokenizer, folder: Path) -> None:
    """The weights, with as many rows as the tokenizer has tokens, and the ids that it gives them."""
    model = own.model
    names = own.processor.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings((tokenizer.get_vocab_size() // 16 + 1) * 16)
        torch.nn.init.normal_(model.get_input_embeddings().weight)
    for key, value in model.config.to_dict().items():
        if "token" in key and key.endswith(("_id", "_index")) and isinstance(value, int):
            setattr(model.config, key, tokenizer.token_to_id(names.convert_ids_to_tokens(value)))
    text = model.config.get_text_config()
    text.eos_token_id = tokenizer.token_to_id(layout.eos)
    text.bos_token_id = None if layout.bos is None else tokenizer.token_to_id(layout.bos)
    model.save_pretrained(folder)
    said = {"bos_token_id": layout.bos, "eos_token_id": layout.eos, "pad_token_id": layout.pad}
    _dump(
        folder / "generation_config.json",
        {
            key: _ids(tokenizer, value) if key.endswith("_token_id") else value
            for key, value in {**said, **layout.generation}.items()
            if value is not None
        },
    )


def _ids(tokenizer: Tokenizer, tokens: str | list[str]) -> Any:
    return tokenizer.token_to_id(tokens) if isinstance(tokens, str) else [*map(tokenizer.token_to_id, tokens)]


def _tokenizer(layout: Layout) -> Tokenizer:
    """A byte pair encoding with a few merges, split as the repository's."""
    spm = layout.scheme != "bytes"
    core = Tokenizer(models.BPE(unk_token="<unk>" if spm else None, byte_fallback=spm, fuse_unk=spm))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if spm:
        alphabet = [*map(chr, range(33, 127)), *"éß你好\n▁"]
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if layout.scheme == "first":
            core.normalizer = None
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            steps.append(decoders.Strip(" ", 1, 0))
        core.decoder = decoders.Sequence(steps)
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        _WORDS,
        trainers.BpeTrainer(
            vocab_size=700,
            initial_alphabet=alphabet,
            special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if spm else [],
            show_progress=False,
            min_frequency=1,
        ),
    )
    core.add_special_tokens(list(layout.special))
    core.add_tokens(list(layout.written))
    if layout.bos is not None:
        first = (layout.bos, core.token_to_id(layout.bos))
        core.post_processor = processors.TemplateProcessing(single=f"{layout.bos} $A", special_tokens=[first])
    return core


def _write_tokenizer_config(layout: Layout, tokenizer: Tokenizer, folder: Path) -> None:
    kinds = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(tokenizer.token_to_id(token)): {"content": token, **kinds, "special": token in layout.special}
        for token in (*layout.special, *layout.written)
    }
    in_here = {"chat_template": layout.template} if layout.template_in == "tokenizer_config.json" else {}
    _dump(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": added,
            "bos_token": layout.bos,
            "clean_up_tokenization_spaces": False,
            "eos_token": layout.eos,
            "model_max_length": 131072,
            "pad_token": layout.pad,
            "processor_class": layout.processor_class,
            "tokenizer_class": layout.tokenizer_class,
            "unk_token": "<unk>" if layout.scheme != "bytes" else None,
            **layout.tokenizer_says,
            **in_here,
        },
    )
    if layout.family.startswith("qwen2"):  # those repositories name the class beside the images only
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["processor_class"]
        _dump(folder / "tokenizer_config.json", settings)


def _write_processor(processor: Any, layout: Layout, folder: Path) -> None:
    images = json.loads(processor.image_processor.to_json_string())
    images |= {"image_processor_type": layout.image_processor, **layout.image_says}
    if layout.class_in_images:
        images["processor_class"] = layout.processor_class
    _dump(
        folder / "preprocessor_config.json",
        {key: value for key, value in images.items() if value is not None},
    )
    if layout.processor_says is not None:
        named = {key: getattr(processor, key, None) for key in layout.processor_says}
        _dump(folder / "processor_config.json", {**named, "processor_class": layout.processor_class})


def _dump(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))
