import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_engine.config import ExitConfig
from sgl_engine.errors import ConfigError
from sgl_engine.exit.decision import (
    DEFAULT_SCORER,
    SCORERS,
    Confidence,
    consistency_keep_ratio,
    measure_answer,
    reads_consistency,
    score_parts,
)


def measure_confidence(
    answer: list[float], entropies: list[float], consistency: list[float] | None, scorer: str | None = None
) -> Confidence:
    return score_parts(measure_answer(answer, entropies, consistency), scorer)


PROBABILITIES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20)


@given(answer=PROBABILITIES, consistency=PROBABILITIES)
def test_parts_equal_products_of_probabilities(answer: list[float], consistency: list[float]) -> None:
    nats = [-p * math.log(p) for p in answer]
    got = measure_confidence([math.log(p) for p in answer], nats, [math.log(p) for p in consistency])
    assert got.parts["confidence"] == pytest.approx(math.prod(answer) ** (1 / len(answer)))
    assert got.parts["answer_probability"] == pytest.approx(math.prod(answer))
    assert got.parts["min_token_probability"] == pytest.approx(min(answer))
    assert got.parts["mean_entropy"] == pytest.approx(sum(nats) / len(nats))
    assert got.parts["consistency_product"] == pytest.approx(math.prod(consistency))
    mean = math.prod(consistency) ** (1 / len(consistency))
    assert got.parts["consistency_geometric_mean"] == pytest.approx(mean)
    assert 0 <= got.score <= 1


def test_long_answers_do_not_underflow() -> None:
    got = measure_confidence([math.log(0.3)] * 500, [1.0] * 500, [math.log(0.3)] * 500)
    assert got.parts["confidence"] == pytest.approx(0.3)
    assert got.parts["consistency_geometric_mean"] == pytest.approx(0.3)
    assert got.parts["consistency_product"] == pytest.approx(0.3**500)
    assert got.parts["consistency_product"] > 0


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        ("mean_geometric", (0.5 + 0.4) / 2),
        ("mean_product", (0.5 + 0.16) / 2),
        ("confidence", 0.5),
        ("answer_probability", 0.25),
        ("consistency_geometric_mean", 0.4),
        ("consistency_product", 0.16),
        ("min_token_probability", 0.4),
        ("entropy", 1 / 4),  # two tokens, drawn among 2 and among 8: 4 in the geometric mean
    ],
)
def test_scorers(scorer: str, expected: float) -> None:
    got = measure_confidence(
        [math.log(0.625), math.log(0.4)], [math.log(2), math.log(8)], [math.log(0.4)] * 2, scorer
    )
    assert got.score == pytest.approx(expected)


def test_the_default_scorer_is_registered() -> None:
    assert DEFAULT_SCORER in SCORERS
    both = [math.log(0.5)], [0.7], [math.log(0.2)]
    assert measure_confidence(*both).score == measure_confidence(*both, DEFAULT_SCORER).score


def test_without_consistency_the_score_is_the_confidence() -> None:
    got = measure_confidence([math.log(0.5)], [0.7], None, "consistency_product")
    assert got.score == got.parts["confidence"] == pytest.approx(0.5)


def test_unknown_scorers_are_refused() -> None:
    with pytest.raises(ConfigError, match="no scorer 'luck'.*mean_geometric"):
        measure_confidence([0.0], [0.0], None, "luck")


def test_what_reads_consistency_and_what_does_not() -> None:
    """By trying: a scorer that does not read it scores the answer's own measurements."""
    own = measure_answer([math.log(0.5)], [0.7], None)
    for name, scorer in SCORERS.items():
        if reads_consistency(name):
            with pytest.raises(KeyError, match="consistency"):
                scorer(own)
        else:
            assert score_parts(own, name, pictures=True).score == scorer(own)
    assert {reads_consistency(name) for name in SCORERS} == {True, False}
    assert reads_consistency(None)


def test_an_added_scorer_is_taken_to_read_consistency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS, "confidence", lambda parts: parts["consistency_product"])
    assert consistency_keep_ratio(ExitConfig(scorer="confidence")) == 0.05
    assert consistency_keep_ratio(ExitConfig(scorer="answer_probability")) is None


@pytest.mark.parametrize(
    ("config", "calibration_reads", "ratio"),
    [
        (ExitConfig(), False, 0.05),
        (ExitConfig(scorer="entropy"), False, None),
        (ExitConfig(scorer="entropy"), True, 0.05),
        (ExitConfig(scorer="entropy", consistency="always", consistency_keep_ratio=0.2), False, 0.2),
    ],
)
def test_the_consistency_pass_runs_where_somebody_reads_it(
    config: ExitConfig, calibration_reads: bool, ratio: float | None
) -> None:
    assert consistency_keep_ratio(config, calibration_reads=calibration_reads) == ratio
