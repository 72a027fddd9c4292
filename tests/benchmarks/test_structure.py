"""What `benchmarks.structure` counts while a request runs; what it reads off the source: test_house.py."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import crossing, structure
from benchmarks.source import import_graph, read_modules

ROOT = Path(__file__).parents[2]
ORDER = "request serving passes cascade engine __init__".split()


def test_a_request_calls_upwards_only_by_what_was_passed_down() -> None:
    found = crossing.crossing()
    assert Path(found["root"]) == ROOT
    order = structure.layer_order(ROOT)
    assert order
    modules = set(found["modules"])
    assert {"sgl_engine.cascade", "sgl_engine.passes.large", "sgl_engine.serving.worker"} <= modules
    assert "sgl_engine.testing" not in modules  # what built the models is not part of the request
    upward = structure.upward_calls(found["calls"], order)
    assert ("sgl_engine.serving.scheduler", "sgl_engine.cascade", "answer") in [
        tuple(call) for call in upward
    ]
    assert structure.by_name(upward, import_graph(read_modules(ROOT))) == []


def test_upward_calls_are_told_from_downward_ones_and_by_name_from_by_value() -> None:
    up = ("sgl_engine.serving.job", "sgl_engine.passes.large", "run")
    down = ("sgl_engine.engine", "sgl_engine.cascade", "answer")
    first = ("", "sgl_engine.engine", "SGLEngine.run")
    assert structure.upward_calls([up, down, first], ORDER) == [up]
    assert structure.by_name([up], {"sgl_engine.serving.job": {"sgl_engine.passes.large"}}) == [up]
    assert structure.by_name([up], {"sgl_engine.serving.job": {"sgl_engine.request"}}) == []


def test_the_table_has_a_column_for_each_checkout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for checkout, sources in {
        "old": {"sgl_engine/one.py": "", "sgl_engine/two.py": "import sgl_engine.one\n"},
        "new": {"sgl_engine/all/one.py": "", "langchain_sgl/two.py": "x = 1  # why\n"},
    }.items():
        for path, source in {**sources, "tests/test_house.py": ""}.items():
            (tmp_path / checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / checkout / path).write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["structure", "old", "new", "--no-run", "--json", "figures.json"])
    structure.main()
    printed = capsys.readouterr().out
    table = dict(
        re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in printed.splitlines() if "  " in line.strip()
    )
    assert table["modules at the door of sgl_engine"].split() == [str(structure.MAX_DOOR), "2", "0"]
    assert table["longest import chain"].split() == [str(structure.MAX_CHAIN), "2", "1"]
    assert table["comments per 1,000 lines"].split() == ["0", "1000"]
    assert table["modules crossed by a request"].split() == [str(structure.MAX_CROSSED), "-", "-"]
    assert "sgl_engine.two -> sgl_engine.one" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [each["door"] for each in figures.values()] == [["one.py", "two.py"], []]
