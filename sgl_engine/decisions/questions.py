"""What can be asked: four kinds of questions, frozen and checked when they are made. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from sgl_engine import ImagePart, InvalidRequestError

MAX_QUESTIONS = 400
"""Of one call."""
MAX_LABELS = 255
"""Of one choice, and levels of one score."""

Content: TypeAlias = "str | ImagePart | Sequence[str | ImagePart]"
"""A text, a picture, or several in the order in which they are read."""

QuestionType: TypeAlias = Literal["yes_no", "choice", "score", "box"]
SCORED_TYPES: tuple[QuestionType, ...] = ("yes_no", "choice", "score")
"""Those whose answers are scored; a box is looked up in a map, or generated."""


@dataclass(frozen=True)
class YesNoQuestion:
    """Asks how likely it is that the answer is yes.

    Attributes:
        instructions: The whole question.
        yes: What counts as yes; None where that is clear.
        no: What counts as no.

    Raises:
        InvalidRequestError: The instructions are empty.
    """

    type: ClassVar[Literal["yes_no"]] = "yes_no"
    instructions: Content
    yes: Content | None = None
    no: Content | None = None

    def __post_init__(self) -> None:
        _check_instructions(self.instructions)


@dataclass(frozen=True)
class ChoiceQuestion:
    """Asks which label fits.

    Attributes:
        instructions: The whole question.
        labels: 1 to ``MAX_LABELS`` different ones; none empty.
        descriptions: What each label means, in their order, None where that is clear; empty for no
            descriptions.

    Raises:
        InvalidRequestError: Empty instructions; too few, too many, empty or equal labels; or as many
            descriptions as there are not labels.
    """

    type: ClassVar[Literal["choice"]] = "choice"
    instructions: Content
    labels: Sequence[str]
    descriptions: Sequence[Content | None] = ()

    def __post_init__(self) -> None:
        _check_instructions(self.instructions)
        labels = self.labels
        if isinstance(labels, str) or not 1 <= len(labels) <= MAX_LABELS:
            raise InvalidRequestError(
                f"A choice has {'a text' if isinstance(labels, str) else len(labels)} for labels.",
                remedy=f"Give a list of 1 to {MAX_LABELS} labels.",
            )
        if len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
            raise InvalidRequestError(
                f"The labels {list(labels)!r:.200} are not all different, or one is empty.",
                remedy="Give each label a text of its own.",
            )
        _check_count(self.descriptions, len(labels), "labels")


@dataclass(frozen=True)
class ScoreQuestion:
    """Asks how much, on a scale of ordered levels.

    Attributes:
        instructions: The whole question.
        levels: 2 to ``MAX_LABELS`` different descriptions, from level 0 on.

    Raises:
        InvalidRequestError: Empty instructions, too few or too many levels, or two of the same text.
    """

    type: ClassVar[Literal["score"]] = "score"
    instructions: Content
    levels: Sequence[Content]

    def __post_init__(self) -> None:
        _check_instructions(self.instructions)
        if isinstance(self.levels, str) or not 2 <= len(self.levels) <= MAX_LABELS:
            raise InvalidRequestError(
                f"A score has {'a text' if isinstance(self.levels, str) else len(self.levels)} for levels.",
                remedy=f"Give a list of 2 to {MAX_LABELS} levels, from the least on.",
            )
        texts = [level.strip() for level in self.levels if isinstance(level, str)]
        twice = [text for number, text in enumerate(texts) if text in texts[:number]]
        if twice:
            raise InvalidRequestError(
                f"The level {twice[0]!r:.100} is there twice, so nothing can tell the two apart.",
                remedy="Give each level a description of its own.",
            )


@dataclass(frozen=True)
class BoxQuestion:
    """Asks where something is in the picture.

    Attributes:
        instructions: What is to be found.

    Raises:
        InvalidRequestError: The instructions are empty.
    """

    type: ClassVar[Literal["box"]] = "box"
    instructions: Content

    def __post_init__(self) -> None:
        _check_instructions(self.instructions)


DecisionQuestion: TypeAlias = YesNoQuestion | ChoiceQuestion | ScoreQuestion | BoxQuestion


def parts_of(content: Content) -> tuple[str | ImagePart, ...]:
    """Its texts and pictures."""
    return (content,) if isinstance(content, (str, ImagePart)) else tuple(content)


def _check_instructions(instructions: Content) -> None:
    if not any(isinstance(part, ImagePart) or part.strip() for part in parts_of(instructions)):
        raise InvalidRequestError(
            f"The instructions {instructions!r:.100} are empty.", remedy="Write the whole question there."
        )


def _check_count(given: Sequence[object], wanted: int, of_what: str) -> None:
    if given and len(given) != wanted:
        raise InvalidRequestError(
            f"There are {len(given)} descriptions for {wanted} {of_what}.",
            remedy="Give one for each, or none.",
        )
