"""Typed questions about held-out pages, with what is right: to calibrate and measure the bundled pair by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sgl_engine.decisions import (
    BoxQuestion,
    ChoiceQuestion,
    DecisionConfig,
    DecisionQuestion,
    QuestionType,
    ScoreQuestion,
    YesNoQuestion,
)
from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages.generator import Page, draw_page
from sgl_engine.demo.vocabulary import COLORS, NONE, SHAPES

if TYPE_CHECKING:
    from sgl_engine.prompt import Box

DEMO_DECISIONS = DecisionConfig(form="bare")
"""How the bundled pair is asked: it was trained on bare questions."""
_LEVELS = tuple(str(level) for level in range(9))
_NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)


@dataclass(frozen=True, eq=False)
class GeneratedDecision:
    """One question, and what is right.

    Attributes:
        seed: Of the page.
        image: The page.
        question: What is asked.
        truth: "yes" or "no", the label, or the number of the level, as ``said`` writes it; "" for a box.
        evidence: Of a box: the smallest box around what answers the question.
    """

    seed: int
    image: Image.Image
    question: DecisionQuestion
    truth: str
    evidence: Box | None = None


def generated_decisions(kind: QuestionType, count: int, *, start: int = 0) -> Iterator[GeneratedDecision]:
    """So many questions of one type, one a page, from page ``start`` on; pages without one are left out.

    Yes or no: is one bar higher than another. Choice: a colour of 8, a shape of 6, or one of 48 names and
    "none", which differ in length. Score: how many shapes there are, 0 to 8. Box: any question whose answer
    stands in one place.
    """
    seed, found = start, 0
    while found < count:
        page = draw_page(seed, tiles=1)
        suited = [each for each in (_decision(page, asked, kind) for asked in page.questions) if each]
        if suited:
            drawn = np.random.default_rng((seed, 23))
            counts = sorted({_options(each.question) for each in suited})
            wanted = counts[int(drawn.integers(len(counts)))]  # each set of labels equally often
            suited = [each for each in suited if _options(each.question) == wanted]
            yield suited[int(drawn.integers(len(suited)))]
            found += 1
        seed += 1


def _decision(page: Page, asked: Question, kind: QuestionType) -> GeneratedDecision | None:
    question, truth = _typed(asked, kind)
    if question is None:
        return None
    height, width = page.pixels.shape[:2]
    evidence = None
    if kind == "box":
        [(x0, y0, x1, y1)] = asked.evidence
        evidence = (x0 / width, y0 / height, x1 / width, y1 / height)
    return GeneratedDecision(page.seed, Image.fromarray(page.pixels), question, truth, evidence)


def _typed(asked: Question, kind: QuestionType) -> tuple[DecisionQuestion | None, str]:
    """A generated question as one of a type; None where it is none."""
    if kind == "box" and len(asked.evidence) == 1 and asked.kind != "transcribe":
        return BoxQuestion(asked.text), ""
    if kind == "yes_no" and asked.answer in ("yes", "no"):
        return YesNoQuestion(asked.text), asked.answer
    if kind == "score" and asked.kind == "scene count" and asked.answer in _LEVELS:
        return ScoreQuestion(asked.text, _LEVELS), asked.answer
    if kind == "choice":
        labels = _labels(asked)
        if labels:
            return ChoiceQuestion(asked.text, labels), asked.answer
    return None, ""


def _labels(asked: Question) -> Sequence[str]:
    if asked.answer in COLORS:
        return COLORS
    if asked.answer in SHAPES:
        return SHAPES
    return (*_NAMES, NONE) if asked.answer in _NAMES else ()


def _options(question: DecisionQuestion) -> int:
    return len(question.labels) if isinstance(question, ChoiceQuestion) else 0
