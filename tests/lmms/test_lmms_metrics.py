"""Each metric against lmms-eval's own function: on 1,000 random cases, and on odd ones made by hand.

Only where the extra `lmms` is installed (`make lmms`); `.venv-lmms/bin/python -m pytest tests/lmms`.
"""

import json
import math
import random
import string
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval comes with the extra lmms")
pandas = pytest.importorskip("pandas", reason="lmms-eval comes with the extra lmms")

from lmms_eval.api import metrics as theirs  # noqa: E402
from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer  # noqa: E402
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor  # noqa: E402
from lmms_eval.tasks.chartqa.utils import relaxed_correctness  # noqa: E402
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator  # noqa: E402
from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results  # noqa: E402
from lmms_eval.tasks.refcoco import utils_rec  # noqa: E402
from lmms_eval.tasks.refcoco_grounding import utils as grounding  # noqa: E402
from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result  # noqa: E402
from lmms_eval.tasks.textvqa.utils import textvqa_process_results  # noqa: E402

from sgl_engine.evaluation import metrics as ours  # noqa: E402
from sgl_engine.evaluation.extracted import letter_in  # noqa: E402

CASES = 1000
Case = tuple[str, Sequence[str]]

WORDS = """red Red RED the a an 7 seven Seven 12.50 12,50 12% 0.12 0 0.0 none yes No don't dont couldn't've
couldntve girl's o'clock T-shirt t shirt a.m. 3.14 1,000 -5 stop-sign [x] (b) A B. C: (D) D) E the answer is B
nan inf 1e3 ß É naïve ... ? ! ; / _ + = @""".split()


