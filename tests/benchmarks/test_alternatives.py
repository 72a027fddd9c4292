"""The engine beside transformers' own ways: greedy ways agree, and the table adds up."""

from typing import Any

from rich.console import Console

from benchmarks.alternatives import Way, ask_all, pages, table_of
from sgl_engine import EngineConfig, ExitConfig, Request, pruning_preset
from sgl_engine.demo import demo_engine


def text_of(table: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_every_way_answers_and_drafts_change_nothing() -> None:
    found, answers = ask_all(1, 40_000)
    assert [len(way.texts) for way in found] == [1] * 4
    plain = found[1].texts
    assert [way.texts for way in found[1:]] == [plain] * 3
    alone = EngineConfig(exit=ExitConfig(escalate="always"), pruning=pruning_preset("100%")).without_reuse()
    [(page, question)] = list(pages(3, 40_000))[2:]
    assert answers == [question.answer]
    assert demo_engine(alone).run(Request.ask(question.text, page)).text == plain[0]


def test_the_table_is_against_plain_generation() -> None:
    ways = [
        Way("engine", lambda _, text: text, seconds=[1.0, 1.0], texts=["a", "c"]),
        Way("plain", lambda _, text: text, seconds=[2.0, 8.0], texts=["a", "b"]),
    ]
    shown = text_of(table_of(ways, ["a", "c"]))
    engine, plain = [line for line in shown.splitlines() if "engine" in line or "plain" in line]
    assert [cell.strip() for cell in engine.strip("│ ").split("│")] == [
        "engine",
        "0.20",
        "0.31",
        "1 of 2",
        "2",
    ]
    assert [cell.strip() for cell in plain.strip("│ ").split("│")] == ["plain", "1.00", "1.00", "2 of 2", "1"]
