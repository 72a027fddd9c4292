"""The small answer as a draft of the large one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING

from sgl_engine.types import Generation

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM


def draft_tokens(
    small: VLM, large: VLM, answer: Generation, still_wanted: Callable[[], None] = lambda: None
) -> tuple[int, ...]:
    """The small answer in tokens of the large model, without its end.

    Token ids are taken over where both tokenizers mean the same tokens by them, tokens of tool calls and stop
    strings included; else the text is tokenised anew. Whether the draft is any good is for the large model to
    say: it changes the price of its answer only.

    Args:
        small: Who gave the answer.
        large: Whose answer is drafted.
        answer: The small answer.
        still_wanted: Called now and then while waiting for the large model's tokenizer.
    """
    ids = list(takewhile(lambda token: token not in small.eos_token_ids, answer.token_ids.tolist()))
    names, meant = (vlm.processor.tokenizer.convert_ids_to_tokens(ids) for vlm in (small, large))
    if names != meant or None in names:
        with large.exclusive(still_wanted):  # tokenizers have state
            ids = large.processor.tokenizer(small.text(ids), add_special_tokens=False)["input_ids"]
    return tuple(takewhile(lambda token: token not in large.eos_token_ids, ids))
