"""Batches: pages, and slots of a question and its answer packed behind each page.

Slots stand side by side behind the page; each sees the page and itself only, and its positions start where
the page ends, so that a packed row equals that many separate conversations while the page is encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from sgl_engine.demo.drawing import SIZE, Question
from sgl_engine.demo.pages import Page, draw_page, pick_questions
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.demo.pages.generator import SAMPLERS, TRANSCRIPTION, Split
from sgl_engine.demo.pages.layout import SHARES
from sgl_engine.demo.vocabulary import TRANSCRIBE
from training.dense import batch_facts
from training.tokenizer import ASSISTANT, END, IMAGE, IMAGE_END, IMAGE_START, MEAN, PAD, STD, USER


class Layout(NamedTuple):
    """Slots behind a page, tokens in each, and how often a batch is laid out so."""

    slots: int
    length: int
    share: float


SHORT, LONG, WHOLE = LAYOUTS = (Layout(32, 10, 0.46), Layout(20, 15, 0.29), Layout(4, 160, 0.25))
"""Short questions, long ones first, and transcriptions."""
THIN = Layout(12, 15, 0.0)
"""Where tokens are missing, few questions, so that their evidence is a small part of a page."""
LATE = (1, 4, 9)
"""After how many of 24 layers pruning leaves out what it leaves out, at 9, 35 and 64 % (``PRESETS``)."""
PAGES = {1: 6, 2: 4, 3: 3, 4: 2, 6: 2}
"""Pages of a batch, by their number of tiles: about as many tokens whatever the size."""


class Hard(NamedTuple):
    """Pages of what is learnt slowly: what stands on them, how often they are of which size, their share."""

    only: tuple[str, ...]
    sizes: dict[int, float]
    share: float


HARD = (
    Hard(("table", "scene", "lines"), {1: 0.3, 2: 0.2, 4: 0.35, 6: 0.15}, 0.65),
    Hard(("document",), {2: 0.2, 4: 0.5, 6: 0.3}, 0.35),
)
"""A model that knew the rest read half of the cells of its tables, and seldom knew which of two documents,
rare on other pages, says a thing. Small pages show three times as many parts a second."""


@dataclass
class Batch:
    """One step's material. T: tiles of a page; V: visual tokens kept; N: slots; L: tokens in a slot.

    Attributes:
        pixels: float32 (B * T, 3, 192, 192), normalised as the processor does.
        kept: int64 (B, V): which of a page's T * 144 visual tokens are there, ascending.
        left: int64 (B, W): which of them are left after the first layers, ascending; None: all.
        after: How many layers see them all, where some are not left.
        ids: int64 (B, 3 + V + N * L).
        positions: int64 (B, 3 + V + N * L); those of tokens that are left do not change.
        labels: int64 (B, N * L): the token that should come next, -100 where none is asked.
        slots: N.
        facts: int64 (B, T * 144, sorts): what each visual token holds, those that are left out included, as
            far as its tile tells.
        bound: int64 (B, T * 144, sorts): the same, as far as the page tells.
        kinds: Kind of the question to which each answer belongs, in the order of ``answers``.
        answers: (row, first, stop) of every answer within ``labels``.
    """

    pixels: torch.Tensor
    kept: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    slots: int
    facts: torch.Tensor
    bound: torch.Tensor
    kinds: list[str]
    answers: list[tuple[int, int, int]]
    left: torch.Tensor | None = None
    after: int = 0

    @property
    def prefix(self) -> int:
        """Tokens before the slots."""
        return self.kept.shape[1] + 3


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
    """Draws pages and packs them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Keep the tokenizer and the ids of its special tokens."""
        self.tokenizer = tokenizer
        names = (PAD, END, USER, ASSISTANT, IMAGE, IMAGE_START, IMAGE_END)
        self.id = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        self.cache: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        """Ids of a text; short ones are remembered."""
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer(text).input_ids
        return self.cache[text]

    def batch(
        self,
        seed: int,
        *,
        part: int = 0,
        split: Split = "train",
        layout: Layout | None = None,
        tiles: int | None = None,
        thin: bool = False,
        late: bool = False,
        hard: bool = False,
    ) -> Batch:
        """The batch of this seed.

        Args:
            seed: A non-negative integer.
            part: Which of the batches of this seed: all are of one size, and each has other pages.
            split: Where its pages come from.
            layout: None draws one.
            tiles: Of every page; None draws how many.
            thin: Leave out most visual tokens, but none that the questions' evidence covers.
            late: Leave them out after one of the layers of :data:`LATE`, as pruning does.
            hard: Only pages of what is learnt slowly, most of them small.
        """
        rng = np.random.default_rng((seed, 5))
        sizes, only = SHARES, tuple(SAMPLERS)
        if hard:
            slow = HARD[int(rng.choice(len(HARD), p=[each.share for each in HARD]))]
            sizes, only = slow.sizes, slow.only
        drawn = int(rng.choice(list(sizes), p=list(sizes.values())))
        tiles = tiles or drawn
        shares = [each.share for each in LAYOUTS]
        chosen = LAYOUTS[int(rng.choice(len(LAYOUTS), p=shares))]
        layout = THIN if thin else layout or chosen
        first = 16 * (seed + 5_000_000 * part)  # runs have seeds 10,000,000 apart
        pages = [draw_page(first + i, split=split, tiles=tiles, only=only) for i in range(PAGES[tiles])]
        asked = [self._turns(page, rng, layout) for page in pages]
        # No wider than what is asked: half of the slots' tokens would be empty else.
        longest = max(turn.size for turns in asked for turn in turns)
        layout = layout._replace(slots=max(map(len, asked)), length=longest)
        kept = torch.arange(tiles * TOKENS).repeat(len(pages), 1)
        if not thin:
            return self._lay_out(pages, asked, kept, layout, tiles)
        left = torch.from_numpy(_thinned(pages, asked, tiles, rng))
        if not late:
            return self._lay_out(pages, asked, left, layout, tiles)
        batch = self._lay_out(pages, asked, kept, layout, tiles)
        return replace(batch, left=left, after=int(rng.choice(LATE)))

    def alone(self, page: Page, question: Question) -> Batch:
        """A batch of one question about one page, all of which is there."""
        turn = Turn(self.tokens(question.text), self.tokens(question.answer), question)
        tiles = page.rows * page.columns
        kept = torch.arange(tiles * TOKENS)[None]
        return self._lay_out([page], [[turn]], kept, Layout(1, turn.size, 0.0), tiles)

    def _turns(self, page: Page, rng: np.random.Generator, layout: Layout) -> list[Turn]:
        # Transcriptions have a layout of their own: no other has room for them.
        asked = [q for q in page.questions if (q.kind == TRANSCRIPTION) == (layout is WHOLE)]
        picked = pick_questions(asked, rng, 3 * layout.slots)
        if layout is WHOLE:
            picked.insert(0, everything(page))
        turns = [Turn(self.tokens(q.text), self.tokens(q.answer), q) for q in picked]
        if layout is LONG:  # the other layout has no room for the longer ones
            turns.sort(key=lambda turn: turn.size <= SHORT.length)
        return [turn for turn in turns if turn.size <= layout.length][: layout.slots]

    def _lay_out(
        self, pages: list[Page], asked: list[list[Turn]], kept: torch.Tensor, layout: Layout, tiles: int
    ) -> Batch:
        prefix, full = kept.shape[1] + 3, tiles * TOKENS + 3
        ids = torch.full((len(pages), prefix + layout.slots * layout.length), self.id[PAD])
        ids[:, 0], ids[:, 1] = self.id[USER], self.id[IMAGE_START]
        ids[:, 2 : prefix - 1], ids[:, prefix - 1] = self.id[IMAGE], self.id[IMAGE_END]
        behind = torch.arange(full, full + layout.length).repeat(layout.slots)
        edges = [torch.tensor([0, 1]), torch.cat([torch.tensor([full - 1]), behind])]
        positions = torch.cat(
            [edges[0].expand(len(pages), -1), kept + 2, edges[1].expand(len(pages), -1)], dim=1
        )
        labels = torch.full((len(pages), layout.slots * layout.length), -100)
        facts, bound = batch_facts(pages), batch_facts(pages, across=True)
        batch = Batch(_pixels(pages), kept, ids, positions, labels, layout.slots, facts, bound, [], [])
        for row, turns in enumerate(asked):
            for slot, turn in enumerate(turns):
                self._fill(batch, row, slot * layout.length, turn)
        return batch

    def _fill(self, batch: Batch, row: int, at: int, turn: Turn) -> None:
        """Write a turn into the slot that starts ``at`` tokens behind the page."""
        text = [*turn.question, self.id[ASSISTANT], *turn.answer]
        start = batch.prefix + at
        batch.ids[row, start : start + len(text)] = torch.tensor(text)
        stop = at + len(text)
        first = stop - len(turn.answer) - 1
        batch.labels[row, first:stop] = torch.tensor([*turn.answer, self.id[END]])
        batch.kinds.append(turn.asked.kind)
        batch.answers.append((row, first, stop))


def everything(page: Page) -> Question:
    """What an index asks of a picture: all that it says; not asked where no slot has room for it."""
    said = ", ".join(content.transcription for content in page.contents)
    return Question(TRANSCRIBE, said, TRANSCRIPTION)


def _pixels(pages: list[Page]) -> torch.Tensor:
    """All tiles of all pages, row by row within a page, normalised."""
    stacked = np.stack([page.pixels for page in pages]).astype(np.float32)
    rows, columns = pages[0].rows, pages[0].columns
    tiles = stacked.reshape(len(pages), rows, SIZE, columns, SIZE, 3).transpose(0, 1, 3, 5, 2, 4)
    flat = np.ascontiguousarray(tiles.reshape(-1, 3, SIZE, SIZE))
    return torch.from_numpy((flat / 255 - MEAN[0]) / STD[0])


def _thinned(pages: list[Page], asked: list[list[Turn]], tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Which tokens are left, int64 (pages, kept): all evidence, and others at random up to 6 to 50 %."""
    needed = []
    for page, turns in zip(pages, asked, strict=True):
        boxes = [box for turn in turns for box in turn.asked.evidence]
        needed.append(evidence_tokens(boxes, page.rows, page.columns))
    count = max(int(TOKENS * tiles * rng.uniform(0.06, 0.5)), *(len(need) for need in needed), 1)
    rows = []
    for need in needed:
        # Some tiles go nearly whole, as a small model's map leaves them out.
        weight = rng.random(TOKENS * tiles) * np.repeat(rng.choice([0.3, 1.0], tiles), TOKENS)
        weight[need] = 2.0
        rows.append(np.sort(np.argsort(-weight)[:count]))
    return np.stack(rows)