def text(rng: random.Random, most: int = 5) -> str:
    """A few words and marks, with odd space between."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(0, most))]
    noise = rng.choice(["", "", rng.choice(string.punctuation), " ", "\n", "\t"])
    return noise + "".join(word + rng.choice([" ", " ", "  ", "", ", ", "\n"]) for word in words)


def near(rng: random.Random, wanted: str) -> str:
    """The same text, or a text that is a little different."""
    letters = list(wanted)
    for _ in range(rng.randint(0, 2)):
        place = rng.randint(0, len(letters))
        letters[place : place + rng.randint(0, 1)] = rng.choice(["", " ", "x", "A", ".", "5"])
    return rng.choice([wanted, wanted.upper(), wanted.lower(), "".join(letters), text(rng)])


def number(rng: random.Random) -> str:
    value = rng.choice([0, 1, 20, 96, 0.96, 100, -3.5, 1e9, rng.uniform(-10, 10)])
    return rng.choice(
        [f"{value}", f"{value * 1.05}", f"{value * 0.95}", f"{value}%", f" {value}", "nan", "inf"]
    )


def box_text(rng: random.Random, unit: float) -> str:
    corners = [round(rng.uniform(-0.1, 1.1) * unit, rng.randint(0, 3)) for _ in range(4)]
    if rng.random() < 0.8:
        corners = [*map(min, corners[:2], corners[2:]), *map(max, corners[:2], corners[2:])]
    joined = rng.choice([",", ", ", " , "]).join(map(str, corners))
    forms = [
        "[{}]",
        "The box is [{}].",
        "{}",
        "({})",
        "[[{}]]",
        '{{"bbox_2d": [{}], "label": "x"}}',
        "[{}] [1, 2]",
    ]
    forms += ['```json\n[{{"bbox": [{}]}}]\n```', "[{}, 4]", '{{"a": {{"box": [{}]}}}}', "none", ""]
    return rng.choice(forms).format(joined)


def both(mine: float, other: float) -> bool:
    return mine == pytest.approx(other, abs=1e-12)


def vqa(answer: str, said: Sequence[str]) -> float:
    doc = {"question_id": 0, "answers": list(said)}
    return float(textvqa_process_results(doc, [answer.strip()])["exact_match"])


def anls(answer: str, right: Sequence[str]) -> float:
    return float(theirs.anls(references=list(right), predictions=[answer.strip()])["anls"])


def gqa(answer: str, right: Sequence[str]) -> float:
    settings = {"ignore_case": True, "ignore_punctuation": True}
    found = theirs.exact_match_hf_evaluate([answer.strip()], list(right), **settings)
    return float(found["exact_match"])


def chart(answer: str, right: Sequence[str]) -> float:
    return float(relaxed_correctness(answer.strip(), right[0]))


def yes(answer: str, right: Sequence[str]) -> float:
    doc = {"answer": right[0], "category": "existence", "question_id": 0}
    return float(mme_process_results(doc, [answer.strip()])["mme_perception_score"]["score"])


def seed(answer: str, right: Sequence[str]) -> float:
    doc = {"answer": right[0], "data_type": "image", "question_id": 0}
    return float(seed_aggregation_result([seed_process_result(doc, [answer.strip()])["seed_all"]]))


def mmbench(answer: str, right: Sequence[str]) -> float:
    letter, *options = right
    row = {"index": 0, "question": "q", "prediction": answer.strip(), "answer": letter, "category": "c"}
    data = pandas.DataFrame([{**row, **dict(zip("ABCD", options, strict=False))}])
    for name in "ABCD"[len(options) :]:
        data[name] = float("nan")
    evaluator = MMBench_Evaluator()
    return float(evaluator.eval_sub_data(data, {0: letter}, static_only=True))


def rec(answer: str, right: Sequence[str]) -> float:
    result = utils_rec.refcoco_bbox_rec_process_result(
        {"question_id": 0, "answer": "x", "bbox": json.loads(right[0])}, [answer.strip()]
    )
    try:
        return float(utils_rec.refcoco_bbox_rec_acc05([result["refcoco_ACC@0.5"]]))
    except ZeroDivisionError:  # a box without an area, in their function
        return 0.0


def grounded(answer: str, right: Sequence[str]) -> float:
    left, top, end, bottom = json.loads(right[0])
    doc = {"bbox": [left, top, end - left, bottom - top], "answer": "x", "question_id": 0}
    doc["image"] = SimpleNamespace(size=SIZE)
    result = grounding.refcoco_grounding_process_result(doc, [answer.strip()])
    return float(grounding._aggregate([result["refcoco_grounding_ACC@0.5"]], "ACC@0.5"))


SIZE = (640, 480)


def said(rng: random.Random) -> Case:
    right = [text(rng, 2) for _ in range(10)]
    right[1 : rng.randint(1, 6)] = [right[0]] * 4
    return near(rng, right[0]), right[:10]


def short(rng: random.Random) -> Case:
    right = [text(rng, 3)]
    return near(rng, right[0]), right


def several(rng: random.Random) -> Case:
    right = [text(rng, 3) for _ in range(rng.randint(1, 3))]
    return near(rng, rng.choice(right)), right


def charted(rng: random.Random) -> Case:
    right = rng.choice([number(rng).strip(), text(rng, 2).strip()])
    return rng.choice([near(rng, right), number(rng)]), [right]


def said_yes(rng: random.Random) -> Case:
    answers = [
        "Yes",
        "no",
        "Yes.",
        "N",
        "y",
        "y.",
        "not yes",
        "Maybe",
        "no, yes",
        "  YES, it is",
        "know",
        "",
        "eyes",
    ]
    return rng.choice([*answers, text(rng)]), [rng.choice(["Yes", "No", "no."])]


def lettered(rng: random.Random) -> Case:
    return rng.choice([rng.choice("ABCDabcd"), "B. red", "(B)", text(rng)]), [rng.choice("ABCD")]


def chosen(rng: random.Random) -> Case:
    count = rng.choice([2, 3, 4, 4])
    options = [rng.choice(["red", "a dog", "12", "The cat", "seven", "blue sky"]) for _ in range(count)]
    letter = rng.choice("ABCD"[:count])
    forms = [
        "{}",
        "{}.",
        "({})",
        "The answer is {}.",
        "I choose {} because A dog is red",
        "{}: red",
        "Option {})",
    ]
    forms += ["It is {} or B", "A dog", "the best option is {}, not C", ":{}", ":{}.", "maybe {} ?"]
    answer = rng.choice(forms).format(rng.choice("ABCDE"))
    return rng.choice([answer, rng.choice(options), text(rng, 8)]), [letter, *options]


def fractions(rng: random.Random) -> Case:
    return boxed(rng, 1.0)


def thousandths(rng: random.Random) -> Case:
    return boxed(rng, 1000.0)


def boxed(rng: random.Random, unit: float) -> Case:
    corners = sorted(rng.uniform(0, 0.4) for _ in range(2)) + [rng.uniform(0.5, 1) for _ in range(2)]
    moved = [each + rng.uniform(-0.15, 0.15) for each in corners]
    right = str([each * unit for each in corners])
    shown = ", ".join(f"{each * unit:.3f}" for each in moved)
    return rng.choice([f"[{shown}]", f"<box>[[{shown}]]</box>", box_text(rng, unit), box_text(rng, unit)]), [
        right
    ]


def pixels(rng: random.Random) -> Case:
    answer, [right] = boxed(rng, 1.0)
    corners = json.loads(right)
    answer = rng.choice([box_text(rng, 1000.0), box_text(rng, 400.0), answer])
    scaled = [corner * side for corner, side in zip(corners, SIZE * 2, strict=True)]
    if rng.random() < 0.5:
        moved = [corner + rng.uniform(-60, 60) for corner in scaled]
        answer = f'[{{"bbox_2d": {moved}, "label": "x"}}, {{"bbox_2d": [1, 2, 3, 4]}}]'
    return answer, [str(scaled), str([1000 * corner for corner in corners])]


ORACLES: dict[str, tuple[str, Callable[[str, Sequence[str]], float], Callable[[random.Random], Case]]] = {
    "textvqa": ("vqa_score", vqa, said),
    "docvqa": ("anls", anls, several),
    "gqa": ("plain_exact", gqa, short),
    "chartqa": ("relaxed", chart, charted),
    "mme": ("yes_no", yes, said_yes),
    "seed": ("first_letter", seed, lettered),
    "mmbench": ("choice", mmbench, chosen),
    "refcoco, fractions": ("box", rec, fractions),
    "refcoco, thousandths": ("box", rec, thousandths),
    "refcoco, pixels": ("any_box", grounded, pixels),
}


@pytest.mark.parametrize("name", ORACLES)
def test_on_random_cases(name: str) -> None:
    metric, oracle, draw = ORACLES[name]
    rng = random.Random(name)
    cases = [draw(rng) for _ in range(CASES)]
    values = [(ours.METRICS[metric](*case), oracle(*case), case) for case in cases]
    assert [each for each in values if not both(*each[:2])] == []
    right = sum(mine > 0 for mine, _, _ in values)
    assert CASES / 50 < right < CASES * 49 / 50  # the control: both kinds are among them


ODD: list[tuple[str, str, list[str]]] = [
    ("chartqa", "5", ["inf"]),
    ("chartqa", "105", ["100"]),
    ("chartqa", "0.0", ["0"]),
    ("chartqa", "%", ["%"]),
    ("chartqa", "1_0", ["10"]),
    ("docvqa", "a  b", ["a b"]),
    ("docvqa", "STRASSE", ["straße"]),
    ("docvqa", "ab", ["abcd"]),
    ("docvqa", "", [" "]),
    ("gqa", "t-shirt.", ["Tshirt"]),
    ("gqa", "", [""]),
    ("mme", "y.", ["Yes"]),
    ("mme", "n o", ["No"]),
    ("mme", "it's yes", ["Yes"]),
    ("seed", "b", ["B"]),
    ("seed", "", ["B"]),
    ("mmbench", "A", ["A", "x", "y", "z", "w"]),
    ("mmbench", "A is the one that I see", ["A", "x", "y", "z", "w"]),
    ("mmbench", "E", ["A", "x", "y", "z", "w"]),
    ("mmbench", "", ["A", "x", "y"]),
    ("mmbench", "C", ["A", "x", "y"]),
    ("refcoco, fractions", "[0.2, 0.2, 0.1, 0.1]", ["[0.1, 0.1, 0.2, 0.2]"]),
    ("refcoco, fractions", "[0, 0, 0.5, 1]", ["[0, 0, 1, 1]"]),
    ("refcoco, fractions", "[.1, .1, .2, .2]", ["[0.1, 0.1, 0.2, 0.2]"]),
    ("refcoco, thousandths", "<ref>x</ref><box>[[100, 100, 200, 200]]</box>", ["[100, 100, 200, 200]"]),
    ("refcoco, pixels", "64 48 128 96", ["[64, 48, 128, 96]", "[100, 100, 200, 200]"]),
    ("refcoco, pixels", "[100, 100, 200, 200]", ["[64, 48, 128, 96]", "[100, 100, 200, 200]"]),
    ("refcoco, pixels", '{"position": [64, 48, 128, 96]}', ["[64, 48, 128, 96]", "[100, 100, 200, 200]"]),
    ("textvqa", "couldn't've!", ["couldntve", "couldn'tve", "couldn't've"] * 3 + ["x"]),
    ("textvqa", "1,000.", ["1000"] * 10),
    ("textvqa", "No. 5 / 3", ["no 5 3"] * 3 + ["x"] * 7),
]


@pytest.mark.parametrize(("name", "answer", "right"), ODD)
def test_on_odd_cases(name: str, answer: str, right: list[str]) -> None:
    metric, oracle, _ = ORACLES[name]
    assert both(ours.METRICS[metric](answer, right), oracle(answer, right))


def test_a_letter_is_found_as_they_find_it() -> None:
    rng = random.Random(5)
    for _ in range(CASES):
        answer = rng.choice([chosen(rng)[0], text(rng, 9)])
        assert letter_in(answer, list("ABCD")) == extract_mcq_answer(answer, choices=list("ABCD")), answer


def test_answers_are_normalised_as_they_normalise_them() -> None:
    rng, their = random.Random(6), EvalAIAnswerProcessor()
    for _ in range(CASES):
        answer = text(rng, 6)
        assert ours.normalise(answer) == their(answer), answer


def test_sums_of_mme() -> None:
    """Acc and acc+ of each category, summed: from units, as the suite does it."""
    from sgl_engine.evaluation.paper.scores import of_group, score_of

    rng = random.Random(7)
    categories = ["existence", "count", "OCR"]
    rows = [(rng.choice(categories), f"{n}.jpg", [rng.randint(0, 1) for _ in range(2)]) for n in range(60)]
    results = [
        {"question_id": picture, "category": category, "score": float(hit)}
        for category, picture, hits in rows
        for hit in hits
    ]
    units = np.array([of_group("yes_no", [float(hit) for hit in hits]) for _, _, hits in rows])
    parts = np.array([categories.index(category) for category, _, _ in rows])
    [found] = score_of(units, parts, 200.0, np.ones((1, len(units))))
    assert math.isclose(found, mme_aggregate_results(results))
