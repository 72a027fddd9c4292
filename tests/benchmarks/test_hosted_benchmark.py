"""The tables of `benchmarks.hosted`, its control, and how a second run goes on."""

import json
import random
from pathlib import Path
from typing import Any

from benchmarks import hosted


def row(seed: int, score: float, *, small: bool, **right: bool) -> dict[str, Any]:
    pixels = {"full": 100, "crop": 40, "auto": 40, "random crop": 40, "overview": 10}
    ways = {
        way: {"mode": "crop", "right": right.get(way, False), "pixels": pixels.get(way, 100), "answer": ""}
        for way in hosted.WAYS
    }
    return {"seed": seed, "kind": "sum", "pixels": 100, "score": score, "small": small, "ways": ways}


ROWS = [row(0, 0.9, small=True, full=False), row(1, 0.1, small=False, full=True, crop=True)]


def test_a_table_counts_answers_and_pixels_of_those_that_were_asked() -> None:
    lines = {line.split(" | ")[0].strip("| "): line for line in hosted.table(ROWS).splitlines()}
    assert lines["full"].split(" | ")[1].startswith("50.0")
    assert lines["full"].split(" | ")[2:] == ["100%", lines["full"].split(" | ")[3], "50%", "50% |"]
    assert lines["full"].split(" | ")[3].startswith("100.0")  # the small answer is right where it is kept
    assert lines["crop"].endswith("| 50% | 20% |")
    assert lines["nothing (small alone)"].split(" | ")[1].startswith("50.0")


def test_kinds_have_a_row_each() -> None:
    assert "| sum | 2 | 50% | 50% | 50% |" in hosted.kinds_table(ROWS)


def test_a_moved_box_keeps_its_size_and_stays_inside() -> None:
    for seed in range(20):
        x0, y0, x1, y1 = hosted.moved((0.1, 0.2, 0.5, 0.9), random.Random(seed))
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert (round(x1 - x0, 9), round(y1 - y0, 9)) == (0.4, 0.7)


def test_rows_of_an_earlier_run_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert hosted.known(file) == hosted.known(None) == []
    file.write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    assert hosted.known(file) == ROWS
