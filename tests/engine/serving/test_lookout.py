"""Many threads that wait look up no more often, all together, than a few do."""

import time
from contextlib import ExitStack

import pytest

from sgl_engine.serving.lookout import LOOKOUT, Lookout


@pytest.mark.parametrize(("waiting", "each_s"), [(0, 0.05), (1, 0.05), (20, 0.05), (40, 0.1), (1000, 2.5)])
def test_how_often_each_looks(waiting: int, each_s: float) -> None:
    lookout = Lookout()
    with ExitStack() as places:
        for _ in range(waiting):
            places.enter_context(lookout.joined())
        assert lookout.interval_s() == pytest.approx(each_s)
        assert waiting / lookout.interval_s() <= 20 / 0.05 + 1e-6  # looks a second, however many there are
    assert lookout.interval_s() == 0.05


def test_a_deadline_is_looked_at_when_it_passes() -> None:
    lookout = Lookout()
    with ExitStack() as places:
        for _ in range(1000):
            places.enter_context(lookout.joined())
        now = time.monotonic()
        assert lookout.interval_s(now + 3600) == pytest.approx(2.5)
        assert 0.05 <= lookout.interval_s(now + 1.0) <= 1.0
        assert lookout.interval_s(now - 1.0) == 0.05  # it is over, and somebody has to say so


def test_who_has_left_is_not_counted() -> None:
    with pytest.raises(ValueError, match="mine"), LOOKOUT.joined():
        raise ValueError("mine")
    assert LOOKOUT.interval_s() == 0.05
