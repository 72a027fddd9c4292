"""What clients send to have questions decided: OpenAI's fields, and ``sgl``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from sgl_engine.decisions import MAX_LABELS, MAX_QUESTIONS, LabelWay
from sgl_engine.server.fields import Body, PassFields

Said: TypeAlias = str | Annotated[list[dict[str, Any]], Field(min_length=1)]
"""A text, or parts: texts, pictures and JSON."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChoiceField(_Strict):
    """One choice: ``True`` and "true" are different ones."""

    value: StrictBool | Annotated[StrictStr, Field(min_length=1)]
    description: str | None = None


class LevelField(_Strict):
    """One level of a score."""

    label: Annotated[str, Field(min_length=1)]
    description: str | None = None


class PredicateField(_Strict):
    """How likely a statement is true."""

    type: Literal["predicate"]
    name: str | None = None
    instructions: Said


class ChoiceQuestionField(_Strict):
    """Which of some choices fits."""

    type: Literal["choice"]
    name: str | None = None
    instructions: Said
    choices: Annotated[list[ChoiceField], Field(min_length=2, max_length=MAX_LABELS)]


class ScoreField(_Strict):
    """How much, by ordered levels."""

    type: Literal["score"]
    name: str | None = None
    instructions: Said
    levels: Annotated[list[LevelField], Field(min_length=2, max_length=MAX_LABELS)]


QuestionField: TypeAlias = Annotated[
    PredicateField | ChoiceQuestionField | ScoreField, Field(discriminator="type")
]


class DecideFields(PassFields):
    """Settings of questions; as of ``DecisionConfig``, and None is the server's.

    Attributes:
        labels: How the labels of a choice are compared.
        permutations: In so many orders the answers are listed; probabilities are averaged.
    """

    labels: LabelWay | None = None
    permutations: Annotated[int, Field(ge=1, le=24)] | None = None


class DecisionsBody(Body):
    """``POST /v1/decisions``.

    Attributes:
        input: What all questions are about: a text, or messages and calls in their order.
        questions: As many as OpenAI takes.
        cache_salt: As of a chat.
    """

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    questions: Annotated[list[QuestionField], Field(min_length=1, max_length=MAX_QUESTIONS)]
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    sgl: DecideFields = DecideFields()
