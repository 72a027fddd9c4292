"""Special tokens in an answer: which of them belong to its text, and which are left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

VLM: TypeAlias = Any
"""A ``model.vlm.VLM``, which imports this module."""


def frame_tokens(tokenizer: Any, ends: frozenset[int]) -> frozenset[int]:
    """Tokens that begin, end or fill a text, and are never part of one.

    Args:
        tokenizer: The model's.
        ends: What ends its answers.
    """
    frame = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return ends.union(token for token in frame if token is not None)


def keeps_special_tokens(vlm: VLM) -> bool:
    """Whether a model's generation_config.json says that special tokens are part of what it says."""
    return getattr(vlm.model.generation_config, "skip_special_tokens", None) is False


def left_out(vlm: VLM, token_ids: Sequence[int]) -> tuple[str, ...]:
    """Names the special tokens that are no part of the text of generated tokens, though they might be."""
    tokenizer = vlm.processor.tokenizer
    added = tokenizer.added_tokens_decoder.items()
    special = {int(index) for index, token in added if token.special}
    special -= frame_tokens(tokenizer, vlm.eos_token_ids)
    return tuple(tokenizer.convert_ids_to_tokens([token for token in token_ids if token in special]))
