"""How a question becomes a prompt, and which texts count as which answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from string import ascii_uppercase
from typing import Any, Protocol

from sgl_engine import ConfigError, ImagePart, InvalidRequestError
from sgl_engine.decisions.questions import (
    BoxQuestion,
    Content,
    DecisionQuestion,
    ScoreQuestion,
    YesNoQuestion,
    parts_of,
)
from sgl_engine.decisions.settings import LabelWay

POINT = (
    "Answer with its bounding box as JSON: [left, top, right, bottom], whole numbers from 0 to 1000, "
    "counted from the picture's upper left corner."
)
"""How a model that has learnt to point is asked for a box."""


@dataclass(frozen=True)
class Option:
    """One of the answers that a question allows.

    Attributes:
        says: Texts that are this answer, as a whole.
        begins: Texts that are, whatever follows them.
        rest: Whether everything else is this answer; of one option at most.
    """

    says: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    rest: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that are scored for it."""
        return (*self.says, *self.begins)


@dataclass(frozen=True)
class PutQuestion:
    """A question as a model is asked.

    Attributes:
        content: What is said after the state.
        options: The answers that it allows, in the order of the question's labels or levels, whatever order
            the prompt has; yes before no. None for a box.
        whole: Whether probabilities of whole texts are compared, and not those of a token on average.
        point: What is said after the content of a box where coordinates are wanted.
    """

    content: tuple[str | ImagePart, ...]
    options: tuple[Option, ...] = ()
    whole: bool = True
    point: str = ""


class PromptForm(Protocol):
    """Puts questions: what a model of one kind is asked."""

    def put(self, question: DecisionQuestion, order: Sequence[int], labels: LabelWay) -> PutQuestion:
        """Puts one question.

        Args:
            question: The question.
            order: In which order labels, levels, or yes and no are listed: a permutation of their numbers.
            labels: How the labels of a choice are compared.

        Raises:
            InvalidRequestError: It cannot be put in this form.
        """


class InstructedForm:
    """For models that follow instructions: everything that can be answered is listed in the prompt."""

    def put(self, question: DecisionQuestion, order: Sequence[int], labels: LabelWay) -> PutQuestion:
        """Lists the answers in the given order, and asks for one of them alone."""
        asked = parts_of(question.instructions)
        if isinstance(question, BoxQuestion):
            return PutQuestion(("Locate: ", *asked), point=f"\n{POINT}")
        if isinstance(question, YesNoQuestion):
            return self._yes_no(question, order)
        if isinstance(question, ScoreQuestion):
            numbers = [str(level) for level in range(len(question.levels))]
            listed = _listed([f"{n}: " for n in numbers], question.levels, order)
            end = "Answer with the number of the level alone."
            options = tuple(Option((number,)) for number in numbers)
            return PutQuestion((*asked, "\nThe levels:\n", *listed, end), options)
        descriptions = question.descriptions or [None] * len(question.labels)
        if labels == "letters":
            letters = letters_for(len(question.labels))
            own = {label: letters[place] for place, label in enumerate(order)}
            names = [f"{own[number]}. {label}" for number, label in enumerate(question.labels)]
            options = tuple(Option((own[number],)) for number in range(len(names)))
            end, whole = "Answer with the letter alone.", True
        else:
            names = [f"- {label}" for label in question.labels]
            options = tuple(Option((label,)) for label in question.labels)
            end, whole = "Answer with one of these alone, as it is written.", labels == "sum"
        lines = [(f"{name}: " if about else name) for name, about in zip(names, descriptions, strict=True)]
        return PutQuestion((*asked, "\n", *_listed(lines, descriptions, order), end), options, whole)

    def _yes_no(self, question: YesNoQuestion, order: Sequence[int]) -> PutQuestion:
        about = (question.yes, question.no)
        words = ("Yes", "No")
        listed = [number for number in order if about[number]]
        lines = _listed([f"{word}: " for word in words], about, listed)
        end = f"Answer {words[order[0]]} or {words[order[1]]}."
        options = tuple(Option((word, word.lower(), word.upper())) for word in words)
        return PutQuestion((*parts_of(question.instructions), "\n", *lines, end), options)


class BareForm:
    """For models that were trained on bare questions: nothing is added, and labels are said as they are.

    Descriptions are left out; letters are listed, as there is no other way to give them a meaning.
    """

    def put(self, question: DecisionQuestion, order: Sequence[int], labels: LabelWay) -> PutQuestion:
        """Asks the instructions alone."""
        asked = parts_of(question.instructions)
        if isinstance(question, BoxQuestion):
            return PutQuestion(asked, point=f"\n{POINT}")
        if isinstance(question, YesNoQuestion):
            return PutQuestion(asked, (Option(("yes",)), Option(("no",))))
        if isinstance(question, ScoreQuestion):
            return PutQuestion(asked, tuple(Option((_text(level),)) for level in question.levels))
        if labels == "letters":
            return InstructedForm().put(question, order, labels)
        return PutQuestion(asked, tuple(Option((label,)) for label in question.labels), labels == "sum")


FORMS: dict[str, PromptForm] = {"instructed": InstructedForm(), "bare": BareForm()}


def find_form(form: Any) -> PromptForm:
    """Looks a form up by its name; an own one is taken as it is.

    Raises:
        ConfigError: There is no such form.
    """
    found: Any = FORMS.get(form) if isinstance(form, str) else form
    if not hasattr(found, "put"):
        raise ConfigError(
            f"There is no form {form!r} of questions.",
            remedy=f"Use one of {', '.join(FORMS)}, or an object with a method put.",
        )
    return found  # type: ignore[no-any-return]  # has the method; Any, as settings take any object


def letters_for(count: int) -> list[str]:
    """Names for so many labels: A to Z; from 27 labels on AA, AB, ..., all of two letters."""
    if count <= len(ascii_uppercase):
        return list(ascii_uppercase[:count])
    return ["".join(pair) for pair in product(ascii_uppercase, repeat=2)][:count]


def _text(content: Content) -> str:
    """Content that has to be a text, because it is scored."""
    parts = parts_of(content)
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise InvalidRequestError(
            "A level of a score is a picture, which cannot be scored as an answer.",
            remedy="Describe levels by texts, or use a form that numbers them.",
        )
    return "".join(texts)


def _listed(
    names: Sequence[str], about: Sequence[Content | None], order: Sequence[int]
) -> list[str | ImagePart]:
    """A line for each, in the given order: its name, and what it means."""
    lines: list[str | ImagePart] = []
    for number in order:
        content = about[number]
        lines += [names[number], *(() if content is None else parts_of(content)), "\n"]
    return lines
