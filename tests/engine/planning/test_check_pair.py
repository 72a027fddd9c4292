"""``check_pair`` on folders as repositories are laid out, without weights; and on a hub that is played."""

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from PIL import Image

from benchmarks.pairs import lay_out
from sgl_engine import check_pair, demo
from sgl_engine.config import EngineConfig, ExitConfig, GenerationConfig
from sgl_engine.demo import WEIGHTS, demo_engine
from sgl_engine.errors import ConfigError, ModelNotFoundError, ProcessorError
from sgl_engine.planning import Device, Machine, PairCheck, outline
from sgl_engine.planning.files import model_identity
from sgl_engine.request import Request

DESKTOP = Machine(gpus=(), free_bytes=16 * 2**30, half_precision=True)
QUESTION = "What is the total?"


def without_weights(folder: Path, size: str) -> Path:
    """One of the bundled models, as it is before its weights are downloaded."""
    shutil.copytree(WEIGHTS / size, folder / size, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder / size


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return without_weights(folder, "small"), without_weights(folder, "large")


def test_the_bundled_pair_costs_what_was_said(pair: tuple[Path, Path]) -> None:
    picture = Image.open(min(demo.PICTURES.glob("*.png"))).convert("RGB")
    config = EngineConfig(
        exit=ExitConfig(escalate="always", scorer=demo.SCORER),
        generation=GenerationConfig(draft=False, max_new_tokens=2),
    ).without_reuse()
    report = demo_engine(config).run(Request.ask(QUESTION, picture)).report
    assert report.small_output_tokens == 2

    def said(size: tuple[int, int]) -> PairCheck:
        return check_pair(*pair, config, page=size, question=QUESTION, answer_tokens=2, machine=DESKTOP)

    found = said(picture.size)
    assert found.runs
    assert found.cascade is not None
    assert found.cascade.small_tflops == report.small_tflops
    assert found.cascade.large_alone_tflops == report.large_alone_tflops
    chosen = next(preset for preset in found.cascade.presets if preset.retention == "35%")
    assert chosen.large_tflops == report.large_tflops
    assert chosen.kept_visual_tokens == report.kept_visual_tokens
    assert chosen.average_retention == report.average_retention
    assert found.large.page_tokens == report.visual_tokens
    [often] = [saving for saving in chosen.savings if saving.escalated_fraction == 0.6]
    spent = report.small_tflops + 0.6 * report.large_tflops
    assert often.saved_fraction == pytest.approx(1 - spent / report.large_alone_tflops)
    other = said((picture.width // 3, picture.height))
    assert other.cascade is not None
    assert other.cascade.small_tflops != report.small_tflops  # the control: another page


@pytest.mark.parametrize(
    ("name", "billions", "tokens"),
    [
        ("qwen2.5-vl-3b-instruct", 3.75, 2772),
        ("gemma-3-4b-it", 4.30, 256),
    ],
)
def test_published_configurations(name: str, billions: float, tokens: int, tmp_path: Path) -> None:
    folder = lay_out(name, tmp_path)
    found = check_pair(folder, folder, machine=DESKTOP)
    assert found.small.parameters is not None
    assert round(found.small.parameters / 1e9, 2) == billions  # as published
    assert found.small.page_tokens == tokens
    assert found.small.weights_bytes is not None
    assert found.small.weights_bytes["bfloat16"] == 2 * found.small.parameters


def test_what_is_wrong_is_said_of_the_model_that_it_is_wrong_with(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pair[0], broken)
    (broken / "tokenizer.json").unlink()
    found = check_pair(broken, pair[1], machine=DESKTOP)
    assert (found.runs, found.small.runs, found.large.runs) == (False, False, True)
    assert "processor" in (found.small.problem or "")
    assert found.cascade is None
    (broken / "pytorch_model.bin").touch()
    shutil.copy(pair[0] / "tokenizer.json", broken)
    nowhere = tmp_path / "nowhere"
    found = check_pair(broken, nowhere, machine=DESKTOP)
    assert "pickled" in (found.small.problem or "")
    assert "There is no model folder" in (found.large.problem or "")
    (broken / "adapter_config.json").write_text("{}")
    assert "adapter" in (check_pair(broken, nowhere, machine=DESKTOP).small.problem or "")


def test_a_missing_torchvision_is_named(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: Any) -> Any:
        raise ProcessorError(
            f"The processor of {name} cannot be loaded (it requires Torchvision).", remedy="-"
        )

    monkeypatch.setattr(outline, "load_processor", load)
    monkeypatch.setattr(outline, "is_torchvision_available", lambda: False)
    found = check_pair(*pair, machine=DESKTOP)
    assert "needs torchvision, which is not installed. Install it: pip install torchvision" in (
        found.small.problem or ""
    )


def test_a_page_that_does_not_fit_and_pages_that_are_none(pair: tuple[Path, Path]) -> None:
    found = check_pair(pair[0], "/nowhere", question="word " * 5000, machine=DESKTOP)
    assert "context" in (found.small.problem or "")
    with pytest.raises(ConfigError, match="0 x 5 pixels"):
        check_pair(*pair, page=(0, 5))


def test_the_code_to_start_with_is_code(pair: tuple[Path, Path]) -> None:
    gpus = (Device("cuda:0", "a GPU", 80 * 2**30),)
    found = check_pair(*pair, machine=Machine(gpus, 2**30, half_precision=True))
    assert found.python is not None
    call = ast.parse(found.python).body[1]
    assert ast.unparse(call).startswith("engine = SGLEngine.from_pretrained(")
    assert 'dtype="bfloat16", device="cuda:0"' in found.python
    assert json.loads(found.model_dump_json())["schema_version"] == "1"


Played = Callable[..., list[str]]


@pytest.fixture
def hub(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """A hub whose only model is the small one; returns what was asked of it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []

    def play(*more: str) -> list[str]:
        names = [path.name for path in pair[0].iterdir()] + list(more)
        commit = "a" * 40

        def answer(request: httpx.Request) -> httpx.Response:
            path = request.url.path
            asked.append(path)
            if path.startswith(f"/api/models/owner/small/tree/{commit}"):
                entries = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
                return httpx.Response(200, json=entries)
            if path.startswith("/api/models/owner/small"):
                files = [{"rfilename": name, "size": 5_000_000_000} for name in names]
                return httpx.Response(200, json={"id": "owner/small", "sha": commit, "siblings": files})
            name = re.fullmatch(f"/owner/small/resolve/{commit}/(.+)", path)
            if name is None or not (pair[0] / name[1]).is_file():
                return httpx.Response(404, headers={"X-Error-Code": "RepoNotFound"}, json={})
            content = (pair[0] / name[1]).read_bytes()
            headers = {"ETag": f'"{name[1]}"', "X-Repo-Commit": commit, "Content-Length": str(len(content))}
            return httpx.Response(200, headers=headers, content=content if request.method == "GET" else b"")

        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(answer)))
        return asked

    yield play
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(httpx.Client)


def test_only_small_files_come_from_the_hub(hub: Played, pair: tuple[Path, Path]) -> None:
    asked = hub("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    found = check_pair("owner/small", pair[1], machine=DESKTOP)
    assert found.runs, found.small.problem
    assert (found.small.name, found.small.revision) == ("owner/small", "a" * 40)
    assert found.small.download_bytes == 10_000_000_000
    assert any(path.endswith("/config.json") for path in asked)
    assert not any("safetensors" in path for path in asked)
    local = check_pair(pair[0], pair[1], machine=DESKTOP)
    assert found.cascade == local.cascade


@pytest.mark.parametrize(
    ("file", "problem"),
    [("pytorch_model.bin", "pickled weights only"), ("adapter_config.json", "is an adapter")],
)
def test_what_is_wrong_on_the_hub(file: str, problem: str, hub: Played, pair: tuple[Path, Path]) -> None:
    hub(file)
    assert problem in (check_pair("owner/small", "/nowhere", machine=DESKTOP).small.problem or "")


def test_a_hub_that_does_not_know_the_model(hub: Played, pair: tuple[Path, Path]) -> None:
    hub()
    found = check_pair("owner/other", "/nowhere", machine=DESKTOP)
    assert "The files of owner/other cannot be fetched" in (found.small.problem or "")


class ConnectError(Exception):
    """As HTTP libraries call it, each with a tree of its own."""


@pytest.mark.parametrize("part", ["HfApi.model_info", "snapshot_download"])
def test_a_hub_that_cannot_be_reached(part: str, hub: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectError("No address\nof that name")

    hub()
    monkeypatch.setattr(f"huggingface_hub.{part}", unreachable)
    found = check_pair("owner/small", "/nowhere", machine=DESKTOP)
    assert "The files of owner/small cannot be fetched (ConnectError: No address)" in (
        found.small.problem or ""
    )
    with pytest.raises(ModelNotFoundError):
        model_identity("owner/small")
