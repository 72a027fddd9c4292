"""The questions of the demo about the bundled page, which are drawn anew whenever the weights change."""

from __future__ import annotations

import json
from typing import NamedTuple

from sgl_engine.demo import PICTURES


class Asked(NamedTuple):
    """A question, its right answer, which the pair gives by default, and ``PruningConfig.tiles``."""

    question: str
    answer: str
    tiles: int | str


EXITS, OVERRULED, SKIPPING = (Asked(**each) for each in json.loads((PICTURES / "demo.json").read_text()))
