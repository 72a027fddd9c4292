"""Processors with tokenizers and chat templates as checkpoints have them: merges, spaces, a first token."""

from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from sgl_engine.testing import tiny_vlm

SPECIAL = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|user|>", "a§b"]
WRITTEN = ["<think>", "</think>", "<tool_response>", "</tool_response>"]
_TEXT = [
    "system user assistant the quick brown fox <image> im_end |> <| think tool response",
    "ein é ß 你好 \n\n",
]


def tokenizer(kind: str) -> Any:
    """A tokenizer with a few hundred merges; ``kind`` is one of ``TOKENIZERS``."""
    core = Tokenizer(models.BPE(unk_token=None, byte_fallback=kind != "bytes"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind in {"bytes", "adds the first token"}:  # as GPT-2, Qwen and Llama 3
        core.normalizer = normalizers.NFC()
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bytes")
        core.decoder = decoders.ByteLevel()
    else:  # as SentencePiece
        scheme = {"a space at first": "first", "a space always": "always", "a space in the text": "never"}[
            kind
        ]
        alphabet = [*map(chr, range(32, 127)), "é", "ß", "你", "好", "\n", "▁", "§"]
        if scheme == "never":
            core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "never")
        core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if core.model.byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=bytes_, show_progress=False, min_frequency=1
    )
    core.train_from_iterator(_TEXT, trainer)
    core.add_special_tokens([AddedToken("<|assistant|>", special=True, rstrip=True, lstrip=True), *SPECIAL])
    core.add_tokens([*WRITTEN, "<b>"])
    if kind != "bytes":
        bos = ("<s>", core.token_to_id("<s>"))
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token=None
    )


TOKENIZERS = ("bytes", "adds the first token", "a space at first", "a space always", "a space in the text")

_PARTS = (
    "{% macro show(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
TEMPLATES: Mapping[str, str] = {
    "thinking, with tools": _PARTS  # as Qwen's: what a message says decides how it is shown
    + "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<tool_call>{name}</tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}{% set c = show(m.content) | trim %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ c }}\n</tool_response><|im_end|>\n"
    "{% elif m.role == 'assistant' %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{{ c }}{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% elif c.startswith('<tool_response>') %}<|im_start|>user\nagain:{{ c }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "trims, first token": "{{ bos_token }}"  # as Gemma's
    "{% for m in messages %}<|user|>{{ m.role | upper }}\n{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text | trim }}{% endif %}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "instructions": "{{ bos_token }}{% for m in messages %}"  # as Mistral's: no space around text
    "{% if m.role == 'assistant' %}{% for p in m.content %}{{ p.text }}{% endfor %}</s>{% else %}[INST]"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "[/INST]{% endif %}{% endfor %}",
    "words only": "{% for m in messages %}{{ m.role | capitalize }}"  # as SmolVLM's and LLaVA's
    "{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% else %}<image>{% endif %}{% endfor %}</s>\n{% endfor %}"
    "Assistant:",
    "text first": "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% else %}<image>{% endif %}{% endfor %}{% endfor %}",
}


def processor(kind: str, template: str) -> Any:
    """LLaVA's, as small as the tiny model's, with another tokenizer and template."""
    own = tiny_vlm("llava").processor
    return LlavaProcessor(
        image_processor=own.image_processor,
        tokenizer=tokenizer(kind),
        patch_size=own.patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATES[template],
    )
