"""The model card tells of the weights that are shipped."""

import json
from pathlib import Path

import pytest
import torch

from sgl_engine.demo import WEIGHTS
from training.card import describe
from training.export import SHIPPED, came_to


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


def test_what_a_run_of_two_processes_came_to(tmp_path: Path) -> None:
    progress = {"step": 7, "pages": 30, "answers": 500, "seconds": 630.0, "evaluated": 0.0}
    torch.save({"model": {}, "progress": progress}, tmp_path / "checkpoint.pt")
    counts = {"pages": 30, "answers": 500, "steps": 7, "thinned": "none"}
    assert came_to(tmp_path, 2, "none") == {"minutes": 21, **counts}
