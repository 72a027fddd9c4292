"""Pictures of odd sizes in every family: what transformers answers is answered, all else is an ImageError."""

import pytest
import torch
from samples import noise

from sgl_engine import VLM, Request
from sgl_engine.errors import ImageError, ProcessorError, UnsupportedImageError
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.model.encoding import process
from sgl_engine.testing import tiny_vlm

SIZES = [
    *((1, 1), (2, 2), (3, 3), (7, 5), (8, 8), (26, 28), (28, 28)),
    *((332, 27), (257, 27), (305, 30), (800, 100), (100, 800), (27, 332)),
    *((1, 100), (100, 1), (1093, 5), (5, 1093), (3000, 2), (1, 3000), (690, 15420)),
]
REFUSED = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "mistral3"}
"""Families whose own image processor refuses extreme shapes."""


@pytest.fixture(scope="module", params=[(family, tiles) for family in TINY_FAMILIES for tiles in (1, 6)])
def vlm(request: pytest.FixtureRequest) -> VLM:
    family, tiles = request.param
    return tiny_vlm(family, max_tiles=tiles)


def test_an_answer_or_an_error_about_the_picture(vlm: VLM) -> None:
    refused = {}
    for size in SIZES:
        request = Request.ask("?", noise(*size))
        try:
            prompt = vlm.encode(request)
        except ImageError as error:
            refused[size] = str(error)
            continue
        features = vlm.embed(prompt)
        assert torch.isfinite(features).all()
        assert prompt.num_visual_tokens > 0
    assert all(f"{width} x {height} pixels" in error for (width, height), error in refused.items())
    if vlm.family.name not in REFUSED:
        assert not refused
    assert not {size for size in refused if max(size) < 60 * min(size)}
    assert {(8, 8), (28, 28), (332, 27), (100, 800)}.isdisjoint(refused)


def test_the_answer_is_that_of_the_models_own_forward(vlm: VLM) -> None:
    failures = []
    for size in ((332, 27), (27, 332), (1093, 5), (1, 100), (800, 100), (8, 8)):
        for pictures in ([noise(*size)], [noise(*size), noise(40, 40)]):
            try:
                prompt = vlm.encode(Request.ask("?", *pictures))
                theirs = vlm.model(**prompt.inputs).logits[0, -1]
            except ImageError:
                continue
            except RuntimeError:
                failures.append((vlm.family.name, prompt.num_visual_tokens))
                continue
            with torch.inference_mode():
                ours = vlm.forward(vlm.embed(prompt), prompt=prompt, first_position=0, cache=None)[0]
            assert (ours - theirs.detach()).abs().max() < 1e-4
    assert set(failures) <= {("mistral3", 1)}  # where their forward fails, and ours does not


def test_a_single_visual_token_is_what_it_is_in_company() -> None:
    """Pictures do not see each other in this tower, so its features are those beside another picture."""
    vlm = tiny_vlm("mistral3", size="large")
    alone = vlm.encode(Request.ask("?", noise(8, 8)))
    beside = vlm.encode(Request.ask("?", noise(8, 8), noise(40, 24)))
    assert alone.num_visual_tokens == 1
    with torch.inference_mode():
        ours = vlm.family.image_features(vlm.model, alone.inputs)
        theirs = vlm.family.image_features(vlm.model, beside.inputs)
    assert ours is not None
    assert theirs is not None
    assert ours.shape == (1, theirs.shape[1])
    assert (ours[0] - theirs[0]).abs().max() < 1e-5
    assert (ours[0] - theirs[1]).abs().max() > 1e-3  # the control


def test_the_error_names_the_picture() -> None:
    vlm = tiny_vlm("qwen2_5_vl")
    with pytest.raises(UnsupportedImageError, match=r"Image 2 of 3, 1093 x 5 pixels.*ratio.*218\.6"):
        vlm.encode(Request.ask("?", noise(8, 8), noise(1093, 5), noise(40, 40)))


def test_the_control_a_failure_that_is_no_pictures_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm("qwen2_5_vl")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(type(vlm.processor), "__call__", broken)
    with pytest.raises(ProcessorError, match="RuntimeError: broken"):
        process(vlm.processor, Request.ask("?", noise(40, 40)), image_token="<|image_pad|>")
