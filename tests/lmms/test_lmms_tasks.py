"""What is asked of a row, against the task's own YAML and functions; only where the extra `lmms` is."""

import inspect
import io
import os
from pathlib import Path
from typing import Any

import pytest

tasks = pytest.importorskip("lmms_eval.tasks", reason="lmms-eval comes with the extra lmms")

os.environ.setdefault("OPENAI_API_KEY", "none")  # MM-Vet's functions make a client when they are imported

from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator  # noqa: E402
from lmms_eval.tasks.mmvet.utils import MM_VET_PROMPT  # noqa: E402
from lmms_eval.tasks.refcoco.utils_rec import refcoco_bbox_rec_preprocess_dataset  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import paper_tasks  # noqa: E402
from sgl_engine.evaluation.columns import RawRow  # noqa: E402
from sgl_engine.evaluation.metrics import METRICS  # noqa: E402
from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS, PaperQuestion  # noqa: E402
from sgl_engine.evaluation.paper.judge import judging_prompt  # noqa: E402

YAML = {
    "textvqa": "textvqa_val",
    "chartqa": "chartqa",
    "docvqa": "docvqa_val",
    "gqa": "gqa",
    "seed": "seedbench",
    "mmbench": "mmbench_en_dev",
    "mmvet": "mmvet",
    "mme": "mme",
    "refcoco": "refcoco_bbox_rec_val",
    "refcoco+": "refcoco+_bbox_rec_val",
    "refcocog": "refcocog_bbox_rec_val",
}
OPTIONS = {"A": "a cat", "B": "12", "C": "nan", "D": "nan"}
HAND_MADE: dict[str, list[dict[str, Any]]] = {
    "seed": [
        {"question": "Which?", "answer": "B", "question_id": "1", "data_type": "image"}
        | {f"choice_{letter}": f"the {letter}" for letter in "abcd"}
    ],
    "mmbench": [
        {"index": 3, "question": "Which?", "hint": hint, "answer": "A", **OPTIONS}
        | {"category": "c", "L2-category": "d", "source": "s", "split": "dev"}
        for hint in ("nan", None, "Look up.")
    ],
    "mmvet": [{"question_id": "v1_0", "question": "Why?", "answer": "a<AND>b", "capability": "rec"}],
}


def config(name: str) -> dict[str, Any]:
    [path] = Path(tasks.__file__).parent.rglob(f"{YAML[name]}.yaml")
    found: dict[str, Any] = load_yaml_config(str(path), mode="full")
    return found


def prompt(settings: dict[str, Any], doc: dict[str, Any]) -> str:
    """As lmms-eval asks a model that it has no prompt of its own for."""
    own = settings.get("lmms_eval_specific_kwargs")
    take = len(inspect.signature(settings["doc_to_text"]).parameters) == 2
    return str(settings["doc_to_text"](dict(doc), own["default"]) if take else settings["doc_to_text"](doc))


def rows(name: str) -> list[dict[str, Any]]:
    made = {"textvqa": paper_tasks.textvqa, "chartqa": paper_tasks.chartqa, "docvqa": paper_tasks.docvqa}
    made |= {"gqa": paper_tasks.gqa, "mme": paper_tasks.mme}
    return HAND_MADE[name] if name in HAND_MADE else list(made.get(name, paper_tasks.refcoco)(4))


def asked(name: str, row: dict[str, Any], boxes: Any = "fractions") -> list[PaperQuestion]:
    values = {column: value for column, value in row.items() if column != "image"}
    shown = row.get("image", {}).get("bytes", b"")
    return BENCHMARKS[name].ask(RawRow("row", values, lambda: (shown,)), boxes)


@pytest.mark.parametrize("name", YAML)
def test_prompts_are_the_tasks(name: str) -> None:
    settings = config(name)
    for row in rows(name):
        [question] = asked(name, row)
        doc = row | {"answer": row["answer"][0]} if name.startswith("refcoco") else row
        assert question.question == prompt(settings, doc)


@pytest.mark.parametrize("name", YAML)
def test_lengths_and_places_are_the_tasks(name: str) -> None:
    settings, benchmark = config(name), BENCHMARKS[name]
    assert settings.get("generation_kwargs", {}).get("max_new_tokens") == benchmark.max_new_tokens
    assert settings["dataset_path"] == benchmark.hub[0]
    assert settings["test_split"] == benchmark.split
    assert settings.get("dataset_name") in {None, benchmark.hub[1][0]}


def test_boxes_are_those_that_the_task_makes() -> None:
    datasets = pytest.importorskip("datasets")
    found = rows("refcoco")
    docs = [
        {**row, "image": Image.open(io.BytesIO(row["image"]["bytes"])), "answer": [*row["answer"], "again"]}
        for row in found
    ]
    theirs = refcoco_bbox_rec_preprocess_dataset(datasets.Dataset.from_list(docs))
    mine = [each for row in found for each in asked("refcoco", row | {"answer": [*row["answer"], "again"]})]
    assert len(theirs) == len(mine) == 8
    for doc, question in zip(theirs, mine, strict=True):
        assert question.question.endswith(doc["answer"])
        assert METRICS["box"](str(doc["bbox"]), question.answers) == 1.0
        [box] = question.answers
        assert eval(box) == pytest.approx(doc["bbox"], abs=1e-12)


def test_boxes_in_json_are_asked_for_as_their_task_asks() -> None:
    from lmms_eval.tasks.refcoco_grounding.utils import refcoco_grounding_doc_to_text

    for row in rows("refcoco"):
        [question] = asked("refcoco", row | {"answer": ["one", " two "]}, "pixels")
        assert question.question == refcoco_grounding_doc_to_text({"answer": ["one", " two "]})


def test_the_judge_s_prompt_is_mm_vet_s() -> None:
    expected = f"{MM_VET_PROMPT}\nWhy? | a <AND> b | c |"
    assert judging_prompt("Why?", "a<AND>b", "c") == expected


def test_options_are_theirs() -> None:
    text, options = mmbench_evaluator.create_options_prompt(HAND_MADE["mmbench"][0], list("ABCDE"))
    [question] = asked("mmbench", HAND_MADE["mmbench"][0])
    assert text in question.question
    assert question.answers == ("A", *(options[letter] for letter in "AB"))
