"""Whatever goes wrong, every request has exactly one outcome, and the engine is as good as new afterwards."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from oracles import traces
from samples import noise
from scheduling import HANG_S, as_new, ask, held, limited, route, running, same, until, waiting, watch

from sgl_engine import VLM, Request, Response, SGLEngine, TextDelta
from sgl_engine.errors import CorruptImageError, DeadlineError, InvalidRequestError, RequestCancelledError

POISON = "zq"  # a question that makes the models raise


@pytest.fixture
def engine(small: VLM, large: VLM) -> SGLEngine:
    return SGLEngine(small, large)


class Faults:
    """Makes models raise: always where a poisoned prompt takes part, and now and then in a shared batch.

    Also does what is asked for after so many more forwards, whoever's they are.
    """

    def __init__(self, engine: SGLEngine, every: int) -> None:
        self._poison = {
            vlm: vlm.encode(Request.ask(POISON)).input_ids for vlm in (engine.small, engine.large)
        }
        self._every = every
        self._due: list[tuple[int, Callable[[], object]]] = []
        self.forwards = self.raised = 0

    def later(self, forwards: int, act: Callable[[], object]) -> None:
        self._due.append((self.forwards + forwards, act))

    def __call__(self, batch: Any) -> None:
        self.forwards += 1
        for due in [each for each in self._due if each[0] <= self.forwards]:
            self._due.remove(due)
            due[1]()
        marker = self._marker(batch)
        if marker or (len(batch) > 1 and self.forwards % self._every == 0):
            self.raised += 1
            raise RuntimeError("poisoned" if marker else "now and then")

    def _marker(self, batch: Any) -> bool:
        return any(
            POISON in vlm.text(prompt.input_ids[0].tolist())
            for vlm in self._poison
            for prompt in batch.prompts
        )


def outcome_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the outcome
        return error


def last_of_stream(engine: SGLEngine, request: Request) -> Response:
    *events, last = engine.stream(request)
    assert isinstance(last, Response)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == last.text
    return last


def make(index: int, kind: str, chance: random.Random, faults: Faults) -> Request:
    """What is cancelled, late or dropped takes 400 forwards, and many times the time that it has."""
    if kind == "bad picture":
        return Request.ask("?", b"no picture")
    if kind == "bad wish":
        return replace(ask(index), temperature=-1.0)
    if kind == "poisoned":
        return Request.ask(f"{POISON}?", noise(40, 50, index), max_new_tokens=4)
    if kind == "cancelled":
        cancel = threading.Event()
        faults.later(chance.randrange(300), cancel.set)
        return replace(ask(index), cancel=cancel, max_new_tokens=400)
    if kind == "late":
        return replace(ask(index), deadline=time.monotonic() + chance.uniform(0.0, 0.04), max_new_tokens=400)
    return ask(index)


EXPECTED: dict[str, tuple[type[BaseException], ...]] = {
    "bad picture": (CorruptImageError,),
    "bad wish": (InvalidRequestError,),
    "poisoned": (RuntimeError,),
    "cancelled": (RequestCancelledError,),
    "late": (DeadlineError,),
    "dropped": (CancelledError,),
}
KINDS = ["good"] * 14 + [*EXPECTED]


def test_two_hundred_requests_with_faults(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    pairs = [route(engine, "never"), route(engine, "always")]
    alone = {(which, index): pairs[which].run(ask(index)) for which in (0, 1) for index in range(12)}
    before, threads = (traces(engine.small), traces(engine.large)), threading.active_count()
    faults = Faults(engine, every=25)
    for vlm in (engine.small, engine.large):
        watch(vlm, monkeypatch, faults)
    plan = [(number % 12, KINDS[number % len(KINDS)], number % 2) for number in range(200)]
    pictures: list[weakref.ref[Any]] = []

    def answer(number: int) -> object:
        index, kind, which = plan[number]
        pair, request = pairs[which], make(index, kind, chance, faults)
        if request.images and kind != "bad picture":
            pictures.append(weakref.ref(request.images[0].source))
        way = number % 4
        if kind == "dropped":
            future = pair.submit(replace(request, max_new_tokens=400))
            faults.later(chance.randrange(300), future.cancel)
            return outcome_of(lambda: future.result(HANG_S))
        if way == 0:
            return outcome_of(lambda: pair.run(request))
        if way == 1:
            return outcome_of(lambda: last_of_stream(pair, request))
        if way == 2:
            return outcome_of(lambda: pair.submit(request).result(HANG_S))
        [got] = pair.run_batch([request])
        return got

    with ThreadPoolExecutor(200) as pool:
        outcomes = list(pool.map(answer, range(200)))
    for (index, kind, which), got in zip(plan, outcomes, strict=True):
        if kind == "good":
            assert same(got, alone[which, index])
        else:
            assert isinstance(got, EXPECTED[kind]), (kind, got)
            assert kind != "poisoned" or str(got) == "poisoned"
    assert Counter(kind for _, kind, _ in plan)["good"] >= 140
    assert faults.raised >= 10
    assert as_new(engine)
    assert (traces(engine.small), traces(engine.large)) == before
    del outcomes, got
    gc.collect()
    assert not [picture for picture in pictures if picture() is not None]
    monkeypatch.undo()
    assert same(pairs[1].run(ask(3)), alone[1, 3])
    engine.close()
    until(lambda: threading.active_count() <= threads, "its threads are gone")


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_model_that_fails_once_fails_nobody(
    engine: SGLEngine, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = limited(route(engine, "always"), max_wait_ms=10_000)
    requests = [ask(index, max_new_tokens=8) for index in range(4)]
    alone = [always.run(request) for request in requests]
    left = [1]

    def fail_once(batch: Any) -> None:
        if len(batch) > 1 and left and steps[-1:] and len(steps) > 3:
            left.clear()
            raise MemoryError("the batch was too large")

    steps = watch(getattr(engine, model), monkeypatch, fail_once)
    got = always.run_batch(requests)
    assert not left
    assert all(same(each, single) for each, single in zip(got, alone, strict=True))
    left.append(1)
    steps.clear()
    with ThreadPoolExecutor(4) as pool:  # what was streamed before the failure is not said twice
        with held(engine.small):
            streamed = [pool.submit(last_of_stream, always, request) for request in requests]
            until(lambda: waiting(engine) + 4 * running(engine) >= 4, "all of them are there")
        assert all(same(each.result(), single) for each, single in zip(streamed, alone, strict=True))


def test_who_is_guilty_gets_what_the_model_raised(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(engine, every=10**9)
    alone = [engine.run(ask(index)) for index in range(3)]
    for vlm in (engine.small, engine.large):
        watch(vlm, monkeypatch, faults)
    poisoned = Request.ask(f"{POISON}?", noise(40, 50))
    first, guilty, *others = engine.run_batch([ask(0), poisoned, ask(1), ask(2)])
    assert isinstance(guilty, RuntimeError)
    assert guilty.__traceback__ is not None
    assert all(same(got, each) for got, each in zip([first, *others], alone, strict=True))
    for call in (engine.run, lambda request: engine.submit(request).result()):
        with pytest.raises(RuntimeError, match="poisoned"):
            call(poisoned)
    assert as_new(engine)


def test_a_repeated_answer_that_differs_is_an_error(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a seed an answer cannot be repeated, and what was streamed cannot be taken back."""
    always = limited(route(engine, "always"), max_wait_ms=10_000)
    hot = [ask(index, max_new_tokens=40, temperature=5.0) for index in range(2)]

    def fail_later(batch: Any) -> None:
        if len(batch) > 1 and len(steps) > 25:  # by then, text has been streamed that chance does not repeat
            raise MemoryError

    steps = watch(engine.large, monkeypatch, fail_later)
    with ThreadPoolExecutor(2) as pool, held(engine.small):
        streams = [pool.submit(outcome_of, lambda each=each: last_of_stream(always, each)) for each in hot]
        until(lambda: waiting(engine) + 2 * running(engine) >= 2, "both are there")
    errors = [str(stream.result()) for stream in streams]
    assert any("came out differently when repeated" in error for error in errors)
    assert as_new(engine)


async def test_tasks_with_faults(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, chance = Faults(engine, every=10**9), random.Random(1)
    for vlm in (engine.small, engine.large):
        watch(vlm, monkeypatch, faults)
    calls = [engine.submit(make(index, kind, chance, faults)) for index, kind in enumerate(KINDS)]
    got = await asyncio.gather(*map(asyncio.wrap_future, calls), return_exceptions=True)
    for kind, each in zip(KINDS, got, strict=True):
        if kind in {"good", "dropped"}:
            assert isinstance(each, Response)
        else:
            assert isinstance(each, EXPECTED[kind])
    assert await asyncio.to_thread(as_new, engine)
