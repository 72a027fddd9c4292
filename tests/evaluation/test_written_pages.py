"""What is built from a benchmark's folder: tables in pages, and the model card."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sgl_engine.evaluation import report as report_module
from sgl_engine.evaluation.intervals import Bootstrap
from sgl_engine.evaluation.records import BenchRecord, Scored
from sgl_engine.evaluation.report import Report, make_report
from sgl_engine.evaluation.store import BenchModel, Manifest
from sgl_engine.evaluation.summary import Summary
from training.card import measured
from training.tables import TITLES, fill

MODEL = BenchModel(name="m", revision=None, weights="0", dtype="float32", device="cpu")


@pytest.fixture
def report(make_row: Callable[..., Scored], monkeypatch: pytest.MonkeyPatch) -> Report:
    """Twenty rows about one or two tiles, one of them a transcription."""
    monkeypatch.setattr(report_module, "SECTIONS", {})
    kept = {"small-guided": {"35%": 0.75, "9%": 0.5}, "random": {"35%": 0.2, "9%": 0.0}}
    rows = [
        make_row(
            n,
            score=n / 20,
            small=float(n >= 10),
            large=float(n != 3),
            kind="transcribe" if n == 19 else "sum",
            study={"prompt": {"grids": 1 + n % 2, "evidence": kept}},
        )
        for n in range(20)
    ]
    return make_report(
        Manifest(engine_version="1", small=MODEL, large=MODEL, data="made up", settings={}),
        [BenchRecord(row=row.row, outcome=row.outcome) for row in rows],
        [],
        lambda chosen: Summary(
            rows=chosen, draws=Bootstrap(len(chosen), draws=100), point="35%", threshold=0.8
        ),
    )


def numbers(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(report.json(), allow_nan=False))
    return found


def test_blocks_of_a_page_are_replaced_and_nothing_else(report: Report) -> None:
    blocks = [f"<!-- bench: {name} -->\nold\n<!-- /bench -->\n" for name in (*TITLES, "readme")]
    page = "before\n" + "between\n".join(blocks) + "after\n"
    filled = fill(page, report.markdown(), numbers(report))
    assert "old" not in filled
    assert filled.startswith("before\n<!-- bench: systems -->\n| system | accuracy % |")
    assert filled.endswith("<!-- /bench -->\nafter\n")
    assert filled.count("between\n") == len(TITLES)
    assert "has no table" not in filled
    assert "| large, guided 35% |" in filled
    assert "| small-guided | 100.0 | 0.0 | 75 % |" in filled
    assert fill(filled, report.markdown(), numbers(report)) == filled


def test_a_part_is_taken_whole_without_its_figures() -> None:
    results = "# T\n\n## Scorers\n\n**A**\n\n| a |\n\n![x](x.png)\n\nend\n\n## Other\n\nno\n"
    filled = fill("<!-- bench: scorers -->\n<!-- /bench -->\n", results, {})
    assert filled == "<!-- bench: scorers -->\n**A**\n\n| a |\n\nend\n<!-- /bench -->\n"


def test_a_table_that_a_run_lacks_is_named(report: Report) -> None:
    page = "<!-- bench: sweep -->\n<!-- /bench -->\n"
    assert "(this run has no table of that: The cascade at)" in fill(page, "", numbers(report))


def test_the_card_says_what_the_benchmark_found(report: Report) -> None:
    text = "\n".join(measured(numbers(report)))
    assert "on 19 held-out questions" in text
    assert "| sum | 19 | 47.4 (" in text
    assert "| 2 tiles | 9 |" in text
    assert "| transcribe | 1 |" in text
    assert "exits at 0.8, escalates 84.2 (" in text
