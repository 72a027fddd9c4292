"""What a model is asked about a document, and what its answers say about the document's relevance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sgl_engine.errors import ConfigError

if TYPE_CHECKING:
    from sgl_engine.response import AnswerScores


@dataclass(frozen=True)
class RelevanceQuestion:
    """What is asked, and which answers count.

    Attributes:
        prompt: What is asked; "{query}" stands for the query.
        positive: The answer that speaks for a document; None: all but ``negative`` do.
        negative: The answer that speaks against it.

    Raises:
        ConfigError: A prompt without "{query}", or an empty answer.
    """

    prompt: str
    positive: str | None
    negative: str

    def __post_init__(self) -> None:
        """Refuses what cannot be asked."""
        if "{query}" not in self.prompt:
            raise ConfigError(
                f"prompt={self.prompt!r:.200} does not contain {{query}}.",
                remedy="Write {query} where the query belongs.",
            )
        if not self.negative or self.positive == "":
            raise ConfigError(
                f"positive={self.positive!r:.200} and negative={self.negative!r:.200} must not be empty.",
                remedy="Give the words that the model answers with.",
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that are scored."""
        return (self.negative,) if self.positive is None else (self.positive, self.negative)

    def about(self, query: str) -> str:
        """The question for one query; braces in the query are text."""
        return self.prompt.replace("{query}", query)

    def relevance(self, scores: AnswerScores) -> float:
        """How relevant a document is, in [0, 1], by the scores of ``answers``: higher = more relevant."""
        if self.positive is not None:
            return scores.shares[0]
        # 1 - p of the only answer; expm1 keeps what that would round away.
        return -math.expm1(scores.logprobs[0])


YES_OR_NO: Final = 'Can this picture answer the question "{query}"? Answer Yes or No.'
"""What a pair that follows instructions is asked about each picture."""
BUNDLED_QUESTION: Final = RelevanceQuestion("{query}", None, "none")
"""What the bundled pair is asked: it answers "none" where a picture does not hold the answer."""


def default_question(*, is_bundled: bool, of: str = "picture") -> RelevanceQuestion:
    """What is asked where the caller says nothing.

    Args:
        is_bundled: Whether the small model is the bundled one.
        of: What a document is called.
    """
    if is_bundled:
        return BUNDLED_QUESTION
    return RelevanceQuestion(YES_OR_NO.replace("picture", of, 1), "Yes", "No")
