"""A tokenizer of one token per byte; no training, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PAD, EOS = "<|endoftext|>", "<|im_end|>"
START = "<|im_start|>"


def byte_tokenizer(special: Sequence[str], named: Mapping[str, str] | None = None) -> Any:
    """Bytes, then the chat tokens, then ``special``.

    Args:
        special: Further special tokens.
        named: Attributes of the tokenizer, name -> token, that processors ask it for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([PAD, START, EOS, *special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=PAD, extra_special_tokens=dict(named or {})
    )


def chat_template(image: str) -> str:
    """A chat template that writes ``image`` for an image."""
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}IMAGE\n{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("IMAGE", image)
