"""Batches: pictures, dense facts, and slots of question-answer turns packed behind each picture.

Slots stand side by side behind the picture; each sees the picture and itself only, and its positions start
where the picture ends, so that a packed row equals that many separate conversations while the picture is
encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from sgl_engine.demo.drawing import GRID, PATCH, SIZE, Question
from sgl_engine.demo.generator import Sample, Split, draw_sample, pick_questions
from sgl_engine.demo.vocabulary import CHARACTER_CLASSES, FACTS, TRANSCRIBE
from training.tokenizer import ASSISTANT, END, IMAGE, IMAGE_END, IMAGE_START, MEAN, PAD, STD, USER

FACT_INDEX = {name: index for index, name in enumerate(FACTS)}
# (slots, tokens per slot, share of batches): short questions, longer ones, two turns, transcriptions with
# conversations of several turns.
LAYOUTS = ((21, 12, 0.40), (16, 16, 0.36), (8, 32, 0.09), (3, 80, 0.15))
SINGLE = 16
"""Slots of at most so many tokens hold one question each."""


@dataclass
class Batch:
    """One step's material. P: tokens before the slots; N: slots; T: tokens in a slot; V: visual tokens.

    Attributes:
        pixels: float32 (B, 3, 192, 192), normalised as the processor does.
        ids: int64 (B, P + N * T).
        positions: int64 (1, P + N * T).
        labels: int64 (B, N * T): the token that should come next, -100 where none is asked.
        facts: int64 (B, V, facts).
        prefix: P.
        slots: N.
        kinds: Kind of the question to which each answer belongs, in the order of ``answers``.
        answers: (row, first, stop) of every answer within ``labels``.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    facts: torch.Tensor
    prefix: int
    slots: int
    kinds: list[str]
    answers: list[tuple[int, int, int]]


class Turn(NamedTuple):
    """A question as tokens, its answer as tokens, and where both come from."""

    question: list[int]
    answer: list[int]
    asked: Question

    @property
    def size(self) -> int:
        """Tokens that the turn takes as input: all but the end of the answer, which is only predicted."""
        return len(self.question) + 1 + len(self.answer)


class Packer:
    """Draws pictures and packs them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, patch: int = PATCH) -> None:
        """Keep the tokenizer, the ids of its special tokens, and how many patches a picture has."""
        self.tokenizer, self.grid = tokenizer, SIZE // patch
        self.id = {name: tokenizer.convert_tokens_to_ids(name) for name in (PAD, END, USER, ASSISTANT)}
        self.head = tokenizer.convert_tokens_to_ids([USER, IMAGE_START, *[IMAGE] * self.grid**2, IMAGE_END])
        self.cache: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        """Ids of a text; short ones are remembered."""
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer(text).input_ids
        return self.cache[text]

    def batch(self, seed: int, size: int, *, split: Split = "train", layout: int | None = None) -> Batch:
        """The batch of this seed: ``size`` pictures in one of the layouts."""
        rng = np.random.default_rng((seed, 5))
        if layout is None:
            layout = int(rng.choice(len(LAYOUTS), p=[share for *_, share in LAYOUTS]))
        slots, length, _ = LAYOUTS[layout]
        samples = [draw_sample(seed * size + i, split=split) for i in range(size)]
        prefix = len(self.head)
        ids = torch.full((size, prefix + slots * length), self.id[PAD])
        ids[:, :prefix] = torch.tensor(self.head)
        pixels = np.stack([sample.pixels for sample in samples]).transpose(0, 3, 1, 2)
        positions = [torch.arange(prefix), torch.arange(prefix, prefix + length).repeat(slots)]
        batch = Batch(
            pixels=torch.from_numpy((pixels.astype(np.float32) / 255 - MEAN[0]) / STD[0]),
            ids=ids,
            positions=torch.cat(positions)[None],
            labels=torch.full((size, slots * length), -100),
            facts=torch.from_numpy(np.stack([dense_facts(sample, self.grid) for sample in samples])),
            prefix=prefix,
            slots=slots,
            kinds=[],
            answers=[],
        )
        for row, sample in enumerate(samples):
            turns = self._turns(sample, rng, slots, length)
            for slot in range(slots):
                self._fill(batch, row, slot, length, turns)
        return batch

    def _turns(self, sample: Sample, rng: np.random.Generator, slots: int, length: int) -> list[Turn]:
        picked = pick_questions(sample, rng, 4 * slots)
        turns = [Turn(self.tokens(q.text), self.tokens(q.answer), q) for q in picked]
        if length == LAYOUTS[-1][1]:  # the transcription first: it needs a slot of its own
            turns.sort(key=lambda turn: turn.asked.text.lower() != TRANSCRIBE)
        if length == SINGLE:  # the other layout of single questions has no room for long ones
            turns.sort(key=lambda turn: turn.size <= LAYOUTS[0][1])
        return [turn for turn in turns if turn.size <= length]

    def _fill(self, batch: Batch, row: int, slot: int, length: int, turns: list[Turn]) -> None:
        """Write turns into one slot until the next does not fit; single questions where slots are short."""
        labels, start = batch.labels[row], slot * length
        at = start
        while turns:
            turn = turns[0]
            opening = [] if at == start else [self.id[END], self.id[USER]]
            text = [*opening, *turn.question, self.id[ASSISTANT], *turn.answer]
            if at + len(text) > start + length:
                break
            turns.pop(0)
            batch.ids[row, batch.prefix + at : batch.prefix + at + len(text)] = torch.tensor(text)
            at += len(text)
            first = at - len(turn.answer) - 1
            labels[first:at] = torch.tensor([*turn.answer, self.id[END]])
            batch.kinds.append(turn.asked.kind)
            batch.answers.append((row, first, at))
            if length <= SINGLE:
                break


def nearest_cells(grid: int, other: int) -> np.ndarray:
    """For each cell of grid x grid that of other x other in which its centre lies, int64 (grid * grid,)."""
    nearest = ((np.arange(grid) + 0.5) * other / grid).astype(np.int64)
    return (nearest[:, None] * other + nearest).ravel()


def dense_facts(sample: Sample, grid: int = GRID) -> np.ndarray:
    """What each patch holds, int64 (patches, facts); 0 where nothing.

    Regions are known on GRID x GRID; on another grid, a patch takes what holds at its centre.
    """
    facts = np.zeros((GRID * GRID, len(FACTS)), np.int64)
    for region in sample.regions:
        for name, value in region.facts.items():
            facts[list(region.cells), FACT_INDEX[name]] = value
    facts = facts[nearest_cells(grid, GRID)]
    for mark in sorted(sample.glyphs, key=lambda mark: mark.x):
        if not (0 <= mark.x < SIZE and 0 <= mark.y < SIZE):
            continue
        cell = int(mark.y * grid // SIZE) * grid + int(mark.x * grid // SIZE)
        slot = FACT_INDEX["glyph0"] if facts[cell, FACT_INDEX["glyph0"]] == 0 else FACT_INDEX["glyph1"]
        facts[cell, slot] = CHARACTER_CLASSES[mark.character.lower()]
    return facts
