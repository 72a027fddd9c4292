"""An engine whose large model is on another machine: what it can do without it, and what it refuses."""

import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgl_engine import (
    ConfigError,
    EngineClosedError,
    EngineConfig,
    ExitConfig,
    Request,
    Response,
    SGLEngine,
)
from sgl_engine.testing import FakeEngine, FakeHostedModel, tiny_vlm

QUESTION = Request.ask("What?", Image.new("RGB", (64, 48), "white"))
small = cache(tiny_vlm)


def engine(*answer: Any, **settings: Any) -> FakeEngine:
    model = FakeHostedModel(*answer, name="big")
    return FakeEngine(lambda _: "7", score=0.1, small=small(), large=model, config=EngineConfig(**settings))


def test_what_needs_a_model_that_is_here_says_so() -> None:
    asked = engine("8")
    assert asked.hosted is not None
    assert "big" not in asked.cache_info()
    assert asked.count_tokens(QUESTION) > 16
    for use in (
        lambda: asked.large,
        lambda: asked.score_answers(QUESTION, ["7", "8"]),
        lambda: asked.plan(small().encode(QUESTION), None),
    ):
        with pytest.raises(ConfigError, match="big.*hosted"):
            use()


def test_a_calibration_is_of_two_models_that_are_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the large one is hosted"):
        engine("8", exit=ExitConfig(calibration=tmp_path / "calibration.json"))


def test_a_local_pair_has_no_hosted_model() -> None:
    local = SGLEngine(small(), small())
    assert local.hosted is None
    assert local.large is small()


def test_a_closed_engine_answers_what_is_under_way() -> None:
    class Slow(FakeHostedModel):
        begun, go = threading.Event(), threading.Event()

        def stream(self, call: Any) -> Any:
            self.begun.set()
            self.go.wait(10)
            return (yield from super().stream(call))

    model = Slow("8", name="big")
    asked = FakeEngine(lambda _: "7", score=0.1, small=small(), large=model)
    future = asked.submit(QUESTION)
    assert model.begun.wait(10)
    asked.close(wait=False)
    model.go.set()
    assert future.result(10).text == "8"
    with pytest.raises(EngineClosedError):
        asked.run(QUESTION)


@pytest.mark.parametrize("keeps", [True, False])
def test_what_a_model_raises_is_raised_or_named(keeps: bool) -> None:
    asked = engine(ValueError("key sk-1"), on_large_error="keep" if keeps else "raise")
    if keeps:
        assert asked.run(QUESTION).report.large_error == "ValueError"
    else:
        with pytest.raises(ValueError, match="sk-1"):
            asked.run(QUESTION)
    outcomes = asked.run_batch([QUESTION] * 2)
    assert [isinstance(each, Response) for each in outcomes] == [keeps] * 2
