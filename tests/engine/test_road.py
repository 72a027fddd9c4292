"""The road of a request: every driver takes the same steps in the same order; answers are those of before."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import REQUESTS
from scheduling import HANG_S, route, until, watch

from benchmarks.same_answers import differences, record
from sgl_engine import (
    EngineConfig,
    ExitConfig,
    Request,
    Response,
    SchedulerConfig,
    SGLEngine,
    TextDelta,
    cascade,
)
from sgl_engine.config import NO_REUSE
from sgl_engine.errors import EngineClosedError, InvalidRequestError, OverloadedError
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.report.clock import Clock
from sgl_engine.serving.job import Work
from sgl_engine.testing import tiny_vlm

ASK = REQUESTS["one image"]
BEFORE = Path(__file__).with_name("answers_before.json")


@pytest.fixture(scope="module")
def engine() -> Iterator[SGLEngine]:
    config = EngineConfig(reuse=NO_REUSE, scheduler=SchedulerConfig(max_queue=3))
    with SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config) as engine:
        yield engine


def test_answers_are_those_of_the_engine_before_the_rebuild() -> None:
    """Recorded there by ``benchmarks/same_answers.py``; anew, where another pair is bundled."""
    before = json.loads(BEFORE.read_text())
    after = list(record(len(before)))
    assert not +differences(before, after)
    after[3]["always"]["logprobs"][0] += 0.01  # the control
    after[5]["auto"]["kept"] = "others"
    assert +differences(before, after) == {"always: logprobs": 1, "auto: kept": 1}


def by_hand(engine: SGLEngine, road: Any) -> list[Any]:
    """Every step of a road, its work done on the spot, without scheduler or worker."""

    class Done:
        def __init__(self, work: Work) -> None:
            self.said = [piece for step in work.run([work.given]) for _, piece in step]

        def pieces(self) -> Any:
            yield from self.said[:-1]
            return self.said[-1]

        def result(self) -> Any:
            return self.said[-1]

    steps: list[Any] = []
    job = None
    while True:
        try:
            step = road.send(job)
        except StopIteration as end:
            return [*steps, end.value]
        steps.append(step)
        job = Done(step) if isinstance(step, Work) else None


@pytest.mark.parametrize("where", ["never", "always"])
def test_all_drivers_take_the_same_road(engine: SGLEngine, where: str) -> None:
    engine = route(engine, where)  # type: ignore[arg-type]
    steps = by_hand(engine, cascade.answer(engine._pair, ASK, Clock()))
    works = [step.model for step in steps if isinstance(step, Work)]
    assert works == (["small"] if where == "never" else ["small", "large"])
    assert isinstance(steps[1], ExitDecision)
    slow = steps[-1]
    streamed = list(engine.stream(ASK))
    assert [type(event) for event in streamed] == [type(s) for s in steps if not isinstance(s, Work)]
    text = "".join(event.text for event in streamed if isinstance(event, TextDelta))
    assert text == streamed[-1].text == slow.text  # type: ignore[union-attr]
    [batched] = engine.run_batch([ASK])
    for answered in (engine.run(ASK), engine.submit(ASK).result(HANG_S), batched):
        assert isinstance(answered, Response)
        assert answered.text == slow.text
        ours, theirs = answered.report.model_dump(), slow.report.model_dump()
        assert ours.pop("stage_ms").keys() == theirs.pop("stage_ms").keys()
        assert ours == theirs


def test_a_road_left_early_gives_everything_back(engine: SGLEngine) -> None:
    events = route(engine, "always").stream(ASK)
    next(events)
    events.close()  # type: ignore[attr-defined]
    until(lambda: engine._scheduler.is_idle, "its place is free")


# Scoring goes the same way as answering.


def test_scores_by_hand_are_those_of_the_worker(engine: SGLEngine) -> None:
    strict = engine.with_config(engine.config.model_copy(update={"exit": ExitConfig(threshold=1.0)}))
    steps = by_hand(strict, cascade.score(strict._pair, ASK, ["a", "bc"], Clock()))
    assert [step.model for step in steps if isinstance(step, Work)] == ["small", "large"]
    assert strict.score_answers(ASK, ["a", "bc"]).logprobs == steps[-1].logprobs


def test_a_closed_engine_scores_nothing() -> None:
    engine = SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.score_answers(ASK, ["a"])


def test_scoring_takes_a_place_in_the_queue(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        begun.set()
        assert go_on.wait(HANG_S)

    watch(engine.small, monkeypatch, hold)
    outcomes: list[Any] = []
    scoring = [
        threading.Thread(target=lambda: outcomes.append(engine.score_answers(ASK, ["a", "b"])))
        for _ in range(3)
    ]
    for thread in scoring:
        thread.start()
    assert begun.wait(HANG_S)
    until(lambda: engine._scheduler._worker._active == 3, "all have their places")
    with pytest.raises(OverloadedError, match="max_queue is 3"):
        engine.score_answers(ASK, ["a"])
    go_on.set()
    for thread in scoring:
        thread.join(HANG_S)
    assert len(outcomes) == 3


@pytest.mark.parametrize("brief", [True, False])
def test_a_hundred_answers_do_not_hold_up_an_exit(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch, *, brief: bool
) -> None:
    """The control: small passes that are not known to be brief wait until all answers are scored."""
    from sgl_engine.attention import trie
    from sgl_engine.passes import work

    monkeypatch.setattr(trie, "MAX_NODES", 1)  # a forward for each answer; else all fit into one
    if not brief:
        monkeypatch.setattr(work, "Work", lambda *given, is_brief=False: Work(*given, is_brief=False))
    begun, exited = threading.Event(), threading.Event()
    forwards: list[int] = []

    def step(_: Any) -> None:
        forwards.append(1)
        if len(forwards) == 3:
            begun.set()
            until(lambda: len(engine._scheduler._worker.small.waiting) == 1, "the exit asks")

    watch(engine.small, monkeypatch, step)
    scores: list[Any] = []
    answers = [str(number) for number in range(100)]
    scoring = threading.Thread(
        target=lambda: scores.append(engine.score_answers(ASK, answers, model="small"))
    )
    scoring.start()
    assert begun.wait(HANG_S)
    response = route(engine, "never").run(Request.ask("?", max_new_tokens=2))
    at_exit = len(forwards)
    exited.set()
    scoring.join(HANG_S)
    assert response.report.route == "small"
    assert len(scores[0].answers) == 100
    assert (at_exit < 20) is brief


def test_bad_answers_are_refused_at_once(engine: SGLEngine) -> None:
    for answers in ([], ["a", " "], "abc"):
        with pytest.raises(InvalidRequestError, match="The answers to score"):
            engine.score_answers(ASK, answers)
    until(lambda: engine._scheduler.is_idle, "its place is free")
