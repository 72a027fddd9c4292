"""Folders laid out as the families' repositories are load as they come, with and without torchvision."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from repositories import LAYOUTS, write
from samples import noise
from transformers import AutoProcessor
from transformers.utils import import_utils
from transformers.utils.import_utils import is_torchvision_available

from sgl_engine import VLM, Request
from sgl_engine.errors import ProcessorError
from sgl_engine.model.loading import load_processor

ASKED = Request.ask("What is it?", noise(40, 30))
NO_VIDEOS = [
    "internvl",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "smolvlm",
    "mistral3",
]
STOCK = ["llava", "llava_next", "idefics3", "gemma3"]
"""Those whose classes transformers builds without torchvision, too."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("repositories")
    return {name: write(name, base / name) for name in LAYOUTS}


def inputs(processor: Any, text: str) -> Any:
    return processor(text=[text], images=[[noise(40, 30)]], return_tensors="pt")


def same(ours: Any, theirs: Any) -> bool:
    return sorted(ours) == sorted(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_repository_loads_and_sees_a_picture(name: str, folders: dict[str, Path]) -> None:
    vlm = VLM.from_pretrained(folders[name])
    assert type(vlm.processor).__name__ == LAYOUTS[name].processor_class
    prompt = vlm.encode(ASKED)
    assert prompt.num_visual_tokens
    assert vlm.embed(prompt).isfinite().all()
    ends = json.loads((folders[name] / "generation_config.json").read_text())["eos_token_id"]
    assert vlm.eos_token_ids >= {*(ends if isinstance(ends, list) else [ends])}


@pytest.mark.skipif(is_torchvision_available(), reason="is for machines without torchvision")
@pytest.mark.parametrize("name", NO_VIDEOS)
def test_the_control_transformers_alone_cannot(name: str, folders: dict[str, Path]) -> None:
    with pytest.raises((ImportError, TypeError, ValueError)):
        AutoProcessor.from_pretrained(folders[name])


@pytest.mark.parametrize("name", STOCK)
def test_with_torchvision_the_processor_is_transformers_own(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the families whose stock classes need none: both ways give the same inputs."""
    with monkeypatch.context() as patch:
        patch.setattr(import_utils, "is_torchvision_available", lambda: True)
        stock = load_processor(str(folders[name]))
    ours = load_processor(str(folders[name]))
    image = stock.boi_token if name == "gemma3" else stock.image_token
    text = f"{image} What is it?"
    assert type(stock) is type(AutoProcessor.from_pretrained(folders[name]))
    assert same(inputs(ours, text), inputs(stock, text))


@pytest.mark.parametrize("name", [*NO_VIDEOS, *STOCK])
def test_what_the_remedy_says_works(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """A folder whose processor is lost is whole again after ``processor.save_pretrained(folder)``."""
    before = VLM.from_pretrained(folders[name])
    shutil.copytree(folders[name], tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        if file.name not in {"config.json", "generation_config.json", "model.safetensors"}:
            file.unlink()
    with pytest.raises(ProcessorError, match=r"save_pretrained\(folder\)"):
        VLM.from_pretrained(tmp_path / "model")
    before.processor.save_pretrained(tmp_path / "model")
    after = VLM.from_pretrained(tmp_path / "model")
    assert type(after.processor).__name__ == LAYOUTS[name].processor_class
    assert same(after.encode(ASKED).inputs, before.encode(ASKED).inputs)


def test_the_control_the_stock_class_cannot_be_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    ours = load_processor(str(folders["qwen2_vl"]))
    stock = type(ours).__mro__[1]
    with pytest.raises(AttributeError, match="_auto_class"):
        stock.save_pretrained(ours, tmp_path)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "preprocessor_config.json", None])
def test_the_class_is_found_wherever_a_repository_names_it(
    file: str | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Or not at all: then the model's type says it."""
    shutil.copytree(folders["qwen3_vl"], tmp_path / "model")
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        settings = json.loads((tmp_path / "model" / name).read_text())
        settings.pop("processor_class", None)
        settings |= {"processor_class": "Qwen3VLProcessor"} if name == file else {}
        (tmp_path / "model" / name).write_text(json.dumps(settings))
    assert type(load_processor(str(tmp_path / "model"))).__name__ == "Qwen3VLProcessor"


@pytest.mark.skipif(is_torchvision_available(), reason="is for machines without torchvision")
def test_what_needs_torchvision_says_so_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    """An image processor that has no twin for Pillow."""
    shutil.copytree(folders["llava"], tmp_path / "model")
    settings = {"image_processor_type": "Cohere2VisionImageProcessor", "processor_class": "LlavaProcessor"}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ProcessorError, match="pip install torchvision") as caught:
        load_processor(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)
