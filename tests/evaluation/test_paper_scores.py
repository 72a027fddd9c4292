"""From rows to the paper's table: what each benchmark asks, its own score, and the mean of what is kept."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sgl_engine import HostedAnswer, HostedCall
from sgl_engine.evaluation.columns import RawRow
from sgl_engine.evaluation.metrics import JUDGED, METRICS
from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS, Coordinates, PaperQuestion
from sgl_engine.evaluation.paper.judge import Judge, judging_prompt
from sgl_engine.evaluation.paper.scores import BenchmarkScore, PaperScores, large_alone, of_group, systems_of
from sgl_engine.evaluation.records import BenchAnswer, DataRow, Scored

MakeRow = Callable[..., Scored]
PICTURE = Image.new("RGB", (200, 100))


def ask(name: str, boxes: Coordinates = "fractions", **values: Any) -> list[PaperQuestion]:
    return BENCHMARKS[name].ask(RawRow("row 1", values, lambda: (PICTURE,)), boxes)


@pytest.mark.parametrize("boxes", ["fractions", "pixels", "thousandths"])
def test_a_box_is_right_in_the_unit_that_is_asked_for(boxes: Coordinates) -> None:
    row = {"question_id": "1", "answer": ["the cat", "left"], "bbox": [20.0, 10.0, 100.0, 40.0]}
    found = ask("refcoco", boxes, **row)
    said = {
        "fractions": "[0.1, 0.1, 0.6, 0.5]",
        "pixels": '```json\n[{"bbox_2d": [20, 10, 120, 50], "label": "cat"}]\n```',
        "thousandths": "<ref>the cat</ref><box>[[100, 100, 600, 500]]</box>",
    }
    assert len(found) == (1 if boxes == "pixels" else 2)
    for unit, answer in said.items():
        values = [METRICS[each.metric](answer, each.answers) for each in found]
        # Boxes in JSON may be in pixels or thousandths; InternVL's may be fractions as well.
        accepted = {"pixels": {"pixels", "thousandths"}, "thousandths": {"thousandths", "fractions"}}
        assert set(values) == {float(unit in accepted.get(boxes, {boxes}))}, unit
    tsv = {"index": "1", "question": "Where is <ref>the cat</ref>?"}
    corners = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), ("20", "10", "120", "50"), strict=True))
    [same] = ask("refcoco", boxes, **tsv, **corners)
    assert same.answers == found[0].answers
    assert "the cat" in same.question


def test_columns_of_both_harnesses_ask_the_same() -> None:
    seed = {"question": "Which?", "answer": "B", "question_id": "3"}
    options = ["w", "x", "y", "z"]
    [theirs] = ask("seed", **seed, **{f"choice_{k}": v for k, v in zip("abcd", options, strict=True)})
    [kit] = ask("seed", **seed, **dict(zip("ABCD", options, strict=True)))
    assert theirs == kit
    assert theirs.question.startswith("Which?\nA. w\nB. x\nC. y\nD. z\nAnswer with")
    assert ask("seed", **seed, data_type="video", A="w", B="x", C="y", D="z") == []
    [one] = ask(
        "mme", question="Is it? Please answer yes or no.", answer="Yes", category="c", question_id="a.png"
    )
    [two] = ask(
        "mme", question="Is it? Please answer yes or no.", answer="Yes", category="c", image_path="a.png"
    )
    assert one == two
    [bench] = ask(
        "mmbench", index=1_000_007, question="Which?", answer="A", A="a", B="b", C="nan", hint="nan"
    )
    assert (bench.group, bench.answers) == ("7", ("A", "a", "b"))
    with pytest.raises(ValueError, match="its answer 'C' is none of its options A, B"):
        ask("mmbench", index=1, question="q", answer="C", A="a", B="b")
    with pytest.raises(ValueError, match="what 2 people said"):
        ask("textvqa", question="q", answers=["a", "b"])


def scored(make_row: MakeRow, rows: list[tuple[str, str, str, float, float]]) -> list[Scored]:
    """Rows of (benchmark, part, group, the large model's value, the guided one's)."""
    metrics = {"mme": "yes_no", "mmbench": "choice"}
    found = []
    for index, (name, part, group, large, guided) in enumerate(rows):
        row = DataRow(
            index=index,
            id=f"{name}/{index}",
            kind=name,
            metric=metrics.get(name, "exact"),
            question="q?",
            answers=("a",),
            part=part,
            group=group,
        )
        made = make_row(index, score=0.5, small=0.0, large=large, guided=(guided, 0.0))
        found.append(Scored(row=row, outcome=made.outcome))
    return found


def table(rows: list[Scored], draws: int = 200) -> PaperScores:
    names = dict.fromkeys(each.row.kind for each in rows)
    scorings = [
        BenchmarkScore.of(
            BENCHMARKS[name],
            [each.row for each in rows if each.row.kind == name],
            [each for each in rows if each.row.kind == name],
            draws,
        )
        for name in names
    ]
    systems = systems_of(["35%"], [], cascade_at="35%", threshold=0.4)
    return PaperScores(scorings, systems, lambda _, answer: answer.value)


ROWS = [
    ("mme", "existence", "existence/1", 1.0, 1.0),
    ("mme", "existence", "existence/1", 1.0, 0.0),
    ("mme", "existence", "existence/2", 1.0, 1.0),
    ("mme", "existence", "existence/2", 0.0, 0.0),
    ("mme", "count", "count/1", 1.0, 1.0),
    ("mme", "count", "count/1", 1.0, 1.0),
    ("mmbench", "", "5", 1.0, 1.0),
    ("mmbench", "", "5", 1.0, 0.0),
    ("mmbench", "", "6", 1.0, 1.0),
    ("gqa", "", "", 0.5, 1.0),
    ("gqa", "", "", 1.0, 0.0),
]


def test_each_benchmark_has_its_own_score(make_row: MakeRow) -> None:
    scores = table(scored(make_row, ROWS))
    # By hand: acc + acc+ of pictures is 200, 50 and 200; of the guided model 50, 50 and 200.
    assert scores.score("large alone", "mme").value == pytest.approx((200 + 50) / 2 + 200)
    assert scores.score("large, guided 35%", "mme").value == pytest.approx((50 + 50) / 2 + 200)
    assert scores.score("large alone", "mmbench").value == 100.0
    assert scores.score("large, guided 35%", "mmbench").value == 50.0
    assert scores.score("large alone", "gqa").value == 75.0
    kept = scores.kept("large, guided 35%")
    assert kept.value == pytest.approx((250 / 325 + 0.5 + 50 / 75) / 3)
    assert kept.low < kept.value < kept.high
    unpruned = scores.kept("large alone")
    assert (unpruned.value, unpruned.low, unpruned.high) == pytest.approx((1.0, 1.0, 1.0))
    # The cascade exits at 0.4: every small answer is kept, and is wrong.
    assert scores.kept("cascade 35%, exit 0.4").value == 0.0
    shown = scores.table()
    assert shown.columns[1:4] == ("MME (3)", "MMBench (2)", "GQA (2)")
    assert [row[1] for row in shown.rows] == ["325.0", "250.0", "0.0", "0.0"]
    assert scores.operations("large alone") == 1.0
    assert scores.operations("large, guided 35%") == pytest.approx(0.4 + 0.5)
    assert json.loads(json.dumps(scores.json()))["large alone"]["gqa"]["value"] == 75.0


def test_intervals_are_those_of_a_slow_bootstrap(make_row: MakeRow) -> None:
    scores = table(scored(make_row, ROWS), draws=50)
    slow = []
    for draw in range(51):
        ratios = []
        for each in scores.scorings:
            weights = each.weights[draw]
            totals = []
            for system in (scores.systems["large, guided 35%"], large_alone):
                parts: dict[str, list[float]] = {}
                for weight, group in zip(weights, each.groups, strict=True):
                    rows = [each.rows[place] for place in group]
                    value = of_group(rows[0].row.metric, [system(row.outcome)[0].value for row in rows])
                    parts.setdefault(rows[0].row.part, []).extend([value] * int(weight))
                means = [sum(values) / len(values) for values in parts.values() if values]
                totals.append(sum(means) / len(means) * len(parts) * each.benchmark.scale)
            ratios.append(totals[0] / totals[1] if totals[1] else math.nan)
        slow.append(sum(ratios) / len(ratios))
    found = scores.kept("large, guided 35%")
    assert found.value == pytest.approx(slow[0])
    known = [each for each in slow[1:] if math.isfinite(each)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(known, [0.025, 0.975])))


def test_groups_that_lack_an_answer_are_left_out_and_named(make_row: MakeRow) -> None:
    rows = scored(make_row, [*ROWS, ("mme", "count", "count/9", 1.0, 1.0)])
    scores = table(rows)
    assert scores.score("large alone", "mme").value == pytest.approx(325.0)  # one question is no pair
    assert scores.notes() == [
        "MME: 1 groups of questions are left out, as not all of theirs have an answer: count/9."
    ]
    asked = [each.row for each in rows if each.row.kind == "mmbench"]
    answered = [each for each in rows if each.row.kind == "mmbench"][1:]
    lacking = BenchmarkScore.of(BENCHMARKS["mmbench"], asked, answered, 10)
    assert (lacking.incomplete, len(lacking.groups)) == (("5",), 1)


class Scripted:
    """A judge that says what it is told to."""

    name = "judge-1"

    def __init__(self, *said: str) -> None:
        self.said = list(said)
        self.heard: list[HostedCall] = []

    def stream(self, call: HostedCall) -> Iterator[Any]:
        self.heard.append(call)
        yield from ()
        return HostedAnswer(self.said.pop(0))


def test_a_judge_is_asked_once_and_again_where_it_says_no_number(tmp_path: Path) -> None:
    row = DataRow(
        index=0,
        id="mmvet/v1_0",
        kind="mmvet",
        metric=JUDGED,
        question="First please ...",
        answers=("-1 <AND> -5", "What is x?"),
    )
    answer = BenchAnswer(text="x = -1 ", value=math.nan, tokens=3, tflops=1.0)
    model = Scripted("Well,", "0.5 because")
    judge = Judge(model, tmp_path)  # type: ignore[arg-type]  # a generator, but for its type
    assert math.isnan(judge.value(row, answer))
    judge.judge([(row, answer), (row, answer)])
    assert judge.value(row, answer) == 0.5
    first, second = model.heard
    assert first.request.messages[0].content == (judging_prompt("What is x?", "-1 <AND> -5", "x = -1"),)
    assert first.request.messages[0].content[0].endswith("\n\nWhat is x? | -1  <AND>  -5 | x = -1 |")  # type: ignore[union-attr]
    assert (first.request.temperature, second.request.temperature) == (0.0, 0.5)
    again = Judge(Scripted(), tmp_path)  # type: ignore[arg-type]
    again.judge([(row, answer)])  # known from the file
    assert again.value(row, answer) == 0.5
    other = answer.model_copy(update={"text": "x = 3"})
    deaf = Judge(Scripted("no", "-", "2"), tmp_path)  # type: ignore[arg-type]
    deaf.judge([(row, other)])
    assert math.isnan(deaf.value(row, other))
    assert "which is no number" in deaf.failed["mmvet/v1_0"]


def test_unjudged_answers_have_no_score(make_row: MakeRow) -> None:
    rows = scored(make_row, [("mmvet", "", "", math.nan, math.nan), ("gqa", "", "", 1.0, 1.0)])
    scores = table(rows)
    assert scores.table().rows[0][1] == "n/a"
    assert scores.comparable == ["gqa"]
    assert scores.notes() == ["MM-Vet is not in the last column: its unpruned score is 0 or unknown."]
    assert scores.json()["large alone"]["mmvet"] == {"value": None, "low": None, "high": None}
