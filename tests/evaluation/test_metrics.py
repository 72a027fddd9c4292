"""Each metric, on the examples that its definition was published with."""

import sys

import pytest

from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.metrics import METRICS, anls, exact, normalise, relaxed, vqa_score
from sgl_engine.evaluation.optional import extra

# google-research/pix2struct, metrics_test.py: right answer, prediction.
PIX2STRUCT = [
    ("abc", "abc"),
    ("Abc", "abc"),
    ("abc", "Abc"),
    ("96%", "100%"),
    ("94%", "100%"),
    ("0.96", "100%"),
    ("0.94", "100%"),
    ("Won't", "Don't"),
]


@pytest.mark.parametrize(("metric", "percent"), [("exact", 12.5), ("anls", 47.5), ("relaxed", 62.5)])
def test_published_totals(metric: str, percent: float) -> None:
    values = [METRICS[metric](prediction, [right]) for right, prediction in PIX2STRUCT]
    assert 100 * sum(values) / len(values) == pytest.approx(percent)


@pytest.mark.parametrize(("others", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_score_by_how_many_of_ten_said_so(others: int, value: float) -> None:
    # The scores of VQA v2 (Goyal et al., 2017), as pythia's and MMF's answer databases list them.
    said = ["red"] * others + [f"other {number}" for number in range(10 - others)]
    assert vqa_score("red", said) == pytest.approx(value)


def test_vqa_score_leaves_each_person_out() -> None:
    said = ["red", "red", "red", "blue"]
    by_hand = [min(1, sum(each == "red" for each in said[:i] + said[i + 1 :]) / 3) for i in range(4)]
    assert vqa_score("red", said) == pytest.approx(sum(by_hand) / 4)
    assert vqa_score("red", said) < min(1, said.count("red") / 3)  # what the abstract of the metric suggests


@pytest.mark.parametrize(
    ("answer", "normal"),
    [  # visualqa.org/evaluation.html: case, periods, number words, articles, apostrophes, punctuation
        ("Two", "2"),
        ("A dog.", "dog"),
        ("the Cat", "cat"),
        ("an apple", "apple"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # one apostrophe is put back, not two
        ("couldnt've", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("3.14", "3.14"),
        ("a.m.", "am"),
        ("stop-sign", "stop sign"),
        ("stop - sign", "stop sign"),
        ("red / blue", "red blue"),
        ("none", "0"),
        ("the", ""),
        ("what?\n", "what"),
    ],
)
def test_normalisation(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


def test_possessives_stay() -> None:
    assert normalise("girl's") == "girl 's"  # as TextVQA's evaluation splits them
    assert normalise("girl's") != normalise("girls")


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [  # Biten et al., 2019, equation 1: 1 - edits / longer length, 0 where less than half is left
        ("Denver Broncos", ["denver  broncos "], 1.0),  # case and repeated space do not count
        ("DenverBroncos", ["Denver Broncos"], 1 - 1 / 14),  # space does
        ("abcd", ["abxx"], 0.5),  # the challenge's evaluation counts the threshold itself
        ("abcd", ["axxx"], 0.0),
        ("kitten", ["sitting", "kittens"], 1 - 1 / 7),  # the best of the right answers
        ("", ["a"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls(answer: str, right: list[str], value: float) -> None:
    assert anls(answer, right) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "right", "value"),
    [  # Masry et al., 2022, section 5.1: within 5 % of the right number, else an exact match
        ("105", ["100"], 1.0),
        ("105.1", ["100"], 0.0),
        ("95", ["100"], 1.0),
        ("-95", ["-100"], 1.0),
        ("95", ["-100"], 0.0),
        ("14%", ["0.14"], 1.0),
        ("14", ["14%"], 0.0),  # no percent sign is another number
        ("0", ["0"], 1.0),
        ("0.0", ["0"], 0.0),
        (" Brazil", ["brazil"], 1.0),
        ("Brazi", ["Brazil"], 0.0),
        ("nan", ["3"], 0.0),
        ("seven", ["7", "Seven"], 1.0),
    ],
)
def test_relaxed(answer: str, right: list[str], value: float) -> None:
    assert relaxed(answer, right) == value


def test_exact_only_forgives_space_around() -> None:
    assert exact(" 12.50\n", ["x", "12.50"]) == 1.0
    assert exact("12.5", ["12.50"]) == exact("A", ["a"]) == exact("a  b", ["a b"]) == 0.0


def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    monkeypatch.delitem(sys.modules, "rapidfuzz.distance", raising=False)
    with pytest.raises(ConfigError, match=r"rapidfuzz.* is not installed.*pip install '\.\[evaluation\]'"):
        extra("rapidfuzz.distance")
