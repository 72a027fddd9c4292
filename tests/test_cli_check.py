"""``sgl check``: what it prints, and its exit codes."""

import json
import shutil
from pathlib import Path

import pytest

from sgl_engine.cli import main
from sgl_engine.demo import WEIGHTS
from sgl_engine.planning import PairCheck


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The bundled pair before its download."""
    folder = tmp_path_factory.mktemp("pair")
    for size in ("small", "large"):
        shutil.copytree(WEIGHTS / size, folder / size, ignore=shutil.ignore_patterns("*.safetensors"))
    return [str(folder / "small"), str(folder / "large")]


def test_a_table_and_the_same_as_json(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *pair, "--page", "384x384", "--json"]) == 0
    found = PairCheck.model_validate(json.loads(capsys.readouterr().out))
    assert found.runs
    assert found.page == (384, 384)
    assert main(["check", *pair, "--page", "384x384"]) == 0
    shown = capsys.readouterr().out
    assert f"{found.small.page_tokens} visual tokens" in shown
    assert "internvl (family internvl" in shown
    assert "operations small : large" in shown
    assert found.cascade is not None
    for preset in found.cascade.presets:
        assert f"{preset.savings[0].saved_fraction:.0%}" in shown
    assert "this machine: " in shown
    assert "engine = SGLEngine.from_pretrained(" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "from_pretrained" not in line)


def test_a_pair_that_does_not_run_is_bad_input(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", pair[0], str(tmp_path / "nowhere")]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "There is no model folder" in shown
    assert "from_pretrained" not in shown


def test_a_hub_that_cannot_be_reached_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("No address of that name")

    httpx2 = pytest.importorskip("httpx2", reason="the hub's client may use another library")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert main(["check", "a/b", "c/d"]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "The files of a/b cannot be fetched (ConnectError: No address of that name)" in shown


@pytest.mark.parametrize("page", ["10", "0x5", "axb"])
def test_a_page_is_width_times_height(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as usage:
        main(["check", "a", "b", "--page", page])
    assert usage.value.code == 2
    assert "is not WIDTHxHEIGHT in pixels" in capsys.readouterr().err
