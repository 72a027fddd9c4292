"""Seeded pictures with questions: what the bundled pair was trained on and is tested on.

A picture's *content* (what it says, not how it is drawn) decides to which split it belongs, so that no
held-out content was ever seen in training, whatever the seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgl_engine.demo.charts import Chart, draw_chart, sample_chart
from sgl_engine.demo.documents import Document, draw_document, sample_document
from sgl_engine.demo.drawing import GlyphMark, Question, Region, Sheet
from sgl_engine.demo.scenes import Scene, draw_scene, sample_scene

Split = Literal["train", "heldout"]
Content = Document | Scene | Chart
FAMILIES = ("document", "scene", "chart")
SHARES = (0.40, 0.34, 0.26)
"""How often each family is drawn when none is asked for."""
HELDOUT_SHARE = 1 / 16


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture and all that is known about it.

    Attributes:
        seed: What it was drawn from.
        family: One of :data:`FAMILIES`.
        content: What it says.
        pixels: uint8 (192, 192, 3).
        questions: Every question about it, several hundred answers at most.
        regions: Facts about patches, for the dense training loss.
        glyphs: Every character drawn, for the same.
    """

    seed: int
    family: str
    content: Content
    pixels: NDArray[np.uint8]
    questions: tuple[Question, ...]
    regions: tuple[Region, ...]
    glyphs: tuple[GlyphMark, ...]


def split_of(content: Content) -> Split:
    """The split to which a content belongs: a fixed function of what the picture says."""
    return "heldout" if zlib.crc32(repr(content).encode()) < HELDOUT_SHARE * 2**32 else "train"


def draw_sample(seed: int, *, split: Split = "heldout", family: str | None = None) -> Sample:
    """Draw a picture: the same seed, split and family always give the same one.

    Args:
        seed: Any non-negative integer.
        split: "train" or "heldout"; contents of the other split are redrawn until one belongs.
        family: "document", "scene" or "chart"; by default a random one.
    """
    rng = np.random.default_rng((seed, 7 if split == "heldout" else 3))
    chosen = family if family is not None else FAMILIES[int(rng.choice(len(FAMILIES), p=SHARES))]
    content = _content(chosen, rng)
    while split_of(content) != split:
        content = _content(chosen, rng)
    sheet = Sheet(rng, dark=isinstance(content, Document) and bool(rng.random() < 0.12))
    if isinstance(content, Document):
        regions, questions = draw_document(content, sheet, rng)
    elif isinstance(content, Scene):
        regions, questions = draw_scene(content, sheet, rng)
    else:
        regions, questions = draw_chart(content, sheet, rng)
    pixels = sheet.finish(rng)
    questions = [_punctuate(question, rng) for question in questions]
    return Sample(seed, chosen, content, pixels, tuple(questions), tuple(regions), tuple(sheet.marks))


def _punctuate(question: Question, rng: np.random.Generator) -> Question:
    """Write half of the questions as a sentence: the tokenizer is uncased, the question mark is a token."""
    if rng.random() < 0.5 or question.text.split()[0] not in ("what", "which", "how", "is"):
        return question
    return replace(question, text=question.text[0].upper() + question.text[1:] + "?")


def _content(family: str, rng: np.random.Generator) -> Content:
    if family == "document":
        return sample_document(rng)
    if family == "scene":
        return sample_scene(rng)
    if family == "chart":
        return sample_chart(rng)
    raise ValueError(f"Unknown picture family {family!r}; use one of {', '.join(FAMILIES)}.")


def pick_questions(sample: Sample, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to ``count`` different questions about the sample, every kind equally likely at each draw."""
    pools: dict[str, list[Question]] = {}
    for index in rng.permutation(len(sample.questions)):
        question = sample.questions[int(index)]
        pools.setdefault(question.kind, []).append(question)
    picked: list[Question] = []
    while pools and len(picked) < count:
        kind = list(pools)[int(rng.integers(len(pools)))]
        picked.append(pools[kind].pop())
        if not pools[kind]:
            del pools[kind]
    return picked


def heldout_questions(count: int, *, start: int = 0) -> Iterator[tuple[Sample, Question]]:
    """``count`` held-out (picture, question) pairs: one per picture, kinds balanced within each family."""
    for seed in range(start, start + count):
        sample = draw_sample(seed, split="heldout")
        rng = np.random.default_rng((seed, 11))
        yield sample, pick_questions(sample, rng, 1)[0]
