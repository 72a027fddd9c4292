"""Folders that are no model in transformers format: each error names the reason before weights are read."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_family_loading import save
from transformers import PerceptionLMConfig

from sgl_engine import VLM, SGLEngine
from sgl_engine.errors import ModelNotFoundError, UnsupportedModelError
from sgl_engine.model import loading
from sgl_engine.testing import tiny_vlm


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    save(tiny_vlm(), path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage; reading its weights fails the test."""

    def read(*_: Any, **__: Any) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr(loading, "load_model", read)
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_adapter_without_a_configuration_is_called_one(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="adapter.*merge_and_unload"):
        VLM.from_pretrained(folder)


def test_gguf_is_called_gguf(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match=r"GGUF.*model-q4_k_m\.gguf.*safetensors"):
        VLM.from_pretrained(folder)


def test_shards_that_are_missing_are_named(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    weight_map = dict.fromkeys(names, "model.safetensors") | {next(iter(names)): "model-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ModelNotFoundError, match=r"lacks 1 of its 2 files.*model-00002\.safetensors"):
        VLM.from_pretrained(folder)


def test_the_authors_own_format_is_named(folder: Path) -> None:
    change(folder, model_type="internvl_chat", auto_map={"AutoConfig": "configuration_internvl_chat.X"})
    with pytest.raises(UnsupportedModelError, match="internvl_chat.*-hf"):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_quantized_weights_that_cannot_run_here(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    change(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UnsupportedModelError, match=rf"quantized \({method}\).*not quantized"):
        VLM.from_pretrained(folder)


def test_one_folder_is_one_model(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    with SGLEngine.from_pretrained(saved, tmp_path / "link") as engine:
        assert engine.large is engine.small
    with SGLEngine.from_pretrained(saved, saved, large_settings={"dtype": "bfloat16"}) as engine:
        assert engine.large is not engine.small


def test_a_tower_of_a_missing_package_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    PerceptionLMConfig().save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=r"built by the package timm.*pip install timm"):
        VLM.from_pretrained(folder)


def with_tensors(saved: Path, tmp_path: Path, *names: str) -> Path:
    """A copy whose weights hold more than the model takes."""
    copy = Path(shutil.copytree(saved, tmp_path / "more"))
    weights = load_file(copy / "model.safetensors")
    more = {name: torch.ones(2, 2) for name in names}
    save_file({**weights, **more}, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


LAYER = "model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (f"{LAYER}.weight_scale_inv", "1 tensors of a quantization.*quantization_config"),
        (f"{LAYER}.lora_A.default.weight", "1 tensors of an adapter.*merge_and_unload"),
    ],
)
def test_tensors_that_change_others_are_no_surplus(
    tensor: str, reason: str, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        VLM.from_pretrained(with_tensors(saved, tmp_path, tensor))


def test_tensors_without_a_place_are_named(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = VLM.from_pretrained(saved, device="cpu")
    with caplog.at_level("WARNING", logger="sgl_engine"):
        assert not caplog.records
        loaded = VLM.from_pretrained(
            with_tensors(saved, tmp_path, "box_head.scale", "mtp.weight"), device="cpu"
        )
    [said] = [each.getMessage() for each in caplog.records if each.name.startswith("sgl_engine")]
    assert "2 tensors of its weights are not used" in said
    assert "(box_head.scale, mtp.weight)" in said
    assert loaded.num_layers == plain.num_layers
