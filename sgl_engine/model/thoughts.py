"""What is said, and is no part of an answer's text: thoughts before it, and special tokens in it. Pure.

Templates of thinking models end a prompt with ``<think>``, or leave it to the model to begin with it; the
answer begins behind ``</think>``. Where the tags are tokens of their own, nothing that is merely spelt like
one counts; some tokenizers do spell them, in several tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sgl_engine.chat.template import THOUGHT_TAGS, chat_template, space_around

VLM: TypeAlias = Any
"""A ``model.vlm.VLM``, which imports this module."""


@dataclass(frozen=True)
class ThoughtTags:
    """A model's tags.

    Attributes:
        begin: The token that begins thoughts.
        end: The token that ends them.
        closing: The tokens that end them as templates write it, white space around ``end`` included.
    """

    begin: int
    end: int
    closing: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Those of both tags at most, white space included."""
        return len(self.closing)

    def are_open(self, prompt_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> bool:
        """Whether a prompt ends within thoughts, so that the model goes on with them."""
        del decode
        for token in reversed(prompt_ids):
            if token in (self.begin, self.end):
                return token == self.begin
        return False


@dataclass(frozen=True)
class SpeltTags:
    """A model's tags, where its tokenizer spells them.

    Attributes:
        begin: What begins thoughts.
        end: What ends them.
        closing: The tokens that end them as templates write it, white space around ``end`` included.
        behind: Those of the white space behind it.
    """

    begin: str
    end: str
    closing: tuple[int, ...]
    behind: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Those of both tags at most, white space included: a character may take four."""
        return len(self.closing) + 4 * len(self.begin)

    def are_open(self, prompt_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> bool:
        """Whether a prompt ends with the tag that begins them; earlier ones are somebody's text."""
        return decode(prompt_ids[-self.tokens :]).rstrip().endswith(self.begin)


def thought_tags(processor: Any) -> ThoughtTags | SpeltTags | None:
    """The tags of a processor's model; None where its template knows no thoughts."""
    tokenizer, template = processor.tokenizer, chat_template(processor)
    for begin, end in THOUGHT_TAGS:
        known = [tokenizer.convert_tokens_to_ids(tag) for tag in (begin, end)]
        if not {begin, end} & set(_written(template)):
            continue
        before, behind = space_around(template, begin)
        if {None, tokenizer.unk_token_id} & set(known):
            closing, space = (
                tuple(tokenizer.encode(text, add_special_tokens=False))
                for text in (f"{before}{end}{behind}", behind)
            )
            return SpeltTags(begin, end, closing, space)
        spaces = [tokenizer.encode(space, add_special_tokens=False) for space in (before, behind)]
        return ThoughtTags(known[0], known[1], (*spaces[0], known[1], *spaces[1]))
    return None


def _written(template: str) -> list[str]:
    return [tag for tags in THOUGHT_TAGS for tag in tags if tag in template]


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
