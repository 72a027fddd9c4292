"""What each of the paper's benchmarks asks of a row, and how an answer counts.

Columns and prompts are those of lmms-eval's tasks (version 0.7.3, its default prompts); of VLMEvalKit's TSVs,
the columns that hold the same. ``tests/lmms`` holds prompts and metrics against lmms-eval itself.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from sgl_engine.evaluation.columns import RawRow
from sgl_engine.evaluation.metrics import FEWEST_VQA_ANSWERS, JUDGED
from sgl_engine.evaluation.paper.tables import only_picture

Coordinates: TypeAlias = Literal["fractions", "pixels", "thousandths"]
"""How RefCOCO's boxes are asked for: in [0, 1], in JSON as pixels, or as InternVL writes them."""
_SHORT = "\nAnswer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_FRACTIONS = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, "
    "bottom-right y). All values are floating point numbers bounded between 0 and 1. Please provide the "
    "bounding box coordinate of the region this sentence describes: {}"
)
_THOUSANDTHS = (
    "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
)
_PIXELS = (
    "Locate every object that matches the description {} in the image. "
    "Report bbox coordinates in JSON format."
)
_REASONING = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)
_YES_OR_NO = " Please answer yes or no."
_REFERENCE = re.compile(r"<ref>\s*(.*?)\s*</ref>", re.DOTALL)
_ROTATED = 1_000_000
"""MMBench's rows with the same index but for multiples of this are one question, its options rotated."""


@dataclass(frozen=True)
class PaperQuestion:
    """One question of a benchmark.

    Attributes:
        id: Its name there.
        question: The whole prompt.
        answers: What counts as right, as the metric takes it.
        metric: Name in ``METRICS``, or ``JUDGED``.
        part: Scores are averaged over each part of a benchmark, and then added up; "" where there is one.
        group: Rows of one group are scored together; "" is on its own.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    metric: str
    part: str = ""
    group: str = ""


Asking: TypeAlias = Callable[[RawRow, Coordinates], list[PaperQuestion]]
"""Row -> its questions; none where it is no part of the benchmark. A ``ValueError`` says what is wrong."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: In commands and tables.
        title: For people.
        files: What its folder or file may be called, whatever the case of letters; besides ``name``.
        split: What is asked of it.
        hub: Repository, and the configurations that are needed.
        ask: Questions of a row.
        max_new_tokens: Longest answer that lmms-eval allows; None is the engine's own limit.
        scale: A part's score where all is right.
    """

    name: str
    title: str
    files: tuple[str, ...]
    split: str
    hub: tuple[str, tuple[str, ...]]
    ask: Asking
    max_new_tokens: int | None = None
    scale: float = 100.0


def _text(values: Mapping[str, Any], *names: str) -> str:
    """Returns the first of these columns that says anything."""
    for name in names:
        if (value := values.get(name)) is not None and not _is_missing(value):
            return str(value)
    raise ValueError(f"it has no {' or '.join(names)}")


def _is_missing(value: Any) -> bool:
    return value is None or value in {"", "nan"} or value != value  # noqa: PLR0124  # nan


def _texts(values: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """The same of a list, which a TSV writes as Python would."""
    found: Any = next((values[name] for name in names if not _is_missing_list(values.get(name))), None)
    if isinstance(found, str) and found.startswith("["):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            raise ValueError(f"its answers are no list ({found[:60]!r})") from None
    if found is None:
        raise ValueError(f"it has no {' or '.join(names)}")
    return tuple(map(str, found)) if isinstance(found, list | tuple) else (str(found),)


def _is_missing_list(value: Any) -> bool:
    return not value if isinstance(value, list | tuple) else _is_missing(value)


def _id(row: RawRow, *names: str) -> str:
    return next((str(row.values[name]) for name in names if not _is_missing(row.values.get(name))), row.name)


def _textvqa(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    answers = _texts(row.values, "answers", "answer")
    if len(answers) < FEWEST_VQA_ANSWERS:
        raise ValueError(f"it has what {len(answers)} people said; ten said something")
    question = _text(row.values, "question").capitalize() + _SHORT
    return [PaperQuestion(_id(row, "question_id", "index"), question, answers, "vqa_score")]


def _chartqa(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    question = _text(row.values, "question") + "\nAnswer the question with a single word."
    answers = _texts(row.values, "answer")[:1]
    return [PaperQuestion(_id(row, "index"), question, answers, "relaxed")]


def _docvqa(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    question = _text(row.values, "question") + _SHORT
    answers = _texts(row.values, "answers", "answer")
    return [PaperQuestion(_id(row, "questionId", "index"), question, answers, "anls")]


def _gqa(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    question = _text(row.values, "question") + _SHORT
    return [PaperQuestion(_id(row, "id", "index"), question, (_text(row.values, "answer"),), "plain_exact")]


def _seed(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    if row.values.get("data_type", "image") != "image":
        return []
    options = [_text(row.values, f"choice_{letter.lower()}", letter) for letter in "ABCD"]
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
    question = "\n".join([_text(row.values, "question"), *lines, _LETTER])
    return [
        PaperQuestion(
            _id(row, "question_id", "index"), question, (_text(row.values, "answer"),), "first_letter"
        )
    ]


def _mmbench(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    values = row.values
    options = {letter: str(values[letter]) for letter in "ABCDE" if not _is_missing(values.get(letter))}
    index, answer = int(_text(values, "index")), _text(values, "answer")
    if answer not in options:
        raise ValueError(f"its answer {answer!r} is none of its options {', '.join(options)}")
    hint = "" if _is_missing(values.get("hint")) else f"{values['hint']} "
    lines = ["There are several options:", *(f"{letter}. {option}" for letter, option in options.items())]
    question = f"{hint}{_text(values, 'question')} " + "\n".join(lines) + f"\n\n{_LETTER}"
    # Letters are A to D in its evaluation; E can be asked, and never be right.
    texts = tuple(options[letter] for letter in "ABCD" if letter in options)
    return [PaperQuestion(str(index), question, (answer, *texts), "choice", group=str(index % _ROTATED))]


def _mmvet(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    question = _text(row.values, "question")
    judged_by = (_text(row.values, "answer"), question)
    return [PaperQuestion(_id(row, "question_id", "index"), _REASONING + question, judged_by, JUDGED)]


def _mme(row: RawRow, _: Coordinates) -> list[PaperQuestion]:
    answer = _text(row.values, "answer").lower().strip().replace(".", "")
    if answer not in {"yes", "no"}:
        raise ValueError(f"its answer is {answer!r}, neither yes nor no")
    question = _text(row.values, "question").strip().replace(_YES_OR_NO, "") + _SHORT
    category, picture = _text(row.values, "category"), _text(row.values, "question_id", "image_path")
    name = f"{category}/{picture}"
    return [PaperQuestion(name, question, (answer,), "yes_no", part=category, group=name)]


def _refcoco(row: RawRow, coordinates: Coordinates) -> list[PaperQuestion]:
    sides = _sides(row)
    corners = _pixel_corners(row.values)
    fractions = [corner / side for corner, side in zip(corners, sides * 2, strict=True)]
    thousandths = [1000 * each for each in fractions]
    said = _said_of_box(row.values)
    name = _id(row, "question_id", "index")
    if coordinates == "pixels":
        shown = ", ".join(f'"{each.strip()}"' for each in said)
        in_both = (json.dumps(corners), json.dumps(thousandths))
        return [PaperQuestion(name, _PIXELS.format(shown), in_both, "any_box")]
    prompt = _FRACTIONS if coordinates == "fractions" else _THOUSANDTHS
    # InternVL's evaluation takes a box of small numbers for fractions.
    rights = [fractions] if coordinates == "fractions" else [thousandths, fractions]
    right = tuple(map(json.dumps, rights))
    return [
        PaperQuestion(f"{name}/{number}", prompt.format(each), right, "box")
        for number, each in enumerate(said)
    ]


def _said_of_box(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Descriptions of the box; of a TSV, what is asked, or what is marked in it."""
    if "bbox" in values:
        return _texts(values, "answer")
    question = _text(values, "question")
    marked = _REFERENCE.search(question)
    return (marked[1] if marked else question,)


