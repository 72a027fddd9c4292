"""Folders that somebody else made: what they name is not followed, and every error is typed."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_family_loading import save

from sgl_engine import VLM
from sgl_engine.errors import (
    ModelNotFoundError,
    ProcessorError,
    UnsafeWeightsError,
    UnsupportedModelError,
)
from sgl_engine.testing import tiny_vlm


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    save(tiny_vlm(), path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A saved model that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def write_index(
    folder: Path, target: str, name: str = "model.safetensors.index.json"
) -> dict[str, torch.Tensor]:
    """Moves the weights to `other.safetensors`, and writes an index that sends all of them to `target`."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    weights.rename(folder / "other.safetensors")
    content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, target)}
    (folder / name).write_text(json.dumps(content))
    return tensors


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("target", ["other.safetensors", "parts/other.safetensors"])
def test_the_control_an_index_of_files_in_the_folder_is_followed(target: str, folder: Path) -> None:
    write_index(folder, target)
    if "/" in target:
        (folder / "parts").mkdir()
        shutil.copy(folder / "other.safetensors", folder / target)
    assert VLM.from_pretrained(folder).num_layers == 3


def test_an_index_that_names_a_pickle_is_refused(folder: Path) -> None:
    tensors = write_index(folder, "weights.bin")
    torch.save(tensors, folder / "weights.bin")  # which transformers would load
    with pytest.raises(UnsafeWeightsError, match=r"'weights\.bin', which is no safetensors file"):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "target",
    [
        "../outside.safetensors",
        "a/../../outside.safetensors",
        "{absolute}",
        "C:\\w.safetensors",
        "..\\w.safetensors",
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(target: str, folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    tensors = write_index(folder, target.format(absolute=outside))
    save_file(tensors, outside)
    with pytest.raises(UnsafeWeightsError, match="lies outside the folder"):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize("target", ["adapter_model.bin", "../outside.safetensors"])
def test_a_configuration_cannot_name_such_weights_either(target: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    save_file(tensors, folder.parent / "outside.safetensors")
    change(folder, transformers_weights=target)
    with pytest.raises(UnsafeWeightsError, match="configuration of"):
        VLM.from_pretrained(folder)


def test_an_index_that_a_configuration_names_is_looked_into(folder: Path) -> None:
    tensors = write_index(folder, "weights.bin", name="mine.safetensors.index.json")
    torch.save(tensors, folder / "weights.bin")
    change(folder, transformers_weights="mine.safetensors.index.json")
    with pytest.raises(UnsafeWeightsError, match=r"mine\.safetensors\.index\.json"):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "content", ["[", "[]", "{}", '{"metadata": {}}', '{"metadata": {}, "weight_map": [1]}', "[" * 99999]
)
def test_an_index_that_is_none(content: str, folder: Path) -> None:
    write_index(folder, "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        VLM.from_pretrained(folder)


def test_an_adapter_to_a_model_elsewhere_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        VLM.from_pretrained(folder)


def test_a_processor_class_that_nobody_knows(folder: Path) -> None:
    path = folder / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "evil.X"}))
    with pytest.raises(ProcessorError, match=r"has no tokenizer|cannot be loaded"):
        VLM.from_pretrained(folder)


def text_config(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["text_config"].update(values)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (text_config(max_position_embeddings=0), r"text_config\.max_position_embeddings is 0"),
        (text_config(num_attention_heads=-1), r"text_config\.num_attention_heads is -1"),
        (lambda folder: change(folder, image_token_id=-1), "the image token is -1"),
    ],
)
def test_sizes_that_no_model_has_are_named_before_weights_are_read(
    damage: Callable[[Path], None], where: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(UnsupportedModelError, match=where):
        VLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "config.json").write_text('{"model_type": ["a"]}'),
        lambda folder: change(folder, text_config=3),
        lambda folder: change(folder, vision_config="x"),
        text_config(num_attention_heads=0),
        text_config(hidden_size="x"),
        text_config(layer_types=[None]),
        lambda folder: (folder / "processor_config.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        lambda folder: (folder / "generation_config.json").write_text("[" * 100_000),
        lambda folder: (folder / "generation_config.json").write_text("[]"),
    ],
)
def test_whatever_a_folder_holds_the_error_is_typed(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder)
    with suppress(ModelNotFoundError, UnsupportedModelError, ProcessorError):
        VLM.from_pretrained(folder)
