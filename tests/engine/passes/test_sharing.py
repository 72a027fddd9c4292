"""One engine, many threads: cancelled requests stop at once, and answers do not depend on who else asks."""

import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from oracles import traces
from samples import noise
from scheduling import HANG_S, held, only_the_worker_notices, running, until, waiting
from tolerances import of_logprobs

from sgl_engine import VLM, Request, Response, SGLEngine, TextDelta
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import DeadlineError, RequestCancelledError
from sgl_engine.passes import run_small_pass
from sgl_engine.testing import tiny_vlm

WITHIN = of_logprobs(tiny_vlm(size="small"))


@pytest.fixture
def engine() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small", side_tokens=6), tiny_vlm(size="large", side_tokens=6))


def ask(index: int, **settings: object) -> Request:
    # Sizes, lengths and seeds all differ, so that a mixed-up cache, map or patch shows.
    picture = noise(40 + index, 50, seed=index)
    settings = {"max_new_tokens": 3 + index % 9} | settings
    return Request.ask(f"What is number {index}?", picture, **settings)  # type: ignore[arg-type]


def outcome(response: Response) -> tuple[object, ...]:
    importance = response.importance
    assert importance is not None
    return response.text, response.report.score, importance.mass.tolist(), response.report.kept_visual_tokens


def close_to(single: tuple[object, ...]) -> tuple[object, ...]:
    """What rows run side by side, and so how numbers are rounded, depends on who else asks."""
    text, score, mass, kept = single
    tokens = 11  # at most
    return text, pytest.approx(score, rel=tokens * WITHIN), pytest.approx(mass, rel=WITHIN), kept


def counting(vlm: VLM, do: Callable[[int], object]) -> list[int]:
    """Calls `do(count)` after each decoder forward of `vlm`."""
    calls = []

    def count(*_: object) -> None:
        calls.append(1)
        do(len(calls))

    vlm.text_model.register_forward_hook(count)
    return calls


def test_thirty_two_threads_get_the_answers_of_single_runs(engine: SGLEngine) -> None:
    requests = [ask(index) for index in range(32)]
    alone = [outcome(engine.run(request)) for request in requests]
    before = traces(engine.large)
    with ThreadPoolExecutor(32) as pool:
        together = [outcome(response) for response in pool.map(engine.run, requests)]
    assert together == [close_to(single) for single in alone]
    assert len({text for text, *_ in alone}) > 1
    assert traces(engine.large) == before


def small_pass(vlm: VLM, request: Request) -> tuple[str, list[float]]:
    """One step by itself, without an engine, as studies run it."""
    result = run_small_pass(vlm, AnswerTask(vlm.encode(request), request.max_new_tokens or 1))
    assert result.importance is not None
    return result.generation.text, result.importance.mass.tolist()


def test_steps_by_themselves_take_turns_with_an_engine(engine: SGLEngine) -> None:
    requests = [ask(index) for index in range(16)]
    run = partial(small_pass, engine.small)
    alone = [run(request) for request in requests]
    with ThreadPoolExecutor(32) as pool:
        answered = [pool.submit(engine.run, request) for request in requests]
        assert list(pool.map(run, requests)) == alone
        assert len({future.result().text for future in answered}) > 1


def test_without_taking_turns_steps_would_mix(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [ask(index) for index in range(12)]
    alone = [small_pass(engine.small, request) for request in requests]
    monkeypatch.setattr(VLM, "exclusive", lambda *_: nullcontext())
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns within a pass, however fast it is

    def run(request: Request) -> object:
        try:
            return small_pass(engine.small, request)
        except Exception as error:  # noqa: BLE001  # whatever a patch taken away in mid-air leads to
            return error

    mixed = False
    try:
        for _ in range(5):  # a race may be lucky once
            with ThreadPoolExecutor(12) as pool:
                mixed = mixed or list(pool.map(run, requests)) != alone
    finally:
        sys.setswitchinterval(before)
    assert mixed


def test_two_engines_on_the_same_models_share_a_worker(engine: SGLEngine) -> None:
    always = engine.with_config(engine.config.escalating("always"))
    requests = [ask(index) for index in range(8)]
    alone = [outcome(always.run(request)) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        first, second = pool.map(always.run, requests), pool.map(engine.run, requests)
        assert [outcome(response) for response in first] == [close_to(single) for single in alone]
        assert len(list(second)) == 8


@pytest.mark.parametrize("route", ["small", "large"])
def test_cancelling_stops_within_one_token(
    engine: SGLEngine, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_worker_notices(monkeypatch)
    cancel = threading.Event()
    vlm = getattr(engine, route)
    calls = counting(vlm, lambda count: cancel.set() if count == 4 else None)
    endless = dataclasses.replace(ask(1), cancel=cancel, max_new_tokens=500, stop=("never",))
    if route == "large":
        engine = engine.with_config(engine.config.escalating("always"))
        endless = dataclasses.replace(endless, max_new_tokens=100)
    with pytest.raises(RequestCancelledError, match="was cancelled after 4 of"):
        engine.run(endless)
    assert len(calls) == 4


def test_leaving_a_stream_stops_generation(engine: SGLEngine) -> None:
    always = engine.with_config(engine.config.escalating("always"))
    stream = always.stream(ask(3, max_new_tokens=400, stop=("never",)))
    assert not isinstance(next(stream), TextDelta)  # the decision
    closed = threading.Event()
    calls = counting(engine.large, lambda count: count < 10 or closed.wait(HANG_S))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    closed.set()
    never = engine.with_config(engine.config.escalating("never"))
    assert outcome(never.run(ask(4)))  # nobody holds a model any more
    assert len(calls) <= 11  # one step may have been under way


def test_whoever_waits_for_the_model_can_be_cancelled_or_late(engine: SGLEngine) -> None:
    with held(engine.small), ThreadPoolExecutor(1) as pool:
        with pytest.raises(DeadlineError):
            engine.run(ask(1, deadline=time.monotonic() + 0.2))
        cancel = threading.Event()
        cancelled = pool.submit(engine.run, dataclasses.replace(ask(1), cancel=cancel))
        until(lambda: waiting(engine) or running(engine), "it waits for the model")
        cancel.set()
        with pytest.raises(RequestCancelledError):
            cancelled.result(HANG_S / 2)


def test_token_logprobs_join_to_the_text(engine: SGLEngine) -> None:
    for escalate in ("never", "always"):
        run = engine.with_config(engine.config.escalating(escalate)).run  # type: ignore[arg-type]
        wanted = run(dataclasses.replace(ask(5, max_new_tokens=20), logprobs=True))
        assert "".join(token.token for token in wanted.tokens) == wanted.text
        assert all(token.logprob <= 0 for token in wanted.tokens)
        assert run(ask(5)).tokens == ()
    small = engine.with_config(engine.config.escalating("never")).run(
        dataclasses.replace(ask(5, max_new_tokens=20), logprobs=True)
    )
    mean = torch.tensor([token.logprob for token in small.tokens]).mean().exp()
    assert float(mean) == pytest.approx(small.report.confidence, rel=1e-5)


def test_tokens_are_counted_with_their_pictures(engine: SGLEngine) -> None:
    response = engine.with_config(engine.config.escalating("always")).run(ask(1))
    assert engine.count_tokens(ask(1)) == response.report.large_input_tokens
    words = Request.ask("What is number 1?")
    assert engine.count_tokens(ask(1)) - engine.count_tokens(words) >= response.report.visual_tokens
