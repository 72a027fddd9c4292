"""Drawn pages in the columns of the paper's benchmarks: `python -m benchmarks.paper_tasks DIR [--rows 50]`.

Writes a folder for each task, as its data set lies on the hub (parquet; GQA's pictures apart), so that
readers and harnesses can be tried without a network. Questions are those of held-out pages: what a task asks
decides which page and which question. ``benchmarks/three_ways.py`` scores them through lmms-eval and
``sgl bench``.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages.generator import Page, draw_page

Row = dict[str, Any]
_PEOPLE = 10
_CHARTS = ("chart", "line")


def picture(page: Page) -> dict[str, Any]:
    """The page as a column of pictures holds it."""
    out = io.BytesIO()
    Image.fromarray(page.pixels).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": f"{page.seed}.png"}


def pages(first: int) -> Iterator[Page]:
    """Held-out pages."""
    for seed in count(first):
        yield draw_page(seed, tiles=1)


def asked(first: int, wanted: Callable[[Question], bool]) -> Iterator[tuple[Page, Question]]:
    """One question to a page; pages of one tile, which take least time."""
    for page in pages(first):
        if found := [question for question in page.questions if wanted(question)]:
            yield page, found[page.seed % len(found)]


def textvqa(rows: int) -> Iterator[Row]:
    """Ten answers each; three of them now and then differ."""
    source = asked(10_000, lambda question: question.kind.startswith(("document", "form")))
    for number, (page, question) in zip(range(rows), source, strict=False):
        answers = [question.answer] * _PEOPLE
        if number % 3 == 0:
            answers[:3] = ["unanswerable", question.answer.upper(), f"the {question.answer}."]
        names = {"question_id": number, "image_id": str(page.seed), "ocr_tokens": [question.answer]}
        yield {"image": picture(page), "question": question.text, "answers": answers, **names}


def chartqa(rows: int) -> Iterator[Row]:
    """Half of them by people, half made."""
    source = asked(20_000, lambda question: question.kind.startswith(_CHARTS))
    for number, (page, question) in zip(range(rows), source, strict=False):
        kind = "human_test" if number % 2 else "augmented_test"
        yield {"type": kind, "question": question.text, "answer": question.answer, "image": picture(page)}


def docvqa(rows: int) -> Iterator[Row]:
    """One right answer or two."""
    source = asked(30_000, lambda question: question.kind.startswith(("document", "table")))
    for number, (page, question) in zip(range(rows), source, strict=False):
        answers = [question.answer] + ([question.answer + " "] if number % 4 == 0 else [])
        names = {"questionId": str(number), "docId": page.seed, "ucsf_document_id": "", "data_split": "val"}
        yield {"question": question.text, "answers": answers, "image": picture(page), **names}


def gqa(rows: int) -> Iterator[Row]:
    """Questions; their pictures are rows of their own (``gqa_pictures``)."""
    source = asked(40_000, lambda question: question.kind.startswith(("scene", "yes")))
    for number, (page, question) in zip(range(rows), source, strict=False):
        names = {"id": f"2{number:07}", "imageId": f"n{page.seed}", "isBalanced": True}
        yield {**names, "question": question.text.capitalize(), "answer": question.answer}


def gqa_pictures(rows: int) -> Iterator[Row]:
    """The pictures of ``gqa``."""
    seeds = {row["imageId"][1:] for row in gqa(rows)}
    for seed in sorted(seeds):
        yield {"id": f"n{seed}", "image": picture(draw_page(int(seed), tiles=1))}


def mme(rows: int) -> Iterator[Row]:
    """Two questions to a picture, one of each answer; two categories of perception, one of cognition."""
    categories = ("existence", "OCR", "commonsense_reasoning")
    number = 0
    for page in pages(50_000):
        of = {question.answer: question for question in page.questions if question.kind == "yes or no"}
        if set(of) != {"yes", "no"}:
            continue
        category = categories[number % 3]
        for answer in ("yes", "no"):
            names = {"question_id": f"{category}/{page.seed}.png", "category": category}
            question = f"{of[answer].text} Please answer yes or no."
            yield {**names, "image": picture(page), "question": question, "answer": answer.capitalize()}
        number += 1
        if 2 * number >= rows:
            return


def refcoco(rows: int) -> Iterator[Row]:
    """Boxes of what questions are answered from; one description each, so that rows are questions."""
    source = asked(60_000, lambda question: len(question.evidence) == 1)
    for number, (page, question) in zip(range(rows), source, strict=False):
        [(left, top, right, bottom)] = question.evidence
        box = [float(each) for each in (left, top, right - left, bottom - top)]
        yield {"question_id": str(number), "image": picture(page), "answer": [question.text], "bbox": box}


TASKS: dict[str, tuple[str, Callable[[int], Iterator[Row]]]] = {
    "textvqa/data/validation": ("textvqa_val", textvqa),
    "chartqa/data/test": ("chartqa", chartqa),
    "docvqa/DocVQA/validation": ("docvqa_val", docvqa),
    "gqa/testdev_balanced_instructions/testdev": ("gqa", gqa),
    "gqa/testdev_balanced_images/testdev": ("gqa", gqa_pictures),
    "mme/data/test": ("mme", mme),
    "refcoco/data/val": ("refcoco_bbox_rec_val", refcoco),
}
"""File, without its number -> task of lmms-eval, and what writes it."""


def _feature(kind: Any) -> Any:
    """Describes a column as ``datasets`` does in files that it writes; without it, pictures are structs."""
    if hasattr(kind, "value_type"):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if str(kind).startswith("struct"):
        return {"_type": "Image"}
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def write(folder: Path, rows: int) -> None:
    """Writes all tasks."""
    import pyarrow as pa
    from pyarrow import parquet

    for name, (_, make) in TASKS.items():
        table = pa.Table.from_pylist(list(make(rows)))
        features = {field.name: _feature(field.type) for field in table.schema}
        said = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": said})
        path = folder / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, row_group_size=20)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=50)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.rows)


if __name__ == "__main__":
    main()
