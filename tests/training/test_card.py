"""The model card tells of the weights that are shipped."""

import json

import pytest

from sgl_engine.demo import WEIGHTS
from training.card import describe
from training.export import SHIPPED


@pytest.mark.parametrize(("name", "column"), [("small", 1), ("large", 2)])
def test_the_card_tells_what_both_models_came_to(name: str, column: int) -> None:
    runs = json.loads(SHIPPED.read_text())[name]
    lines = (WEIGHTS / "README.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    table = {row[0]: row[column] for row in rows if len(row) == 3}
    facts = describe(name, runs)
    assert facts == {fact: table[fact] for fact in facts}
    longer = [*runs, {"minutes": 60, "pages": 1, "answers": 1, "steps": 1, "thinned": ""}]
    assert not any(describe(name, longer)[fact] == table[fact] for fact in ("pages", "answers", "steps"))
