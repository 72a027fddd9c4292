"""Large pictures: scaled down while they are read to what processors use, and nothing else changes."""

import dataclasses
import io
import threading
import time
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from samples import noise
from test_images import encoded, png_header

from sgl_engine import VLM, LimitsConfig, Request
from sgl_engine.errors import DeadlineError, ImageLimitError, RequestCancelledError
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.prompt.encoded import TOKEN_INPUTS, EncodedPrompt
from sgl_engine.prompt.images import load_image, resolve_images
from sgl_engine.testing import tiny_vlm

AS_IT_IS = LimitsConfig(exact_image_pixels=2**40)
SCALED = LimitsConfig(exact_image_pixels=0)
SIZES = [(640, 480), (481, 637), (1024, 256), (333, 999), (97, 1201), (64, 64), (40, 24), (1200, 60)]


@pytest.fixture(scope="module", params=[(family, tiles) for family in TINY_FAMILIES for tiles in (1, 6)])
def vlm(request: pytest.FixtureRequest) -> VLM:
    family, tiles = request.param
    return tiny_vlm(family, max_tiles=tiles)


@cache
def scene(width: int, height: int) -> Image.Image:
    """Slopes, edges, stripes and some grain, as photographs have; nobody changes it."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    grain = np.random.default_rng(0).normal(0, 6, (height, width))
    stripes = 100 + 90 * np.sign(np.sin(40 * x + 20 * y))
    planes = [stripes, 255 * y, np.where(x + y > 1, 200, 40)]
    return Image.fromarray(
        np.stack([np.clip(plane + grain, 0, 255) for plane in planes], -1).astype(np.uint8)
    )


@cache
def scene_bytes(width: int, height: int) -> bytes:
    return encoded(scene(width, height))


def pixels(prompt: EncodedPrompt) -> torch.Tensor:
    return prompt.inputs["pixel_values"].float()


def apart(ours: EncodedPrompt, theirs: EncodedPrompt) -> float:
    """Root of the mean square."""
    return float((pixels(ours) - pixels(theirs)).square().mean().sqrt())


def boxes(prompt: EncodedPrompt) -> list[float]:
    return [edge for span in prompt.spans if span.box is not None for edge in span.box]


def test_the_same_tokens_and_nearly_the_same_pixels(vlm: VLM) -> None:
    scaled_at_all = 0
    for size in SIZES:
        data = scene_bytes(*size)
        scaled_at_all += vlm.shrink_factor(*size) > 1
        ours, theirs = (vlm.encode(Request.ask("?", data), limits) for limits in (SCALED, AS_IT_IS))
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert [span.positions for span in ours.spans] == [span.positions for span in theirs.spans]
        assert boxes(ours) == pytest.approx(boxes(theirs), abs=0.01)
        for name in set(ours.inputs) - TOKEN_INPUTS - {"pixel_values", "image_sizes"}:
            assert torch.equal(ours.inputs[name], theirs.inputs[name])
        # One of 256 steps is 0.008 to 0.015 in these units.
        assert apart(ours, theirs) < 0.07
    assert scaled_at_all >= 3


def test_the_control_scaling_further_changes_the_pixels(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def a_quarter_of_what_is_used(vlm: VLM, width: int, height: int) -> int:
        wanted = vlm.family.scaled(vlm.config, vlm.processor, width, height)
        assert wanted is not None
        return max(4 * width // wanted.width, 4 * height // wanted.height)

    data = scene_bytes(640, 480)
    theirs = vlm.encode(Request.ask("?", data), AS_IT_IS)
    monkeypatch.setattr(
        "sgl_engine.model.encoding.shrink_factor", lambda *given: a_quarter_of_what_is_used(vlm, *given[3:])
    )
    ours = vlm.encode(Request.ask("?", data), SCALED)
    assert pixels(ours).shape != pixels(theirs).shape or apart(ours, theirs) > 0.14


def test_the_control_a_factor_that_is_passed_over_changes_the_tokens() -> None:
    vlm = tiny_vlm("llava_next", max_tiles=6)

    def tokens(size: tuple[int, int], factor: int) -> int:
        blind = resolve_images(Request.ask("?", scene(*size)), SCALED, lambda *_: factor)
        return len(vlm.encode(blind, AS_IT_IS))

    def layout(size: tuple[int, int], factor: int) -> object:
        scaled = vlm.family.scaled(vlm.config, vlm.processor, *(-(-length // factor) for length in size))
        return scaled and scaled.layout

    passed_over = [
        (size, factor)
        for size in ((width, height) for width in range(60, 1200, 97) for height in range(60, 1200, 89))
        for factor in range(2, min(size) // 60 + 2)
        if layout(size, factor) != layout(size, 1)
    ]
    assert any(tokens(size, factor) != tokens(size, 1) for size, factor in passed_over[::12])
    for size, _ in passed_over[::12]:
        assert tokens(size, vlm.shrink_factor(*size)) == tokens(size, 1)


def test_ordinary_pictures_reach_the_processor_as_they_are(vlm: VLM) -> None:
    data = scene_bytes(640, 480)
    ours, theirs = (vlm.encode(Request.ask("?", data), limits) for limits in (LimitsConfig(), AS_IT_IS))
    assert torch.equal(pixels(ours), pixels(theirs))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("factor", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_picture_that_is_scaled_while_it_is_read(kind: str, factor: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}
    picture = scene(240, 144) if kind != "JPEG" else scene(240, 144).convert("L")  # whose colours are coarser
    data = encoded(picture, kind, **options)
    asked: list[tuple[int, int]] = []

    def shrink(width: int, height: int) -> int:
        asked.append((width, height))
        return factor

    whole = load_image(data, LimitsConfig())
    ours = load_image(data, SCALED, shrink=shrink)
    theirs = whole.reduce(factor)
    assert asked == [whole.size]
    assert ours.size == theirs.size
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))
    assert difference.mean() < 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16", "I"])
def test_every_kind_of_pixels_is_scaled(mode: str) -> None:
    if mode.startswith("I"):
        kind = np.uint16 if mode == "I;16" else np.int32
        picture = Image.fromarray((np.asarray(scene(64, 48).convert("L")).astype(kind)) * 256)
    else:
        picture = scene(64, 48).convert(mode)
    assert picture.mode == mode
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF")
    whole = load_image(buffer.getvalue(), LimitsConfig())
    for source in (picture, buffer.getvalue()):
        ours = load_image(source, SCALED, shrink=lambda *_: 4)
        assert ours.mode == "RGB"
        assert ours.size == (16, 12)
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(whole.reduce(4)).astype(int))
        assert difference.max() <= (140 if mode == "CMYK" else 2)


def test_a_callers_picture_is_left_alone() -> None:
    picture = scene(64, 48)
    before = picture.tobytes()
    for limits, shrink in ((LimitsConfig(), None), (SCALED, lambda *_: 4)):
        loaded = load_image(picture, limits, **({"shrink": shrink} if shrink else {}))
        assert loaded is not picture
        loaded.paste((1, 2, 3), (0, 0, 9, 9))
    assert picture.tobytes() == before


def test_extreme_sides_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ImageLimitError, match="1 x 40000000 pixels; the limit is 32768 a side"):
        load_image(png_header(1, 40_000_000), LimitsConfig())
    assert load_image(noise(1, 300), LimitsConfig(max_image_side=300)).size == (1, 300)
    with pytest.raises(ImageLimitError, match="the limit is 299 a side"):
        load_image(noise(1, 300), LimitsConfig(max_image_side=299))


def test_the_pixels_of_a_request_are_counted_together() -> None:
    limits = LimitsConfig(max_request_pixels=200)
    request = Request.ask("?", encoded(noise(10, 10)), noise(10, 10))
    assert len(resolve_images(request, limits).images) == 2
    broken = png_header(10, 10)  # which nobody decodes any more
    with pytest.raises(ImageLimitError, match="first 3 images have 300 pixels together; the limit is 200"):
        resolve_images(Request.ask("?", encoded(noise(10, 10)), noise(10, 10), broken), limits)


def test_a_request_that_is_not_wanted_any_more_stops_between_images(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    cancel = threading.Event()
    convert = Image.Image.convert

    def counted(image: Image.Image, *arguments: object, **options: object) -> Image.Image:
        decoded.append(1)
        if len(decoded) == 2:
            cancel.set()
        return convert(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "convert", counted)
    request = dataclasses.replace(Request.ask("?", *[encoded(noise(4, 4).convert("L"))] * 5), cancel=cancel)
    decoded.clear()
    cancel.clear()
    with pytest.raises(RequestCancelledError, match="while its images were loaded"):
        resolve_images(request, LimitsConfig())
    assert len(decoded) == 2


def test_a_late_request_does_not_reach_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = tiny_vlm()
    monkeypatch.setattr(
        "sgl_engine.model.encoding.process", lambda *_, **__: pytest.fail("the processor was asked")
    )
    request = Request.ask("?", noise(4, 4), deadline=time.monotonic() - 1)
    with pytest.raises(DeadlineError):
        vlm.encode(request)
    loaded = resolve_images(dataclasses.replace(request, deadline=None), LimitsConfig())
    monkeypatch.setattr("sgl_engine.model.encoding.resolve_images", lambda *_, **__: loaded)
    with pytest.raises(DeadlineError):
        vlm.encode(request)
