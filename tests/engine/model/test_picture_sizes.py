"""min_pixels, max_pixels and max_visual_tokens: as each family's own processor would be set, or an error."""

import copy

import pytest
import torch
from pydantic import ValidationError
from samples import noise

from sgl_engine import VLM, LimitsConfig, Request
from sgl_engine.config import NO_REUSE, PictureConfig, ReuseConfig
from sgl_engine.errors import ImageLimitError
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.testing import tiny_vlm

SIZES = [(200, 150), (90, 300), (400, 40), (20, 20)]
FIXED = {"gemma3", "llava", "llava_next", "llava_onevision"}
LONGEST_EDGE = {"mistral3", "idefics3", "smolvlm"}
"""Families that know one bound for both sides, so that long pictures get less than they may."""
QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return tiny_vlm(request.param, max_tiles=9)


def tokens(vlm: VLM, size: tuple[int, int], **wanted: int) -> int:
    return vlm.encode(Request.ask("?", noise(*size)), pictures=PictureConfig(**wanted)).num_visual_tokens


def test_no_picture_has_more_visual_tokens_than_are_wanted(vlm: VLM) -> None:
    fewer, refused = 0, []
    for size in SIZES:
        free = tokens(vlm, size)
        for limit in (16, 40, 48, 90, 1000):
            try:
                limited = tokens(vlm, size, max_visual_tokens=limit)
            except ImageLimitError as error:
                refused.append((free > limit, f"has {free} visual tokens" in str(error)))
                continue
            assert limited <= min(limit, free)
            fewer += limited < free
        if vlm.family.name not in LONGEST_EDGE:
            assert tokens(vlm, size, max_visual_tokens=free) >= 0.8 * free  # it rounds down
    assert set(refused) == ({(True, True)} if vlm.family.name in FIXED - {"gemma3", "llava"} else set())
    assert (fewer > 0) == (vlm.family.name not in FIXED)


def test_the_prompt_fits_its_features_and_the_processor_is_left_alone(vlm: VLM) -> None:
    if vlm.family.name in FIXED:
        pytest.skip("every picture has one size")
    before = vlm.processor.image_processor.to_json_string()
    request = Request.ask("?", noise(200, 150), noise(90, 300))
    prompt = vlm.encode(request, pictures=PictureConfig(max_visual_tokens=40))
    embedded = vlm.embed(prompt)  # which checks that there is one feature for each token
    assert torch.isfinite(embedded).all()
    theirs = vlm.model(**prompt.inputs).logits[0, -1]
    ours = vlm.forward(embedded, prompt=prompt, first_position=0, cache=None)[0]
    assert (ours - theirs.detach()).abs().max() < 1e-4
    assert vlm.processor.image_processor.to_json_string() == before
    boxes = [span.box for span in prompt.spans]
    assert all(box is not None and min(box) >= 0 and max(box) <= 1 for box in boxes)


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize(("low", "high"), [(512, 1024), (2048, 4096), (64, 640)])
def test_qwens_range_is_that_of_its_own_processor(family: str, low: int, high: int) -> None:
    vlm = tiny_vlm(family, max_tiles=9)
    wanted = PictureConfig(min_pixels=low, max_pixels=high)
    own = copy.deepcopy(vlm.processor)
    own.image_processor.size = type(own.image_processor.size)(shortest_edge=low, longest_edge=high)
    for size in SIZES:
        ours = vlm.encode(Request.ask("?", noise(*size)), pictures=wanted)
        theirs = own.image_processor([noise(*size)], return_tensors="pt")
        assert torch.equal(ours.inputs["image_grid_thw"], theirs["image_grid_thw"])
        assert torch.equal(ours.inputs["pixel_values"], theirs["pixel_values"])


def test_a_picture_that_is_known_in_one_size_is_not_known_in_another() -> None:
    vlm = tiny_vlm("qwen2_5_vl", max_tiles=9)
    request, reuse = Request.ask("?", noise(200, 150)), ReuseConfig()
    small = PictureConfig(max_visual_tokens=8)
    first = [vlm.encode(request, reuse=reuse, pictures=wanted) for wanted in (None, small)]
    second = [vlm.encode(request, reuse=reuse, pictures=wanted) for wanted in (None, small)]
    fresh = [vlm.encode(request, reuse=NO_REUSE, pictures=wanted) for wanted in (None, small)]
    for one, other, oracle in zip(first, second, fresh, strict=True):
        assert torch.equal(one.inputs["pixel_values"], oracle.inputs["pixel_values"])
        assert torch.equal(other.inputs["pixel_values"], oracle.inputs["pixel_values"])
    assert vlm.store.info().pixel_hits == 2
    assert first[0].picture_digests != first[1].picture_digests


def test_large_pictures_are_scaled_to_what_is_wanted() -> None:
    vlm, limits = tiny_vlm("qwen2_5_vl", max_tiles=9), LimitsConfig(exact_image_pixels=0)
    wanted = PictureConfig(max_visual_tokens=16)
    request = Request.ask("?", noise(640, 480))
    ours, theirs = (vlm.encode(request, given, pictures=wanted) for given in (limits, LimitsConfig()))
    assert ours.spans == theirs.spans
    assert not torch.equal(ours.inputs["pixel_values"], theirs.inputs["pixel_values"])  # it was scaled


@pytest.mark.parametrize(
    "wanted", [{"max_pixels": 0}, {"max_visual_tokens": 0}, {"min_pixels": 9, "max_pixels": 8}]
)
def test_contradictions_are_refused_when_they_are_written(wanted: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        PictureConfig(**wanted)
