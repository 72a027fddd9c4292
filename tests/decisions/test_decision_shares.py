import math

import pytest

from sgl_engine.decisions import Option, PutQuestion
from sgl_engine.decisions.shares import concentration, mean, option_logits, orders, softmax


def put(*options: Option, whole: bool = True) -> PutQuestion:
    return PutQuestion(("?",), options, whole)


def test_all_ways_to_say_an_answer_count() -> None:
    asked = put(Option(("Yes", "yes")), Option(("No",)))
    logits = option_logits(asked, [(math.log(0.2), math.log(0.5)), (math.log(0.3), 0.0), (math.log(0.1),)])
    assert list(map(math.exp, logits)) == pytest.approx([0.4, 0.1])
    assert softmax(logits) == pytest.approx([0.8, 0.2])


def test_a_mean_takes_the_length_away() -> None:
    long, short = (math.log(0.5),) * 4, (math.log(0.4),)
    whole = softmax(option_logits(put(Option(("a b c",)), Option(("d",))), [long, short]))
    of_tokens = softmax(option_logits(put(Option(("a b c",)), Option(("d",)), whole=False), [long, short]))
    assert whole == pytest.approx([0.0625 / 0.4625, 0.4 / 0.4625])
    assert of_tokens == pytest.approx([0.5 / 0.9, 0.4 / 0.9])


def test_a_beginning_needs_no_end_and_the_rest_is_what_is_left() -> None:
    asked = put(Option(begins=("5.",)), Option(says=("none",)), Option(rest=True))
    logits = option_logits(asked, [(math.log(0.5), math.log(0.01)), (math.log(0.2), 0.0)])
    assert list(map(math.exp, logits)) == pytest.approx([0.5, 0.2, 0.3])


def test_what_is_certain_leaves_nothing_and_stays_finite() -> None:
    logits = option_logits(put(Option(("none",)), Option(rest=True)), [(0.0, 0.0)])
    assert softmax(logits) == pytest.approx([1.0, 0.0])
    assert all(map(math.isfinite, logits))


def test_temperature() -> None:
    logits = [math.log(0.8), math.log(0.2)]
    assert softmax(logits, 2.0) == pytest.approx([2 / 3, 1 / 3])
    assert softmax([-math.inf, -math.inf]) == [0.5, 0.5]
    assert mean([[0.8, 0.2], [0.4, 0.6]]) == pytest.approx([0.6, 0.4])


def test_concentration() -> None:
    assert concentration([0.25] * 4) == pytest.approx(0.0)
    assert concentration([1.0, 0.0]) == concentration([1.0]) == 1.0
    assert 0 < concentration([0.7, 0.3]) < concentration([0.9, 0.1]) < 1


@pytest.mark.parametrize(
    ("count", "wanted", "found"), [(1, 4, 1), (2, 5, 2), (3, 24, 6), (9, 4, 4), (2, 1, 1)]
)
def test_orders_are_different_permutations(count: int, wanted: int, found: int) -> None:
    drawn = list(orders(count, wanted))
    assert len(drawn) == len(set(drawn)) == found
    assert all(sorted(order) == list(range(count)) for order in drawn)
    assert drawn[0] == tuple(range(count))
    assert drawn == list(orders(count, wanted))
    if wanted > 1 < count:
        assert drawn[1] == drawn[0][::-1]
