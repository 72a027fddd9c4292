"""What the page says at each visual token: asked of tower and decoder directly, beside the answers.

An answer tells a tower little, and late; that the token at this square reads "milk" and "4.97" tells it all.
A tower sees one tile; which document a line stands on, and which row and column a cell is of, may take two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from sgl_engine.demo.drawing import PATCH, SIZE, Box
from sgl_engine.demo.pages import Page
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.demo.pages.stock import NOTES, RECEIPTS
from sgl_engine.demo.vocabulary import BARS, CHARACTERS, COLORS, FIELDS, ITEMS, SHAPES, VALUE_CHARACTERS

LABELS = (*ITEMS, *FIELDS, *BARS, *RECEIPTS, *NOTES, "form", "date")
END = "end"
WORDS: dict[str, tuple[str, ...]] = {
    "label": LABELS,
    "column": BARS,
    "color": COLORS,
    "shape": SHAPES,
    "document": (*RECEIPTS, *NOTES),
    **{f"value{index}": (*CHARACTERS, END) for index in range(VALUE_CHARACTERS)},
}
"""Words of each sort of fact; class 0 is "nothing here", real classes start at 1."""
CLASSES = {sort: {word: index + 1 for index, word in enumerate(words)} for sort, words in WORDS.items()}
DOCUMENT = list(WORDS).index("document")
ALIGNED = ("label", "color", "shape")
"""Sorts whose words are tokens of questions, towards whose embeddings visual tokens are drawn."""
BRIGHTNESS = 10.0
"""Scale of cosines in the softmax over words."""


def dense_facts(page: Page, *, across: bool = False) -> np.ndarray:
    """Class per token and sort, int64 (tokens, sorts): as far as its tile tells, or ``across`` tiles."""
    classes = np.zeros((page.rows * page.columns * TOKENS, len(WORDS)), np.int64)
    columns = list(WORDS)
    for fact in page.facts:
        known = shown(fact.box, page)
        for box in () if across else fact.needs:
            known = known[np.isin(known // TOKENS, _whole_tiles(box, page.columns))]
        for sort, word in _sorts(fact.says):
            classes[known, columns.index(sort)] = CLASSES[sort][word]
    return classes


def shown(box: Box, page: Page) -> np.ndarray:
    """Tokens of which the box covers a good part, or the one of its centre where it is small."""
    tokens = evidence_tokens([box], page.rows, page.columns, least=0.3)
    if len(tokens):
        return tokens
    x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    return evidence_tokens([(x, y, x + 1, y + 1)], page.rows, page.columns, least=1 / PATCH**2)


def _whole_tiles(box: Box, columns: int) -> list[int]:
    """Index of the tile that holds all of the box, or nothing."""
    x0, y0, x1, y1 = box
    first, last = (y0 // SIZE, x0 // SIZE), ((y1 - 1) // SIZE, (x1 - 1) // SIZE)
    return [first[0] * columns + first[1]] if first == last else []


def _sorts(says: object) -> list[tuple[str, str]]:
    """A fact's sorts and words, its value spelt out character by character."""
    found: list[tuple[str, str]] = []
    for sort, word in dict(says).items():  # type: ignore[call-overload]
        if sort != "value":
            found.append((sort, word))
            continue
        characters = [*word, END][:VALUE_CHARACTERS]
        found += [(f"value{index}", character) for index, character in enumerate(characters)]
    return found


class DenseHeads(nn.Module):
    """Throwaway linear readers of what each visual token holds."""

    def __init__(self, width: int, tokenizer: PreTrainedTokenizerFast) -> None:
        """One linear map for all sorts; ``width`` is that of the decoder."""
        super().__init__()
        self.sizes = [len(words) + 1 for words in WORDS.values()]
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, sum(self.sizes))
        self.word_ids = {
            sort: torch.tensor([tokenizer(word).input_ids[0] for word in WORDS[sort]]) for sort in ALIGNED
        }

    def forward(
        self, features: torch.Tensor, facts: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and share of tokens that hold something which are read rightly, per sort.

        Args:
            features: float (tokens, width), the projector's output or a layer's.
            facts: int64 (tokens, sorts), 0 where nothing is.
            embeddings: float (vocabulary, width), the text model's, which features are to be like; or None.
        """
        losses, hits = [], []
        for index, scores in enumerate(self.read(self.norm(features.float())).split(self.sizes, dim=-1)):
            target = facts[:, index]
            there = target > 0
            # Most tokens hold nothing: most of the loss looks at those that do.
            every = nn.functional.cross_entropy(scores, target, reduction="none")
            count = there.sum().clamp(min=1)
            losses.append((every * there).sum() / count + 0.5 * (every * ~there).mean())
            hits.append(((scores.argmax(-1) == target) & there).sum() / count)
        loss = torch.stack(losses).mean()
        if embeddings is not None:
            loss = loss + self._alignment(features, facts, embeddings)
        return loss, torch.stack(hits)

    def _alignment(
        self, features: torch.Tensor, facts: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """How badly visual tokens point at the embeddings of the words that they hold.

        A question that names a word finds it on the page by attention from the word's embedding. Where
        tokens lie in the same directions as words, one alignment serves every word.
        """
        normed = nn.functional.normalize(features.float(), dim=-1)
        losses = [features.new_zeros(())]
        for sort in ALIGNED:
            target = facts[:, list(WORDS).index(sort)]
            there = target > 0
            if there.any():
                words = nn.functional.normalize(embeddings[self.word_ids[sort]].float(), dim=-1)
                scores = BRIGHTNESS * normed[there] @ words.T
                losses.append(nn.functional.cross_entropy(scores, target[there] - 1))
        return torch.stack(losses).sum() / len(ALIGNED)


def batch_facts(pages: Sequence[Page], *, across: bool = False) -> torch.Tensor:
    """Of all tokens of all pages, int64 (pages, tokens, sorts)."""
    return torch.from_numpy(np.stack([dense_facts(page, across=across) for page in pages]))
