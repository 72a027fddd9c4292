"""Which tokens part a model's thoughts from its answer, where it thinks before it answers. Pure.

Templates of thinking models end a prompt with ``<think>``, or leave it to the model to begin with it; the
answer begins behind ``</think>``. The tags are tokens of their own, so nothing that is merely spelt like one
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgl_engine.chat.template import THOUGHT_TAGS, chat_template


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the thoughts, in order; the pieces of a stream join to ``Response.reasoning``."""

    text: str


class ReasoningText(str):
    """Text of thoughts, where text of the answer could be expected as well."""

    __slots__ = ()


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

    def are_open(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends within thoughts, so that the model goes on with them."""
        for token in reversed(prompt_ids):
            if token in (self.begin, self.end):
                return token == self.begin
        return False


def thought_tags(processor: Any) -> ThoughtTags | None:
    """The tags of a processor's model; None where its template knows no thoughts, or they are no tokens."""
    tokenizer, template = processor.tokenizer, chat_template(processor)
    for begin, end in THOUGHT_TAGS:
        known = [tokenizer.convert_tokens_to_ids(tag) for tag in (begin, end)]
        if not {begin, end} & set(_written(template)) or {None, tokenizer.unk_token_id} & set(known):
            continue
        before, behind = _around(template, begin)
        spaces = [tokenizer.encode(space, add_special_tokens=False) for space in (before, behind)]
        return ThoughtTags(known[0], known[1], (*spaces[0], known[1], *spaces[1]))
    return None


def closed(text: str, template: str) -> str:
    """A prompt whose thoughts are over where they have begun, as templates write it; others as they are."""
    for begin, end in THOUGHT_TAGS:
        if text.rstrip().endswith(begin):
            before, behind = _around(template, begin)
            return f"{text}{before}{end}{behind}"
    return text


def _written(template: str) -> list[str]:
    return [tag for tags in THOUGHT_TAGS for tag in tags if tag in template]


def _around(template: str, begin: str) -> tuple[str, str]:
    """The white space before and behind the tag that ends thoughts: as much as follows the first tag."""
    lines = f"{begin}\\n" in template or f"{begin}\n" in template
    return ("\n", "\n\n") if lines else ("", "")
