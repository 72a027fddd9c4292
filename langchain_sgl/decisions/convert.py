"""LangChain's states, questions and answers <-> the engine's. Pure.

Pictures may be anywhere: in messages, and as image blocks at any depth of a state, an instruction or a
criterion. Other media are errors: a recording that is dropped in silence gives a confident wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.decisions import (
    Answer,
    Box,
    BoxAnswer,
    BoxCoordinates,
    Choice,
    ChoiceAnswer,
    Noul,
    NoulAnswer,
    Question,
    Score,
    ScoreAnswer,
)
from langchain_core.messages import BaseMessage
from pydantic import TypeAdapter, ValidationError

from langchain_sgl.chat.image_blocks import ACCEPTED, image_source, is_image, mime_type
from langchain_sgl.chat.messages import to_engine_messages
from sgl_engine import ImagePart, InvalidRequestError
from sgl_engine import decisions as ours

_MEDIA = frozenset("audio video input_audio input_video file input_file media document".split())
_TEXTS = frozenset("text input_text output_text".split())
_QUESTION: TypeAdapter[Any] = TypeAdapter(Question)


def to_state(state: Any, root: Path | None) -> Any:
    """Puts the engine's messages and pictures in the place of LangChain's, at any depth.

    Args:
        state: What a decision model is given.
        root: The only folder that image paths may name; None refuses paths.

    Raises:
        InvalidRequestError: A block of another medium, or a message that cannot be read.
        ImageError: A block that should hold an image does not.
    """
    if isinstance(state, BaseMessage):
        [message] = to_engine_messages([state], image_root=root)
        return message
    if isinstance(state, Mapping):
        return _block(state, root)
    if isinstance(state, Sequence) and not isinstance(state, (str, bytes, bytearray)):
        if state and all(isinstance(each, Mapping) and _is_content(each) for each in state):
            # Content blocks by themselves are what a message holds.
            return [each["text"] if each["type"] in _TEXTS else _block(each, root) for each in state]
        return [to_state(each, root) for each in state]
    return state


def _is_content(block: Mapping[str, Any]) -> bool:
    return is_image(block) or (block.get("type") in _TEXTS and isinstance(block.get("text"), str))


def _block(value: Mapping[str, Any], root: Path | None) -> Any:
    if is_image(value):
        return ImagePart(image_source(value, root))
    if value.get("type") in _MEDIA and value.keys() & {"url", "base64", "data", "file_id", "file", "path"}:
        kind = mime_type(value) or value["type"]
        raise InvalidRequestError(
            f"The state or a question holds {kind!r}, which no model here can read.",
            remedy=f"Send {ACCEPTED}.",
        )
    return {key: to_state(each, root) for key, each in value.items()}


def to_question(question: Any, root: Path | None) -> ours.DecisionQuestion:
    """Translates one question; a dictionary is read as one.

    Raises:
        InvalidRequestError: It is none, or cannot be asked.
        ImageError: A picture in it cannot be used.
    """
    if isinstance(question, Mapping):
        try:
            question = _QUESTION.validate_python(dict(question))
        except ValidationError as error:
            raise InvalidRequestError(
                f"{question!r:.100} is no question ({error.errors()[0]['msg']}).",
                remedy="Use Noul, Choice, Score or Box of langchain_core.decisions.",
            ) from error

    def content(value: Any) -> ours.Content:
        return ours.as_content(to_state(value, root))

    def known(value: Any) -> ours.Content | None:
        return None if value is None or value == "" else content(value)

    if isinstance(question, Noul):
        about = question.criteria
        yes, no = (None, None) if about is None else (about.true, about.false)
        return ours.YesNoQuestion(content(question.instructions), known(yes), known(no))
    if isinstance(question, Choice):
        labels = list(question.criteria)
        about_labels = [known(each) for each in question.criteria.values()]
        return ours.ChoiceQuestion(content(question.instructions), labels, about_labels)
    if isinstance(question, Score):
        return ours.ScoreQuestion(content(question.instructions), [content(c) for c in question.criteria])
    if isinstance(question, Box):
        return ours.BoxQuestion(content(question.instructions))
    raise InvalidRequestError(
        f"A question is a {type(question).__name__}.",
        remedy="Use Noul, Choice, Score or Box of langchain_core.decisions.",
    )


def to_answer(answer: ours.DecisionAnswer, question: Any) -> Answer:
    """Translates one answer; a refusal is none.

    Args:
        answer: The engine's.
        question: What was asked, in LangChain's terms; a score's answer repeats its rubric.
    """
    if isinstance(answer, ours.YesNoAnswer):
        return NoulAnswer(type="noul", noul=answer.probability)
    if isinstance(answer, ours.ChoiceAnswer):
        return ChoiceAnswer(
            type="choice",
            choice=answer.choice,
            probabilities=dict(answer.probabilities),
            confidence=answer.confidence,
        )
    if isinstance(answer, ours.ScoreAnswer):
        criteria = question["criteria"] if isinstance(question, Mapping) else question.criteria
        return ScoreAnswer(
            type="score",
            score=answer.score,
            legend=dict(enumerate(criteria)),
            probabilities=dict(enumerate(answer.probabilities)),
            confidence=answer.confidence,
        )
    assert isinstance(answer, ours.BoxAnswer), "a refusal is told apart before"
    left, top, right, bottom = answer.box
    return BoxAnswer(
        type="box",
        box=BoxCoordinates(top=top, bottom=bottom, left=left, right=right),
        confidence=answer.confidence,
    )
