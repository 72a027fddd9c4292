"""Pictures that one call shows to both models are processed once, even where nothing may be kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from oracles import count_processed
from samples import noise

from sgl_engine import EngineConfig, PictureConfig, Request, Response, SGLEngine
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.model.store import Seen, SeenPictures
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.testing import tiny_vlm

PICTURE = noise(120, 70)
CONFIG = EngineConfig().without_reuse().escalating("always")


def ask(*pictures: Any) -> Request:
    return Request.ask("What?", *pictures, max_new_tokens=3)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_both_models_are_shown_what_was_processed_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tiny_vlm(family, max_tiles=4), tiny_vlm(family, size="large", max_tiles=4)
    engine, shown = SGLEngine(small, large, CONFIG), list[dict[str, torch.Tensor]]()
    original = large.embed

    def embed(prompt: EncodedPrompt) -> torch.Tensor:
        shown.append(dict(prompt.inputs))
        return original(prompt)

    monkeypatch.setattr(large, "embed", embed)
    request = ask(PICTURE, noise(40, 70, 1))
    plain = large.encode(request).inputs
    found = count_processed(large, monkeypatch)
    first = engine.run(request)
    assert len(found) == 1
    assert all(torch.equal(shown[0][name], plain[name]) for name in plain)
    # Nothing is known to the next call, and nothing is kept.
    assert engine.run(request).text == first.text
    assert len(found) == 2
    assert [vlm.store.info().entries for vlm in (small, large)] == [0, 0]


@pytest.mark.parametrize("change", ["pixels", "sizes"])
def test_pictures_that_are_processed_in_two_ways_are_processed_twice(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    small, large = tiny_vlm(max_tiles=4), tiny_vlm(size="large", max_tiles=4)
    config, own = CONFIG, large.processor.image_processor
    if change == "pixels":
        own.do_normalize = not own.do_normalize
    else:
        config = CONFIG.model_copy(update={"large_pictures": PictureConfig(max_pixels=2000)})
    found = count_processed(large, monkeypatch)
    SGLEngine(small, large, config).run(ask(PICTURE))
    assert len(found) == 2


def texts(engine: SGLEngine, requests: Sequence[Request]) -> list[str]:
    found = engine.run_batch(requests)
    return [each.text for each in found if isinstance(each, Response)]


def test_a_list_processes_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tiny_vlm(), tiny_vlm(size="large")
    engine = SGLEngine(small, large, CONFIG)
    requests = [ask(noise(40, 50, seed)) for seed in (0, 1, 0, 2)]
    alone = [engine.run(request).text for request in requests]
    found = count_processed(large, monkeypatch)
    assert texts(engine, requests) == alone
    shared = len(found)
    assert 3 <= shared <= 4  # equal pictures in two objects are two
    assert engine._beside is None  # what was seen is forgotten


def test_what_is_no_picture_of_the_request_is_handed_on() -> None:
    class Processor:
        def to_json_string(self) -> str:
            return "{}"

    seen, given, source, loaded = dict[Any, Any](), list[Any](), noise(4, 3, 0), noise(4, 3, 0)

    def process(images: Any, **_: Any) -> dict[str, Any]:
        given.append(images)
        return {}

    processor = SeenPictures(Processor(), process, Seen(seen, [source], [loaded]))
    for images in ([np.zeros((3, 4, 4))], [noise(4, 3, 0)], [loaded, noise(4, 3, 0)], []):
        assert processor(images) == processor(images) == {}
    assert len(given) == 8
    assert seen == {}
    assert processor([loaded]) == processor([loaded]) == {}
    assert len(given) == 9
    assert processor([[loaded]]) == processor([loaded], scaled=True) == {}  # in another way
    assert len(given) == 11