def _pixel_corners(values: Mapping[str, Any]) -> list[float]:
    try:
        if "bbox" in values:
            left, top, width, height = map(float, values["bbox"])
            return [left, top, left + width, top + height]
        return [float(values[f"bbox_{name}"]) for name in ("x1", "y1", "x2", "y2")]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "it has no box: neither bbox (left, top, width, height) nor bbox_x1 and the like"
        ) from None


def _sides(row: RawRow) -> tuple[float, float]:
    """Width and height of its picture; only the head of the file is read."""
    source = only_picture(row.pictures())
    if isinstance(source, str):
        raise ValueError("its picture is an address, so its size is not known")  # noqa: TRY004  # bad data
    if isinstance(source, Image.Image):
        return source.size
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
        return opened.size


def _ref(name: str, title: str, files: Sequence[str], repository: str) -> Benchmark:
    hub = (f"lmms-lab-encoder/{repository}", ("default",))
    return Benchmark(name, title, tuple(files), "val", hub, _refcoco)


BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            "textvqa",
            "TextVQA",
            ("textvqa_val",),
            "validation",
            ("lmms-lab-encoder/textvqa", ("default",)),
            _textvqa,
        ),
        Benchmark(
            "chartqa",
            "ChartQA",
            ("chartqa_test",),
            "test",
            ("lmms-lab-encoder/ChartQA", ("default",)),
            _chartqa,
            16,
        ),
        Benchmark(
            "docvqa",
            "DocVQA",
            ("docvqa_val",),
            "validation",
            ("lmms-lab-encoder/DocVQA", ("DocVQA",)),
            _docvqa,
            32,
        ),
        Benchmark(
            "gqa",
            "GQA",
            ("gqa_testdev_balanced",),
            "testdev",
            ("lmms-lab-encoder/GQA", ("testdev_balanced_instructions", "testdev_balanced_images")),
            _gqa,
            16,
        ),
        Benchmark(
            "seed",
            "SEED",
            ("seedbench", "seedbench_img", "seed_image"),
            "test",
            ("lmms-lab-encoder/SEED-Bench", ("default",)),
            _seed,
        ),
        Benchmark(
            "mmbench",
            "MMBench",
            ("mmbench_en_dev", "mmbench_dev_en", "mmbench_dev_en_v11"),
            "dev",
            ("lmms-lab-encoder/MMBench", ("en",)),
            _mmbench,
            1024,
        ),
        Benchmark("mmvet", "MM-Vet", (), "test", ("lmms-lab-encoder/MMVet", ("default",)), _mmvet, 1024),
        Benchmark("mme", "MME", (), "test", ("lmms-lab-encoder/MME", ("default",)), _mme, 16, scale=200.0),
        _ref("refcoco", "RefCOCO", ("refcoco_bbox_rec_val", "refcoco_val"), "RefCOCO"),
        _ref("refcoco+", "RefCOCO+", ("refcoco+_bbox_rec_val", "refcoco+_val", "refcocoplus"), "RefCOCOplus"),
        _ref("refcocog", "RefCOCOg", ("refcocog_bbox_rec_val", "refcocog_val"), "RefCOCOg"),
    )
}
"""The paper's, in its order."""
