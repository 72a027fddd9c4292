"""``sgl demo`` says what really happens: with a pair that knows nothing, that is nothing to be proud of."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from sgl_engine import demo
from sgl_engine.cli import main
from sgl_engine.config import EngineConfig, ExitConfig, GenerationConfig
from sgl_engine.engine import SGLEngine
from sgl_engine.testing import tiny_vlm


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A page with two questions, asked of a pair of random models, which would write as much as they may."""
    config = EngineConfig(generation=GenerationConfig(max_new_tokens=6))
    engine = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config)
    monkeypatch.setattr(demo, "demo_engine", lambda: engine)
    monkeypatch.setattr(demo, "PICTURES", tmp_path)
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(tmp_path / "page.png")
    asked = [{"question": "What is it?", "answer": "milk", "tiles": "all"}]
    asked += [{"question": "And this?", "answer": "tea", "tiles": 1}]
    (tmp_path / "demo.json").write_text(json.dumps(asked))
    return tmp_path / "page.png"


def told(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["demo", "--rounds", "1"]) == 0
    return capsys.readouterr().out


def test_every_question_of_the_page_is_asked_both_ways(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(capsys)
    assert f"The page: {page}\n" in out
    assert re.findall(r"^\d\. (.+)$", out, re.MULTILINE) == ["What is it?", "And this?"]
    assert out.count("WRONG: the page says") == 2
    assert out.count("of the large model alone") == 4
    assert re.search(r"below 0\.8: the large one, which is given \d+ of \d+ visual tokens, \w+", out)


def test_an_early_exit_asks_no_large_model(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = demo.demo_engine()
    config = engine.config.model_copy(update={"exit": ExitConfig(threshold=0.0)})
    monkeypatch.setattr(engine, "config", config)
    out = told(capsys)
    assert out.count("the large model is not asked") == 2
    assert "overrules" not in out
