"""RAG over a folder of receipts: index, retrieve by BM25, rerank by looking, ask two pictures one question.

    receipts -> SGLImageIndexer -> transcriptions -> bm25s -> 5 -> SGLImageReranker -> 1 -> ChatSGL -> a price

    python examples/rag.py                                        # draws 12 receipts, asks 4 random questions
    python examples/rag.py --questions 100 --receipts 24          # measures
    python examples/rag.py --folder DIR --ask coffee 4.35 7.20    # your own pictures

"What do the coffee on the receipt with 4.35 on it and the coffee on the receipt with 7.20 on it cost
together?" No picture answers this alone. Code splits it into two questions, and adds up; a planner could be
any language model.

The index is a cheap one: the small model alone transcribes, and hardly ever without an error. That is good
enough to find candidates by their words. The reranker then looks at the pictures themselves: the receipt with
4.35 on it is the one that answers "which line says 4.35". The price, too, is read from the picture and not
from its transcription.

How often each stage is right: `--start 1000 --receipts 24 --questions 40`, and with `--index-by cascade`,
which transcribes better, for several times the work.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import bm25s  # type: ignore[import-untyped]
import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.retrievers import BaseRetriever
from PIL import Image
from pydantic import PrivateAttr
from rich import box
from rich.console import Console
from rich.table import Table
from transformers.utils import logging
from typing_extensions import override

from langchain_sgl import ChatSGL, SGLImageIndexer, SGLImageReranker, get_sgl_usage_callback, image_block
from sgl_engine.demo.pages import PageDocument, draw_page

CANDIDATES = 5
PAGE_TILES = 2
BESIDE = ("document", "scene", "bars")
"""What may stand on a page that is drawn."""
MANIFEST = ".sgl-index.sqlite"
_WORD = r"\w[\w.]*"

Truth = Mapping[str, Mapping[str, str]]
"""File name -> label -> price."""


class BM25Retriever(BaseRetriever):
    """Documents whose words are rare and in the query; numbers are words."""

    documents: list[Document]
    k: int = CANDIDATES
    _index: Any = PrivateAttr()

    @classmethod
    def over(cls, documents: Sequence[Document]) -> Self:
        """Indexes the documents."""
        retriever = cls(documents=list(documents), k=min(CANDIDATES, len(documents)))
        retriever._index = bm25s.BM25()
        retriever._index.index(_words([doc.page_content for doc in documents]), show_progress=False)
        return retriever

    @override
    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found, scores = self._index.retrieve(_words([query]), k=self.k, show_progress=False)
        return [
            doc.model_copy(update={"metadata": {**doc.metadata, "bm25": float(score)}})
            for doc, score in zip([self.documents[i] for i in found[0]], scores[0], strict=True)
        ]


def _words(texts: list[str]) -> Any:
    # A pattern of our own: the default one would cut 4.35 in two.
    return bm25s.tokenize(texts, token_pattern=_WORD, stopwords=None, show_progress=False)


@dataclass(frozen=True)
class SubQuestion:
    """The price of ``item`` on the receipt that also says ``mark``; ``source``: its file, if known."""

    item: str
    mark: str
    source: str | None = None

    def __str__(self) -> str:
        return f"the {self.item} on the receipt with {self.mark} on it"


@dataclass(frozen=True)
class Finding:
    """What came of a sub-question; documents with "bm25" and "relevance_score" in their metadata."""

    asked: SubQuestion
    by_words: list[Document]
    by_looking: list[Document]
    price: str
    report: Mapping[str, Any]

    @property
    def source(self) -> str:
        """The picture that was asked."""
        return str(self.by_looking[0].metadata["source"])


@dataclass(frozen=True)
class Library:
    """A folder of pictures that can be asked."""

    folder: Path
    chat: ChatSGL
    retriever: BM25Retriever
    reranker: SGLImageReranker

    def find(self, asked: SubQuestion) -> Finding:
        """Retrieves, reranks, and asks the picture that comes first."""
        by_words = self.retriever.invoke(f"How much is {asked}?")
        by_looking = list(self.reranker.compress_documents(by_words, f"which line says {asked.mark}"))
        picture = image_block(self.folder / by_looking[0].metadata["source"])
        answer = self.chat.invoke([HumanMessage([picture, f"what is the price of {asked.item}"])])
        return Finding(asked, by_words, by_looking, answer.text, answer.response_metadata["sgl"])


def total(findings: Sequence[Finding]) -> Decimal | None:
    """The sum of the prices; None where one of them is no number ("none", for example)."""
    try:
        return sum((Decimal(finding.price) for finding in findings), Decimal(0))
    except InvalidOperation:
        return None


def draw_receipts(folder: Path, count: int, start: int) -> Truth:
    """Held-out pages with one receipt each, some beside a scene or a chart, in the order of their seeds."""
    truth: dict[str, Mapping[str, str]] = {}
    seed = start
    while len(truth) < count:
        page = draw_page(seed, tiles=PAGE_TILES, only=BESIDE)
        documents = [content for content in page.contents if isinstance(content, PageDocument)]
        if len(documents) == 1 and documents[0].is_receipt:
            name = f"receipt-{seed}.png"
            Image.fromarray(page.pixels).save(folder / name)
            truth[name] = dict(documents[0].lines)
        seed += 1
    return truth


def random_questions(truth: Truth, count: int, seed: int) -> Iterator[tuple[SubQuestion, SubQuestion]]:
    """Two receipts with the same item, each named by another price that no other receipt has."""
    rng = np.random.default_rng(seed)
    prices = Counter(price for lines in truth.values() for price in lines.values())
    asked = [
        SubQuestion(item, mark, name)
        for name, lines in truth.items()
        for item in lines
        for label, mark in lines.items()
        if label != item and prices[mark] == 1
    ]
    pairs = [
        (one, other)
        for one in asked
        for other in asked
        if one.item == other.item and one.source != other.source
    ]
    for index in rng.permutation(len(pairs))[:count]:
        yield pairs[int(index)]


def build_library(console: Console, folder: Path, transcriber: ChatSGL, truth: Truth) -> Library:
    """Indexes the folder, prints how that went, and indexes it again, which asks nothing."""
    for attempt in ("first", "second"):
        began = perf_counter()
        indexer = SGLImageIndexer(folder, model=transcriber, relative_to=folder, manifest=folder / MANIFEST)
        documents = indexer.load()
        progress = indexer.progress
        console.print(
            f"{attempt} run of the indexer: {progress.asked} pictures transcribed, "
            f"{progress.unchanged} unchanged, {progress.failed} failed, {perf_counter() - began:.1f} s"
        )
    if truth:
        written = {
            name: ", ".join(f"{label} {price}" for label, price in lines.items())
            for name, lines in truth.items()
        }
        exact = sum(doc.page_content == written[doc.metadata["source"]] for doc in documents)
        console.print(f"transcriptions without a single error: {exact} of {len(documents)}")
    chat = ChatSGL()
    reranker = SGLImageReranker(model=chat, root=folder)
    return Library(folder, chat, BM25Retriever.over(documents), reranker)


def show(console: Console, findings: Sequence[Finding], truth: Truth) -> None:
    """One question: what was retrieved, what was answered, and by whom."""
    console.print(
        f"\nQuestion: what do {findings[0].asked} and {findings[1].asked} cost together?", style="bold"
    )
    for finding in findings:
        table = Table(title=f"{finding.asked}", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        table.add_column("picture", no_wrap=True)
        table.add_column("BM25", justify="right")
        table.add_column("relevance", justify="right")
        table.add_column("transcription")
        for document in finding.by_looking:
            about = document.metadata
            is_meant = about["source"] == finding.asked.source
            table.add_row(
                f"{about['source']}{' *' if is_meant else ''}",
                f"{about['bm25']:.2f}",
                "" if about["relevance_score"] is None else f"{about['relevance_score']:.3f}",
                document.page_content,
            )
        console.print(table)
        report = finding.report
        console.print(
            f"{finding.source} says {finding.price} ({report['route']} model, score {report['score']:.2f}, "
            f"{report['saved_fraction']:.0%} saved)\n",
            soft_wrap=True,
        )
    result, right = total(findings), expected(findings, truth)
    sums = " + ".join(finding.price for finding in findings)
    verdict = (
        "" if right is None else f"; the receipts say {right}: {'right' if result == right else 'WRONG'}"
    )
    console.print(f"Together: {sums} = {result}{verdict}. (* is the receipt that is meant.)", style="bold")


def expected(findings: Sequence[Finding], truth: Truth) -> Decimal | None:
    """The right sum; None where nobody knows what the pictures say."""
    if any(finding.asked.source is None for finding in findings):
        return None
    return sum((Decimal(truth[str(f.asked.source)][f.asked.item]) for f in findings), Decimal(0))


def summarise(console: Console, answered: Sequence[Sequence[Finding]], truth: Truth) -> None:
    """How often each stage is right."""
    findings = [finding for both in answered for finding in both]
    stages = {
        "BM25 puts the right picture first": [
            f.by_words[0].metadata["source"] == f.asked.source for f in findings
        ],
        f"BM25 has it among its {CANDIDATES}": [
            f.asked.source in [doc.metadata["source"] for doc in f.by_words] for f in findings
        ],
        "the reranker puts it first": [f.source == f.asked.source for f in findings],
        "the price is right": [f.price == truth[str(f.asked.source)][f.asked.item] for f in findings],
        "the sum of both is right": [total(both) == expected(both, truth) for both in answered],
    }
    console.print(f"\n{len(answered)} random questions, two pictures each:")
    for stage, hits in stages.items():
        console.print(
            f"  {stage:36}{sum(hits):4} of {len(hits):3}  {sum(hits) / len(hits):4.0%}", highlight=False
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Indexes a folder, asks it questions, and says how often the answers are right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--receipts", type=int, default=12, help="how many are drawn")
    parser.add_argument("--questions", type=int, default=4, help="how many random ones are asked")
    parser.add_argument("--index-by", choices=("small", "cascade"), default="small", help="who transcribes")
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--folder", type=Path, help="pictures of your own; keeps its index there")
    parser.add_argument("--ask", nargs=3, metavar=("ITEM", "MARK", "MARK"), help="your own question")
    arguments = parser.parse_args(argv)
    if (arguments.folder is None) != (arguments.ask is None):
        parser.error("--folder and --ask go together")
    logging.disable_progress_bar()

    console = Console(highlight=False)
    transcriber = ChatSGL(escalate="never" if arguments.index_by == "small" else "auto")
    with tempfile.TemporaryDirectory() as drawn, get_sgl_usage_callback() as usage:
        folder = arguments.folder or Path(drawn)
        truth: Truth = {} if arguments.folder else draw_receipts(folder, arguments.receipts, arguments.start)
        library = build_library(console, folder, transcriber, truth)
        if arguments.ask:
            item, *marks = arguments.ask
            questions = [(SubQuestion(item, marks[0]), SubQuestion(item, marks[1]))]
        else:
            questions = list(random_questions(truth, arguments.questions, arguments.start))
        answered: list[list[Finding]] = []
        for both in questions:
            answered.append([library.find(asked) for asked in both])
            if len(answered) == 1:
                show(console, answered[0], truth)
    if truth:
        summarise(console, answered, truth)
    console.print()
    print(usage)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
