"""Pictures of several requests are processed side by side, and only as long as somebody waits for them."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import noise
from scheduling import HANG_S

from sgl_engine import VLM, EngineConfig, PictureConfig, Request, ReuseConfig, SGLEngine
from sgl_engine.errors import ImageLimitError, InvalidRequestError, RequestCancelledError
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.testing import tiny_vlm


def before_each_picture(vlm: VLM, act: Callable[[], None]) -> None:
    """Calls `act` before the model's image processor begins with a picture."""
    own = vlm.processor.image_processor
    kind = type(own)

    def process_image(self: Any, *given: Any, **settings: Any) -> Any:
        act()
        return kind.process_image(self, *given, **settings)

    own.__class__ = type(kind.__name__, (kind,), {"process_image": process_image})


@pytest.mark.parametrize("reuse", [ReuseConfig(), ReuseConfig(max_bytes=0)], ids=["reuse", "no reuse"])
def test_a_picture_that_takes_long_holds_nobody_up(reuse: ReuseConfig) -> None:
    vlm = tiny_vlm()
    own, processor = vlm.processor.image_processor, dict(vars(vlm.processor))
    begun, go_on, first = threading.Event(), threading.Event(), threading.Lock()

    def hold_the_first() -> None:
        if first.acquire(blocking=False):
            begun.set()
            assert go_on.wait(HANG_S)

    before_each_picture(vlm, hold_the_first)
    slow = Request.ask("Which is it?", noise(60, 60, 1))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(vlm.encode(slow, reuse=reuse)))
    thread.start()
    try:
        assert begun.wait(HANG_S)
        assert vars(vlm.processor) == processor  # nothing that others use is changed meanwhile
        assert vlm.processor.image_processor is own
        others = [Request.ask(f"And number {index}?", noise(50, 40, index)) for index in range(2, 5)]
        beside = [vlm.encode(other, reuse=reuse) for other in others]
        with vlm.processing():  # nor does it hold the tokenizer
            pass
        assert not found
    finally:
        go_on.set()
        thread.join(HANG_S)
    alone = tiny_vlm()
    for request, got in zip([slow, *others], [*found, *beside], strict=True):
        expected = alone.encode(request)
        assert sorted(got.inputs) == sorted(expected.inputs)
        assert all(torch.equal(got.inputs[name], expected.inputs[name]) for name in expected.inputs)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_request_that_is_not_wanted_any_more_stops_between_pictures(family: str) -> None:
    vlm, cancel, begun = tiny_vlm(family), threading.Event(), []

    def second_cancels() -> None:
        begun.append(1)
        if len(begun) == 2:
            cancel.set()

    before_each_picture(vlm, second_cancels)
    request = replace(Request.ask("?", *(noise(40, 40, index) for index in range(5))), cancel=cancel)
    with pytest.raises(RequestCancelledError, match="while the processor read its images"):
        vlm.encode(request)
    assert len(begun) == 2
    assert vlm.encode(replace(request, cancel=None)).num_visual_tokens  # as good as new


def test_a_request_waits_for_the_tokenizer_only_as_long_as_it_is_wanted() -> None:
    vlm, holding, cancel, go_on = tiny_vlm(), threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with vlm.processing():
            holding.set()
            go_on.wait(HANG_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(HANG_S)
    before_each_picture(vlm, cancel.set)  # pictures do not wait
    with pytest.raises(RequestCancelledError, match="processor read its images|were tokenized"):
        vlm.encode(replace(Request.ask("?", noise(40, 40)), cancel=cancel))
    go_on.set()
    holder.join()


def test_a_request_has_wishes_of_its_own_about_pictures() -> None:
    vlm, picture = tiny_vlm("qwen2_5_vl", max_tiles=9), noise(200, 150)
    asked = Request.ask("?", picture)
    wishes: list[dict[str, Any]] = [
        {"max_visual_tokens": 8},
        {"max_pixels": 4096},
        {"min_pixels": 40_000, "max_pixels": 90_000},
    ]
    free = vlm.encode(asked).num_visual_tokens
    for wish in wishes:
        ours = vlm.encode(replace(asked, **wish), pictures=PictureConfig(max_pixels=20_000))
        theirs = vlm.encode(asked, pictures=PictureConfig(**{"max_pixels": 20_000, **wish}))
        assert ours.num_visual_tokens != free
        assert torch.equal(ours.inputs["pixel_values"], theirs.inputs["pixel_values"])


def test_both_models_see_a_picture_as_the_request_wants_it() -> None:
    engine = SGLEngine(tiny_vlm("qwen2_5_vl", max_tiles=9), tiny_vlm("qwen2_5_vl", max_tiles=9, size="large"))
    always = engine.with_config(EngineConfig().escalating("always"))
    asked = Request.ask("?", noise(200, 150), max_new_tokens=2)
    free, few = (always.run(each).report for each in (asked, replace(asked, max_visual_tokens=8)))
    assert few.visual_tokens <= 8 < free.visual_tokens
    assert few.small_tflops < free.small_tflops
    assert engine.count_tokens(replace(asked, max_visual_tokens=8)) < engine.count_tokens(asked)


@pytest.mark.parametrize(
    "wish",
    [
        {"max_pixels": 0},
        {"max_visual_tokens": "x"},
        {"max_visual_tokens": 1.5},
        {"min_pixels": 9, "max_pixels": 8},
        {"min_pixels": 20_001},
    ],
)
def test_wishes_that_cannot_be_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="pictures cannot be shown with"):
        tiny_vlm().encode(
            replace(Request.ask("?", noise(20, 20)), **wish), pictures=PictureConfig(max_pixels=20_000)
        )


def test_a_checkpoint_that_cuts_no_tiles_is_left_at_its_one_size() -> None:
    asked = Request.ask("?", noise(200, 150))
    vlm = tiny_vlm()
    same = vlm.encode(replace(asked, max_pixels=10_000))
    assert same.num_visual_tokens == vlm.encode(asked).num_visual_tokens
    with pytest.raises(ImageLimitError, match="visual tokens, and its model shows it"):
        vlm.encode(replace(asked, max_visual_tokens=1))
