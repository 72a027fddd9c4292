"""When a list is settled, what is asked about a document, and in which order documents come back."""

import itertools
import math

import pytest

from sgl_engine import ConfigError, ExitConfig, MissingImageError
from sgl_engine.relevance import (
    YES_OR_NO,
    Judged,
    RelevanceQuestion,
    Round,
    contenders,
    default_question,
    list_score,
    order,
    run_rounds,
    settle,
)
from sgl_engine.response import AnswerScores


@pytest.mark.parametrize(
    ("scores", "unsettled"),
    [
        ([0.1, 0.9, 0.0], []),  # one is surely relevant, the others surely not
        ([0.1, 0.9, 0.95], [2, 1]),  # two are
        ([0.1, 0.9, 0.3], [1, 2]),  # one of the others may be
        ([0.1, 0.7, 0.0], [1]),  # none is, one may be
        ([0.1, 0.0, 0.2], []),  # surely none is
        ([None, 0.9, None], []),
        ([], []),
    ],
)
def test_when_a_list_is_settled(scores: list[float | None], unsettled: list[int]) -> None:
    assert contenders(scores, 0.8) == unsettled


def by_the_words(scores: tuple[float | None, ...], threshold: float) -> bool:
    """The rule as it is written down, as the oracle."""
    known = [score for score in scores if score is not None]
    maybe = [score for score in known if not 1 - score >= threshold]
    return not maybe or (len(maybe) == 1 and maybe[0] >= threshold)


def test_the_score_of_a_list_is_the_highest_threshold_that_settles_it() -> None:
    values = (None, 0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0)
    settled = 0
    for scores in itertools.chain.from_iterable(itertools.product(values, repeat=n) for n in range(4)):
        for threshold in (0.0, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0):
            expected = by_the_words(scores, threshold)
            settled += expected
            assert (list_score(scores) >= threshold) is expected, (scores, threshold)
            assert (not contenders(scores, threshold)) is expected, (scores, threshold)
    assert 0 < settled < 8 * sum(8**n for n in range(4))  # the oracle says both


def scored(*scores: float | None) -> list[Judged]:
    return [Judged(score) for score in scores]


@pytest.mark.parametrize(
    ("escalate", "models"), [("never", ["small"]), ("always", ["large"]), ("auto", ["small", "large"])]
)
def test_the_rounds_of_a_list(escalate: str, models: list[str]) -> None:
    rounds: list[Round] = []

    def run(step: Round) -> list[Judged]:
        rounds.append(step)
        return scored(0.1, 0.9, 0.95) if len(rounds) == 1 else scored(0.3, None)

    rule = ExitConfig(threshold=0.8, escalate=escalate)
    judged = run_rounds(settle(3, rule), run)
    assert [step.model for step in rounds] == models
    assert rounds[0].indices == (0, 1, 2)
    if escalate == "auto":
        assert rounds[1].indices == (2, 1)
        assert judged == scored(0.1, 0.9, 0.3)  # the large model failed on the second document


@pytest.mark.parametrize(("most", "again"), [(None, (2, 1)), (1, (2,)), (0, None)])
def test_the_best_are_rescored_up_to_a_limit(most: int | None, again: tuple[int, ...] | None) -> None:
    rounds: list[Round] = []

    def run(step: Round) -> list[Judged]:
        rounds.append(step)
        return scored(0.1, 0.9, 0.95)[: len(step.indices)]

    run_rounds(settle(3, ExitConfig(threshold=0.8), max_rescored=most), run)
    assert [step.indices for step in rounds[1:]] == ([] if again is None else [again])


def test_an_empty_list_asks_nobody() -> None:
    def run(step: Round) -> list[Judged]:
        raise AssertionError(step)

    assert run_rounds(settle(0, ExitConfig()), run) == []


def test_the_order_in_which_documents_come_back() -> None:
    broken = Judged(None, error=MissingImageError("It is gone.", remedy="Send it."))
    judged = [*scored(0.2, 0.9), broken, *scored(0.9, 0.5)]
    assert order(judged) == [1, 3, 4, 0, 2]
    assert order(judged, min_score=0.5) == [1, 3, 4, 2]
    assert order(judged, unreadable="drop") == [1, 3, 4, 0]
    assert order(judged, top_n=2) == [1, 3]


def test_what_is_asked_and_what_its_answers_say() -> None:
    asked, bundled = default_question(is_bundled=False), default_question(is_bundled=True)
    assert asked == RelevanceQuestion(YES_OR_NO, "Yes", "No")
    assert default_question(is_bundled=False, of="document").prompt.startswith("Can this document answer")
    assert asked.answers == ("Yes", "No")
    assert asked.about("a {0} {query}").count("{0}") == 1

    def relevance(question: RelevanceQuestion, *probabilities: float) -> float:
        logs = tuple(map(math.log, probabilities))
        return question.relevance(AnswerScores(question.answers, logs, report=None))  # type: ignore[arg-type]

    assert relevance(asked, 0.3, 0.1) == pytest.approx(0.75)
    assert bundled.answers == ("none",)
    assert relevance(bundled, 0.3) == pytest.approx(0.7)
    assert relevance(bundled, 1 - 1e-12) == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize(
    "asked", [("no place", "Yes", "No"), ("{query}", "", "No"), ("{query}", "Yes", ""), ("{query}", None, "")]
)
def test_what_cannot_be_asked(asked: tuple[str, str | None, str]) -> None:
    with pytest.raises(ConfigError):
        RelevanceQuestion(*asked)
