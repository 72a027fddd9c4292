import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils.import_utils import is_torchvision_available

from sgl_engine import VLM, Request
from sgl_engine.errors import ProcessorError
from sgl_engine.model.loading import load_processor
from sgl_engine.testing import tiny_vlm

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that cuts images into tiles, with the processor files of real checkpoints."""
    path = tmp_path_factory.mktemp("models") / "tiled"
    vlm = tiny_vlm(max_tiles=6)
    processor = vlm.processor
    vlm.model.save_pretrained(path)
    processor.tokenizer.save_pretrained(path)
    processor.image_processor.save_pretrained(path)
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": processor.image_seq_length}
    (path / "processor_config.json").write_text(json.dumps(settings))
    (path / "chat_template.jinja").write_text(processor.chat_template)
    return path


def mosaic(rows: int, cols: int, side: int = 32) -> Image.Image:
    """A picture of rows x cols squares of one colour each."""
    colours = np.array(PALETTE[: rows * cols], dtype=np.uint8).reshape(rows, cols, 3)
    return Image.fromarray(colours.repeat(side, axis=0).repeat(side, axis=1))


@pytest.mark.skipif(is_torchvision_available(), reason="is for machines without torchvision")
def test_transformers_alone_cannot_load_it_without_torchvision(folder: Path) -> None:
    """The control: should this pass one day, the image-only loader can go."""
    from transformers import AutoProcessor

    with pytest.raises((ImportError, TypeError, ValueError)):
        AutoProcessor.from_pretrained(folder)


def test_a_saved_tiling_processor_gives_the_same_inputs(folder: Path) -> None:
    loaded, original = VLM.from_pretrained(folder), tiny_vlm(max_tiles=6)
    request = Request.ask("Which?", mosaic(2, 3), mosaic(1, 1))
    ours, theirs = loaded.encode(request), original.encode(request)
    assert type(loaded.processor).__name__ == "InternVLProcessor"
    assert ours.spans == theirs.spans
    assert all(torch.equal(ours.inputs[key], theirs.inputs[key]) for key in theirs.inputs)


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)])
def test_boxes_say_which_part_of_the_picture_a_tile_shows(rows: int, cols: int, folder: Path) -> None:
    vlm = VLM.from_pretrained(folder)
    picture = mosaic(rows, cols)
    prompt = vlm.encode(Request.ask("?", picture))
    tiles = prompt.inputs["pixel_values"]
    assert len(tiles) == len(prompt.spans) == (rows * cols + 1 if rows * cols > 1 else 1)
    processor = vlm.processor.image_processor
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)
    )
    for tile, span in zip(tiles, prompt.spans, strict=True):
        assert span.box is not None
        x0, y0, x1, y1 = span.box
        box = (x0 * picture.width, y0 * picture.height, x1 * picture.width, y1 * picture.height)
        expected = torch.tensor(
            np.asarray(picture.crop([round(edge) for edge in box])), dtype=torch.float32
        ).mean((0, 1))
        shown = ((tile * std + mean) * 255).mean((1, 2))
        assert torch.allclose(shown, expected, atol=6)
    assert prompt.spans[-1].box == (0.0, 0.0, 1.0, 1.0)


def test_the_thumbnail_is_no_tile(folder: Path) -> None:
    """The control for the test above: other boxes show other colours."""
    prompt = VLM.from_pretrained(folder).encode(Request.ask("?", mosaic(2, 2)))
    boxes = [span.box for span in prompt.spans]
    assert len(set(boxes)) == 5
    assert boxes[:4] == [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]


@pytest.fixture(scope="module")
def folder_without_thumbnail(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, with an image processor that says that it makes no thumbnail."""
    path = tmp_path_factory.mktemp("models") / "tiles only"
    shutil.copytree(folder, path)
    settings = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps({**settings, "use_thumbnail": False}))
    return path


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)])
def test_tiles_without_a_thumbnail(
    rows: int, cols: int, folder: Path, folder_without_thumbnail: Path
) -> None:
    """Processor and boxes agree, and the tiles are those of the processor that adds a thumbnail to them."""
    request = Request.ask("?", mosaic(rows, cols))
    plain = VLM.from_pretrained(folder_without_thumbnail).encode(request)
    stock = VLM.from_pretrained(folder).encode(request)
    tiles = plain.inputs["pixel_values"]
    assert len(tiles) == len(plain.spans) == rows * cols
    assert torch.equal(tiles, stock.inputs["pixel_values"][: rows * cols])
    assert plain.spans == stock.spans[: rows * cols]
    assert plain.num_visual_tokens == sum(len(span) for span in plain.spans)
    # The control: where the stock processor cuts tiles, it has one more picture, of everything.
    assert len(stock.spans) == rows * cols + (rows * cols > 1)


def test_the_thumbnail_switch_survives_saving(folder_without_thumbnail: Path, tmp_path: Path) -> None:
    cutter = load_processor(str(folder_without_thumbnail)).image_processor
    cutter.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    before = json.loads((folder_without_thumbnail / "preprocessor_config.json").read_text())
    assert written["use_thumbnail"] is False
    assert written["image_processor_type"] == before["image_processor_type"]


def test_a_missing_processor(tmp_path: Path) -> None:
    with pytest.raises(ProcessorError, match="cannot be loaded"):
        load_processor(str(tmp_path))


def test_a_processor_without_a_chat_template() -> None:
    vlm = tiny_vlm()
    vlm.processor.chat_template = None
    with pytest.raises(ProcessorError, match="chat template"):
        vlm.encode(Request.ask("Hello?"))
