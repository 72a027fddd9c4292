"""An engine whose large model is on another machine: what it can do without it, and what it refuses."""

import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgl_engine import (
    ConfigError,
    DeadlineError,
    EngineClosedError,
    EngineConfig,
    ExitConfig,
    HostedAnswer,
    Price,
    Request,
    RequestCancelledError,
    Response,
    SGLEngine,
    TextDelta,
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


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
def test_an_answer_that_is_not_wanted_any_more_ends_at_its_next_piece(
    monkeypatch: pytest.MonkeyPatch, *, late: bool, keeps: bool
) -> None:
    """However fast its pieces come: nobody waits for them then, and looks up meanwhile."""
    now, cancel, said = [100.0], threading.Event(), list[int]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Fast(FakeHostedModel):
        def stream(self, call: Any) -> Any:
            for number in range(5):
                said.append(number)
                if number == 1:
                    now[0] += 10.0 if late else 0.0
                    (threading.Event() if late else cancel).set()
                yield TextDelta("x")
            return HostedAnswer("x" * 5)

    config = EngineConfig(on_large_error="keep" if keeps else "raise")
    asked = FakeEngine(lambda _: "7", score=0.1, small=small(), large=Fast(name="big"), config=config)
    error = DeadlineError if late else RequestCancelledError
    with pytest.raises(error, match="while big answered"):
        asked.run(replace(QUESTION, deadline=105.0, cancel=cancel))
    assert said == [0, 1]


def test_what_a_model_took_that_tells_no_tokens() -> None:
    """Its time is known, its tokens are not; unknown is not nothing."""
    by_the_hour = engine("8", prices={"big": Price.per_hour(3600)}).run(QUESTION).report
    assert by_the_hour.cost is not None
    large_s = sum(ms for stage, ms in by_the_hour.stage_ms.items() if stage.endswith("large")) / 1e3
    assert by_the_hour.cost.large == pytest.approx(large_s)
    assert large_s > 0
    for price in (Price(input=2.5), Price(output=10), Price(cached_input=1)):
        assert engine("8", prices={"big": price}).run(QUESTION).report.cost is None
    kept = engine("8", prices={"big": Price(input=2.5)}).run(replace(QUESTION, may_escalate=lambda: False))
    assert kept.report.cost is not None
    assert kept.report.cost.large == 0
    free = engine("8", prices={small().name: Price(input=1)}).run(QUESTION).report
    assert free.cost is not None
    assert free.cost.large == 0 < free.cost.small
