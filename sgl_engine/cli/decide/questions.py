"""A file of questions -> the questions, by name.

The file holds an object of questions by their names, as LangChain's decision models take them, or a list of
questions with names, as OpenAI's do; either names of types and fields may be used in either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sgl_engine import ConfigError, InvalidRequestError
from sgl_engine.decisions import (
    BoxQuestion,
    ChoiceQuestion,
    Content,
    DecisionQuestion,
    ScoreQuestion,
    YesNoQuestion,
    as_content,
)

_REMEDY = (
    'Write {"legible": {"type": "yes_no", "instructions": "Is the text legible?"}, ...}; the types are '
    "yes_no, choice (with choices), score (with levels) and box."
)
Text = Annotated[str, Field(min_length=1)]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str | None = None


class _ChoiceRow(_Described):
    value: Text | bool


class _LevelRow(_Described):
    label: Text


class QuestionRow(BaseModel):
    """One question of the file.

    Attributes:
        type: "noul" and "predicate" are "yes_no".
        name: Where the file is a list.
        instructions: The whole question.
        choices: Of a choice: labels, or objects with ``value`` and ``description``.
        levels: Of a score, the least first: labels, or objects with ``label`` and ``description``.
        criteria: Instead: of a choice, descriptions by label; of a score, descriptions of the levels; of
            "yes_no", what "true" and "false" mean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["yes_no", "noul", "predicate", "choice", "score", "box"]
    name: Text | None = None
    instructions: Text | dict[str, Any] | list[Any]
    choices: list[_ChoiceRow | Text] | None = None
    levels: list[_LevelRow | Text] | None = None
    criteria: dict[str, Any] | list[Any] | None = None

    def question(self) -> DecisionQuestion:
        """The question.

        Raises:
            InvalidRequestError: It cannot be asked, or has fields that its type does not take.
        """
        asked, taken = as_content(self.instructions), {"choice": "choices", "score": "levels"}.get(self.type)
        others = [name for name in ("choices", "levels") if name != taken and getattr(self, name) is not None]
        own = None if taken is None else getattr(self, taken)
        if others or (own is not None and self.criteria is not None):
            wrong = others[0] if others else f"{taken} and criteria"
            raise InvalidRequestError(f"A question of type {self.type} has {wrong}.", remedy=_REMEDY)
        if self.type == "box":
            if self.criteria is not None:
                raise InvalidRequestError("A question of type box has criteria.", remedy=_REMEDY)
            return BoxQuestion(asked)
        if self.type == "choice":
            return self._choice(asked)
        return self._score(asked) if self.type == "score" else self._yes_no(asked)

    def _yes_no(self, asked: Content) -> YesNoQuestion:
        criteria = self.criteria or {}
        if not isinstance(criteria, dict) or set(criteria) - {"true", "false"}:
            raise InvalidRequestError(
                f"{self.criteria!r:.100} are no criteria of yes and no.", remedy=_REMEDY
            )
        return YesNoQuestion(asked, yes=_meaning(criteria.get("true")), no=_meaning(criteria.get("false")))

    def _choice(self, asked: Content) -> ChoiceQuestion:
        if isinstance(self.criteria, dict):
            return ChoiceQuestion(
                asked, list(self.criteria), [_meaning(each) for each in self.criteria.values()]
            )
        if self.choices is None:
            raise InvalidRequestError("A choice has neither choices nor criteria by label.", remedy=_REMEDY)
        rows = [each if isinstance(each, _ChoiceRow) else _ChoiceRow(value=each) for each in self.choices]
        labels = [str(row.value).lower() if isinstance(row.value, bool) else row.value for row in rows]
        return ChoiceQuestion(asked, labels, [row.description for row in rows])

    def _score(self, asked: Content) -> ScoreQuestion:
        if isinstance(self.criteria, list):
            return ScoreQuestion(asked, [as_content(each) for each in self.criteria])
        if self.levels is None:
            raise InvalidRequestError("A score has neither levels nor a list of criteria.", remedy=_REMEDY)
        rows = [each if isinstance(each, _LevelRow) else _LevelRow(label=each) for each in self.levels]
        return ScoreQuestion(
            asked, [f"{row.label}: {row.description}" if row.description else row.label for row in rows]
        )


def _meaning(value: Any) -> Content | None:
    return None if value is None else as_content(value)


_FILE: TypeAdapter[dict[str, QuestionRow] | list[QuestionRow]] = TypeAdapter(
    dict[str, QuestionRow] | list[QuestionRow]
)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its members; JSON's readers keep the last of one name and lose the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice!r:.60} twice in one object")
    return found


def read_questions(path: Path) -> tuple[Mapping[str, DecisionQuestion], str]:
    """Reads a file of questions.

    Returns:
        The questions; and all that is asked as one text, the same for the same questions.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        data = json.loads(text, object_pairs_hook=_without_twins)
        asked = json.dumps(data, ensure_ascii=False)
        asked.encode()  # half a surrogate pair is no text: no model reads it, and no row can hold it
        rows = _FILE.validate_python(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}).", remedy="Check its name.") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error, data)}.", remedy=_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON ({error}).", remedy=_REMEDY) from error
    named = (
        rows if isinstance(rows, dict) else {row.name or str(n): row for n, row in enumerate(rows, start=1)}
    )
    if len(named) < len(rows) or not rows:
        wrong = "Two questions have one name." if rows else "There are no questions."
        raise ConfigError(f"{path}: {wrong}", remedy=_REMEDY)
    questions = {}
    for name, row in named.items():
        try:
            questions[name] = row.question()
        except InvalidRequestError as error:
            raise ConfigError(
                f"{path}, question {name!r:.60}: {error.problem}", remedy=error.remedy
            ) from error
    return questions, asked


def _first(error: ValidationError, data: Any) -> str:
    """What is wrong first, where the file has the form that was tried."""
    tried = "dict" if isinstance(data, dict) else "list"
    faults = error.errors(include_url=False)
    fault = next((each for each in faults if str(each["loc"][0]).startswith(tried)), faults[0])
    where = ".".join(str(step) for step in fault["loc"][1:])
    return f"{where}: {fault['msg']}" if where else fault["msg"]
