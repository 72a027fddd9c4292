"""How often the picture that answers a query is ranked first, among pictures that do not.

    python -m benchmarks.rerank --questions 200

Each query is about a held-out receipt or note; eight others of the same style, on which the asked label or
value does not stand, are the distractors. By chance, one of nine comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from langchain_core.documents import Document
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.heldout import parse, percent
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.reranking.reranker import SGLImageReranker
from langchain_sgl.usage.callbacks import get_sgl_usage_callback
from sgl_engine.demo.pages import Page, PageDocument, Question, draw_page

DISTRACTORS = 8
KINDS = ("document value", "document label")
WAYS: dict[str, dict[str, str]] = {
    "small alone": {"escalate": "never"},
    "cascade, 35 %": {},
    "cascade, unpruned": {"retention": "100%"},
    "large, guided at 35 %": {"escalate": "always"},
    "large, unpruned": {"escalate": "always", "retention": "100%"},
}


@dataclass(frozen=True)
class RankedQuery:
    """One query, ranked one way; ``rank`` of the right picture, from 1."""

    way: str
    kind: str
    rank: int
    escalated: int
    tflops: float
    alone_tflops: float
    ms: float


def trials(count: int, start: int) -> Iterator[tuple[Question, list[Page]]]:
    """A question, and nine pictures of which the first answers it."""
    for seed in range(start, start + count):
        right = draw_page(seed, only=["document"], tiles=1)
        rng = np.random.default_rng((seed, 13))
        asked = [question for question in right.questions if question.kind in KINDS]
        question = asked[int(rng.integers(len(asked)))]
        yield question, [right, *_distractors(right, question, seed)]


def _distractors(right: Page, question: Question, seed: int) -> list[Page]:
    # What the question names: the label where a value is asked for, and the other way round.
    (named,) = {
        label if question.kind == "document value" else value
        for label, value in _document(right).lines
        if question.answer == (value if question.kind == "document value" else label)
    }
    found: list[Page] = []
    candidate = 1_000_000 + 1_000 * seed  # far from every question's seed
    while len(found) < DISTRACTORS:
        page = draw_page(candidate, only=["document"], tiles=1)
        candidate += 1
        same_style = _document(page).is_receipt == _document(right).is_receipt
        if same_style and not any(named in line for line in _document(page).lines):
            found.append(page)
    return found


def _document(page: Page) -> PageDocument:
    (document,) = page.contents
    assert isinstance(document, PageDocument)
    return document


def measure(way: str, question: Question, pages: list[Page]) -> RankedQuery:
    """Ranks one query's pictures."""
    store = {str(index): Image.fromarray(page.pixels) for index, page in enumerate(pages)}
    # The right one is given last: equal scores keep their order, and must not help.
    given = [Document("", id=name) for name in reversed(store)]
    reranker = SGLImageReranker(model=ChatSGL(**WAYS[way]), store=store)
    with get_sgl_usage_callback() as usage:  # a picture that goes to the large model is scored twice
        ranked = reranker.compress_documents(given, question.text)
    alone = sum(document.metadata["sgl_relevance"]["large_alone_tflops"] for document in ranked)
    return RankedQuery(
        way=way,
        kind=question.kind,
        rank=1 + [document.id for document in ranked].index("0"),
        escalated=usage.totals.escalations,
        tflops=usage.totals.tflops,
        alone_tflops=alone,
        ms=usage.totals.total_ms,
    )


def table(rows: list[RankedQuery]) -> Table:
    """How each way did."""
    shown = Table(title=f"Right picture first, of {1 + DISTRACTORS}; % (95 % interval), held-out documents")
    kinds = ("all", *KINDS)
    for name in ("scored by", *kinds, "mean reciprocal rank", "escalated %", "TFLOPs, share of large alone"):
        shown.add_column(name, justify="left" if name == "scored by" else "right")
    for way in WAYS:
        own = [row for row in rows if row.way == way]
        firsts = [percent(row.rank == 1 for row in own if kind in ("all", row.kind)) for kind in kinds]
        reciprocal = float(np.mean([1 / row.rank for row in own]))
        escalated = 100 * sum(row.escalated for row in own) / (len(own) * (1 + DISTRACTORS))
        share = sum(row.tflops for row in own) / sum(row.alone_tflops for row in own)
        shown.add_row(way, *firsts, f"{reciprocal:.3f}", f"{escalated:.1f}", f"{share:.2f}")
    return shown


def main() -> None:
    """Run and print."""
    options = parse(__doc__, questions=200, json="also write every row here")
    rows = [
        measure(way, question, pages)
        for question, pages in track(
            trials(options.questions, options.start), description="queries", total=options.questions
        )
        for way in WAYS
    ]
    Console(width=150).print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
