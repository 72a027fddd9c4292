"""What half of a matrix still holds."""

from itertools import product

import pytest
from combinations import half

AXES = {"family": "abcde", "layer": (0, 1, 3), "eager": (False, True), "rest": (None, 1)}


@pytest.mark.parametrize("left_out", AXES)
def test_every_combination_of_all_axes_but_one_is_there(left_out: str) -> None:
    _, cases = half(**AXES).args
    assert len(set(cases)) == len(cases) == 5 * 3 * 2 * 2 / 2
    others = [index for index, name in enumerate(AXES) if name != left_out]
    found = {tuple(case[index] for index in others) for case in cases}
    assert found == set(product(*(AXES[name] for name in AXES if name != left_out)))
