"""Matrices of parameters of which every second case is enough."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def half(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes with every second combination, as the squares of one colour on a chessboard.

    Whichever axis one leaves out, every combination of all the others is among them: what is lost are faults
    that need one certain value on every single axis.
    """
    values = list(product(*(enumerate(axis) for axis in axes.values())))
    chosen = [case for case in values if sum(index for index, _ in case) % 2 == 0]
    return pytest.mark.parametrize(tuple(axes), [tuple(value for _, value in case) for case in chosen])
