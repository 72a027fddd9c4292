"""Who is let in, in which order requests run, what they share, and how it all ends."""

import asyncio
import gc
import os
import signal
import threading
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from oracles import traces
from scheduling import (
    HANG_S,
    PLAIN,
    as_new,
    ask,
    held,
    limited,
    route,
    running,
    same,
    until,
    waiting,
    watch,
    worker_thread,
    worker_time,
)

from sgl_engine import VLM, EngineConfig, ExitConfig, PruningConfig, Request, Response, SGLEngine, TextDelta
from sgl_engine.errors import (
    DeadlineError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    RequestCancelledError,
)
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.model.siblings import Siblings
from sgl_engine.serving.lane import Lane
from sgl_engine.serving.parts import run_in_parts
from sgl_engine.serving.scheduler import Ticket
from sgl_engine.serving.worker import Worker
from sgl_engine.testing import FakeEngine, tiny_vlm


@pytest.fixture
def engine(small: VLM, large: VLM) -> SGLEngine:
    return SGLEngine(small, large, PLAIN)


def test_nothing_starts_before_the_first_request_and_everything_ends(small: VLM, large: VLM) -> None:
    before = set(threading.enumerate())
    engine = SGLEngine(small, large)
    assert set(threading.enumerate()) == before
    engine.run(ask(1))
    engine.submit(ask(2)).result()
    until(lambda: len(set(threading.enumerate()) - before) == 1, "the worker alone is left")
    engine.close()
    assert set(threading.enumerate()) <= before


def test_an_engine_that_nobody_needs_stops_its_threads(small: VLM, large: VLM) -> None:
    before = set(threading.enumerate())
    engine = SGLEngine(small, large)
    other = engine.with_config(EngineConfig())
    engine.submit(ask(2)).result()
    thread, gone = worker_thread(engine), weakref.ref(engine)
    del engine
    until(lambda: gone() is None, "nobody holds it")
    assert other.run(ask(1)).text  # the worker is the pair's
    del other
    assert thread is not None
    thread.join(HANG_S)
    assert not thread.is_alive()
    until(lambda: set(threading.enumerate()) <= before, "threads end")


def test_a_request_alone_does_not_wait_for_others(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_time(monkeypatch)  # stands still: a wait would never end
    patient = limited(route(engine, "always"), max_wait_ms=1)
    assert patient.run(ask(1)).report.route == "large"
    assert patient.submit(ask(1)).result(HANG_S)
    assert len(list(patient.stream(ask(1)))) > 2


def test_requests_on_their_way_are_waited_for(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, first, second = Siblings.encode, threading.Event(), threading.Event()

    def slow(siblings: Siblings, vlm: VLM, request: Request, *rest: Any) -> Any:
        assert (second if request.images[0].source.size == (42, 50) else first).wait(HANG_S)
        return encode(siblings, vlm, request, *rest)

    def submit_both() -> list[Any]:
        until(lambda: engine._scheduler.is_idle, "nothing of another round is under way")
        first.clear()
        second.clear()
        rows.clear()
        futures = [limited(engine, max_wait_ms=1).submit(ask(index)) for index in (1, 2)]
        first.set()  # both are on their way by now
        until(lambda: waiting(engine) == 1, "the first one is there")
        return futures

    monkeypatch.setattr(Siblings, "encode", slow)
    rows, now = watch(engine.small, monkeypatch, lambda _: None), worker_time(monkeypatch)
    futures = submit_both()
    second.set()
    assert all(future.result(HANG_S).text for future in futures)
    assert rows[0] == 2
    futures = submit_both()
    now[0] += 0.002  # does not wait for ever
    assert futures[0].result(HANG_S).text
    assert not futures[1].done()
    second.set()
    assert futures[1].result(HANG_S).text
    assert rows[0] == 1


def test_what_differs_in_configuration_shares_a_batch(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [
        route(engine, "never"),
        engine.with_config(
            PLAIN.model_copy(update={"exit": ExitConfig(scorer="mean_geometric", threshold=1.0)})
        ),
        engine.with_config(
            PLAIN.model_copy(
                update={"pruning": PruningConfig(keep_ratio=0.5), "exit": ExitConfig(threshold=1.0)}
            )
        ),
        engine.with_config(PLAIN.model_copy(update={"exit": ExitConfig(consistency_keep_ratio=0.5)})),
    ]
    alone = [each.run(ask(index)) for index, each in enumerate(engines)]
    assert len({response.report.scorer for response in alone}) == 2
    rows = watch(engine.small, monkeypatch, lambda _: None)
    with held(engine.small):
        first = engine.submit(ask(9))
        until(lambda: running(engine), "the first one runs")
        futures = [each.submit(ask(index)) for index, each in enumerate(engines)]
        until(lambda: waiting(engine) == 4, "the others wait")
    assert first.result()
    assert all(same(future.result(), response) for future, response in zip(futures, alone, strict=True))
    assert 3 in rows  # all but the last, which sees more in its consistency pass
    assert 4 not in rows


def watch_forwards(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch, over: threading.Event, started: threading.Event
) -> list[int]:
    """Steps of the large model, while a forward of either takes a second of the worker's time.

    From the fourth step on there is always somebody for the small one, however slow its callers are.
    """
    now, steps = worker_time(monkeypatch), []

    def large_step(_: Any) -> None:
        now[0] += 1
        steps.append(1)
        if len(steps) > 3:
            started.set()
            until(lambda: over.is_set() or waiting(engine) or running(engine), "somebody asks the small one")

    def small_step(_: Any) -> None:
        now[0] += 1

    watch(engine.large, monkeypatch, large_step)
    watch(engine.small, monkeypatch, small_step)
    return steps


class Favoured(Lane):
    """The control: always goes first, however much it has used."""

    used_s = property(lambda _: -1.0, lambda *_: None)  # type: ignore[assignment]


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_slow_escalation_does_not_hold_up_early_exits(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch, *, interleaved: bool
) -> None:
    over, started = threading.Event(), threading.Event()
    steps, never = watch_forwards(engine, monkeypatch, over, started), route(engine, "never")
    slow = route(engine, "always").submit(ask(1, max_new_tokens=200))
    assert started.wait(HANG_S)
    if not interleaved:
        engine._scheduler._worker.large.__class__ = Favoured
    for index in range(5):
        never.run(ask(index))
    assert (len(steps) < 150) is interleaved
    assert slow.done() is not interleaved
    over.set()
    assert slow.result(HANG_S).report.large_output_tokens == len(steps) == 200  # it does come to its end


@pytest.mark.parametrize("fair", [True, False])
def test_early_exits_do_not_starve_an_escalation(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch, *, fair: bool
) -> None:
    over, started = threading.Event(), threading.Event()
    watch_forwards(engine, monkeypatch, over, started)
    slow = route(engine, "always").submit(ask(1, max_new_tokens=100))
    assert started.wait(HANG_S)
    never, exits = route(engine, "never"), []

    def client(index: int) -> None:
        while not slow.done() and len(exits) < 60:
            exits.append(never.run(ask(index)))

    if not fair:
        engine._scheduler._worker.small.__class__ = Favoured
    with ThreadPoolExecutor(3) as clients:
        feeding = [clients.submit(client, index) for index in range(3)]
        until(lambda: slow.done() or all(future.done() for future in feeding), "one or the other")
        finished = slow.done()
        over.set()
    assert finished is fair
    assert slow.result(HANG_S).report.route == "large"


def test_the_queue_is_first_in_first_out(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one, order = limited(route(engine, "never"), max_batch_size=1), []
    watch(engine.small, monkeypatch, lambda batch: order.append(batch.prompts[0].input_ids.tolist()))
    with held(engine.small):
        futures = []
        for index in range(6):
            futures.append(one_by_one.submit(ask(index)))
            until(
                lambda index=index: running(engine) and waiting(engine) == index,
                "it stands behind the others",
            )
    assert [future.result().text for future in futures]
    wanted = [engine.small.encode(ask(index)).input_ids.tolist() for index in range(6)]
    assert [
        prompt for prompt, before in zip(order, [None, *order], strict=False) if prompt != before
    ] == wanted


def test_too_many_requests_are_refused_and_cancelling_frees_a_place(engine: SGLEngine) -> None:
    tight = limited(engine, max_queue=3, max_batch_size=1)
    with held(engine.small):
        futures = [tight.submit(ask(0))]
        until(lambda: running(engine), "one is at the model's door")
        futures += [tight.submit(ask(index)) for index in (1, 2)]
        until(lambda: waiting(engine) == 2, "two wait")
        for refused in (tight.submit, tight.run, lambda request: next(iter(tight.stream(request)))):
            with pytest.raises(OverloadedError, match=r"3 requests are under way; max_queue is 3.*raise"):
                refused(ask(5))
        assert all(isinstance(each, OverloadedError) for each in tight.run_batch([ask(5), ask(6)]))
        assert futures[2].cancel()
        assert waiting(engine) == 1  # at once
        futures[2] = tight.submit(ask(7))
        with pytest.raises(OverloadedError):
            tight.submit(ask(5))
    assert [future.result().text for future in futures]
    assert as_new(engine)


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_cancelled_future_ends_its_thread(small: VLM, large: VLM, model: str) -> None:
    engine = route(SGLEngine(small, large, PLAIN), "always")
    with held(getattr(engine, model)):
        futures = [engine.submit(ask(index)) for index in range(2)]
        lane = getattr(engine._scheduler._worker, model)
        until(lambda: lane.running or lane.waiting, "it waits for the model")
        assert all(future.cancel() for future in futures)
        until(lambda: not engine._scheduler._worker._beside, "their threads end")
    assert as_new(engine)


def test_a_cancelled_request_does_not_wait_for_the_others(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, go_on, two = route(engine, "never"), threading.Event(), threading.Event()

    def step(batch: Any) -> None:
        if len(batch) == 2:
            two.set()
            go_on.wait(HANG_S)

    watch(engine.small, monkeypatch, step)
    cancel = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        with held(engine.small):
            first = pool.submit(never.run, ask(3))
            until(lambda: running(engine), "the first one is at the model's door")
            cancelled = pool.submit(never.run, replace(ask(1), cancel=cancel))
            other = pool.submit(never.run, ask(2))
            until(lambda: waiting(engine) == 2, "two wait")
        assert two.wait(HANG_S)
        cancel.set()
        with pytest.raises(RequestCancelledError, match="while the small model answered several requests"):
            cancelled.result(HANG_S / 2)
        assert not other.done()
        go_on.set()
        assert first.result().text
        assert other.result().text
    assert as_new(engine)


def test_longer_lists_than_there_is_room_for_run_in_parts(engine: SGLEngine) -> None:
    requests = [ask(index) for index in range(7)]
    for got, request in zip(limited(engine, max_queue=3).run_batch(requests), requests, strict=True):
        assert same(got, engine.run(request))


@pytest.mark.parametrize("lists", [[["yes"]] * 2, [["yes"]] * 4, []])
def test_each_request_needs_answers_of_its_own(engine: SGLEngine, lists: list[list[str]]) -> None:
    """And what is refused leaves nothing behind, as a request that is never answered would."""
    with pytest.raises(InvalidRequestError, match=f"{len(lists)} lists of answers .* for 3 requests"):
        engine.score_batch([ask(index) for index in range(3)], lists)
    assert as_new(engine)
    assert not any(isinstance(each, Exception) for each in engine.score_batch([ask(1)], [["yes", "no"]]))


@pytest.mark.parametrize("roads", [1, 3])
def test_what_fails_before_its_road_begins_frees_all_places(engine: SGLEngine, roads: int) -> None:
    def broken(ticket: Ticket) -> Any:
        raise ZeroDivisionError(ticket.request)

    requests = [ask(index) for index in range(3)]
    with pytest.raises((ZeroDivisionError, ValueError)):
        run_in_parts(
            engine._scheduler, engine._admit, requests, [broken] * roads, decision=ExitDecision, ends=bool
        )
    assert as_new(engine)


@pytest.mark.parametrize("background", [True, False])
def test_time_in_the_queue_counts(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch, *, background: bool
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with held(engine.small), ThreadPoolExecutor(1) as pool:
        first = engine.submit(ask(0))
        until(lambda: running(engine), "the first one is at the model's door")
        late = ask(1, deadline=101.0)
        future = engine.submit(late) if background else pool.submit(engine.run, late)
        until(lambda: waiting(engine) == 1, "it waits")
        now[0] = 102.0
        with pytest.raises(DeadlineError, match="while it waited for the small model"):
            future.result(HANG_S)
        cancel = threading.Event()
        wanted = replace(ask(2), cancel=cancel)
        future = engine.submit(wanted) if background else pool.submit(engine.run, wanted)
        until(lambda: waiting(engine) == 1, "it waits")
        cancel.set()
        with pytest.raises(RequestCancelledError, match="while it waited for the small model"):
            future.result(HANG_S)
        assert waiting(engine) == 0
    assert first.result().finish_reason
    assert as_new(engine)


def test_a_slow_reader_holds_nobody_up(engine: SGLEngine) -> None:
    always = limited(route(engine, "always"), max_queue=1)
    long = ask(3, max_new_tokens=60)
    alone = always.run(long)
    stream = always.stream(long)
    read = [next(stream), next(stream)]
    assert always.run(ask(1)).text  # there is a place, and the worker is free
    worker = engine._scheduler._worker
    until(lambda: not worker.large.running, "the answer is whole, although nobody has read it")
    *events, last = [*read, *stream]
    assert same(last, alone)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == alone.text
    assert as_new(engine)


@pytest.mark.parametrize("at_the_decision", [True, False])
def test_a_stream_that_is_forgotten_frees_its_place(engine: SGLEngine, *, at_the_decision: bool) -> None:
    stream = route(engine, "always").stream(ask(3, max_new_tokens=400))
    next(stream)
    if not at_the_decision:
        next(stream)
    del stream
    gc.collect()
    assert as_new(engine)
    assert not engine._scheduler._worker.large.running


def test_closing_answers_those_who_are_inside(small: VLM, large: VLM) -> None:
    with SGLEngine(small, large) as engine:
        alone = [engine.run(ask(index)) for index in range(4)]
        futures = [engine.submit(ask(index)) for index in range(4)]
        stream = route(engine, "always").stream(ask(1))
        next(stream)
    assert all(same(future.result(timeout=0), each) for future, each in zip(futures, alone, strict=True))
    for refused in (engine.run, engine.submit, lambda r: engine.run_batch([r]), route(engine, "never").run):
        with pytest.raises(EngineClosedError, match="closed"):
            refused(ask(1))
    with pytest.raises(EngineClosedError):
        list(stream)
    engine.close()  # again
    thread = worker_thread(engine)
    assert thread is not None
    assert not thread.is_alive()


def test_closing_need_not_wait(small: VLM, large: VLM) -> None:
    engine = SGLEngine(small, large)
    with held(small):
        future = engine.submit(ask(1))
        engine.close(wait=False)
        with pytest.raises(EngineClosedError):
            engine.run(ask(1))
        assert not future.done()
    assert future.result().text


def test_who_is_inside_when_the_interpreter_ends_gets_an_error(small: VLM, large: VLM) -> None:
    engine = limited(SGLEngine(small, large), max_batch_size=1)
    with held(small):
        futures = [engine.submit(ask(index)) for index in range(3)]
        until(lambda: waiting(engine) == 2, "two wait")
        engine._scheduler._worker.abandon()
    assert sum(isinstance(future.exception(), EngineClosedError) for future in futures) >= 2


def test_a_fault_of_ours_reaches_all_who_wait_and_the_worker_goes_on(
    engine: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, broken = Worker._run_step, [True]

    def break_once(worker: Worker, lane: Any) -> None:
        if broken:
            until(lambda: len(worker.small.waiting) == 3, "three wait")
            broken.clear()
            raise ZeroDivisionError("ours")
        turn(worker, lane)

    monkeypatch.setattr(Worker, "_run_step", break_once)
    for future in [engine.submit(ask(index)) for index in range(3)]:
        with pytest.raises(EngineError, match=r"ZeroDivisionError\('ours'\)"):
            future.result(HANG_S)
    assert engine.run(ask(1)).text
    assert as_new(engine)


def test_what_is_run_cannot_ask_its_own_engine(engine: SGLEngine) -> None:
    fake = FakeEngine(lambda request: fake.run(request).text, small=engine.small, large=engine.large)
    with pytest.raises(EngineError, match="asked by what it is running itself"):
        fake.run(ask(1))
    with engine.large.exclusive(), pytest.raises(EngineError, match="exclusive"):
        engine.run(ask(1))
    assert engine.run(ask(1)).text
    nested = replace(ask(2), may_escalate=lambda: bool(engine.run(ask(1)).text))
    assert route(engine, "always").run(nested).report.route == "large"  # asked in the caller's thread


def test_an_interrupt_in_the_callers_thread_cancels(engine: SGLEngine) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    request = replace(ask(2), may_escalate=interrupt)
    for call in (engine.run, lambda each: engine.run_batch([ask(1), each])):
        with pytest.raises(KeyboardInterrupt):
            call(request)
        assert as_new(engine)
    with pytest.raises(KeyboardInterrupt):
        engine.submit(request).result()
    assert as_new(engine)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_another_process_starts_anew(engine: SGLEngine) -> None:
    alone = engine.run(ask(1))
    child = os.fork()
    if not child:
        os._exit(0 if engine.run(ask(1)).text == alone.text else 1)
    ended: list[tuple[int, int]] = []
    try:
        until(lambda: bool(ended.append(os.waitpid(child, os.WNOHANG)) or ended[-1][0]), "the child answers")
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(ended[-1][1]) == 0
    assert engine.run(ask(1)).text == alone.text


def hold_after(
    steps: int, vlm: VLM, monkeypatch: pytest.MonkeyPatch, at_work: threading.Event, go_on: threading.Event
) -> list[int]:
    """The model stops after so many steps, says that it is at work, and waits; its rows, step by step."""

    def step(_: Any) -> None:
        if len(rows) == steps:
            at_work.set()
            go_on.wait(HANG_S)

    rows = watch(vlm, monkeypatch, step)
    return rows


async def test_tasks_await_and_cancel(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [engine.run(ask(index)) for index in range(6)]
    answers = await asyncio.gather(*(asyncio.wrap_future(engine.submit(ask(index))) for index in range(6)))
    assert all(same(got, each) for got, each in zip(answers, alone, strict=True))
    at_work, cancelled = threading.Event(), threading.Event()
    rows = hold_after(3, engine.large, monkeypatch, at_work, cancelled)
    future = route(engine, "always").submit(ask(1, max_new_tokens=400))
    long = asyncio.wrap_future(future)
    assert await asyncio.to_thread(at_work.wait, HANG_S)
    future.add_done_callback(lambda _: cancelled.set())  # the loop passes it on, when it comes to it
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert await asyncio.to_thread(as_new, engine)
    assert len(rows) <= 4


def test_a_cancelled_future_stops_generation(engine: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    route(engine, "always").run(ask(1))  # transformers leaves hooks on a model that runs for the first time
    at_work, cancelled = threading.Event(), threading.Event()
    rows = hold_after(3, engine.large, monkeypatch, at_work, cancelled)
    before = traces(engine.large)
    future = route(engine, "always").submit(ask(1, max_new_tokens=400))
    assert at_work.wait(HANG_S)
    assert future.cancel()
    cancelled.set()
    assert as_new(engine)
    assert len(rows) <= 4
    with pytest.raises(CancelledError):
        future.result()
    assert traces(engine.large) == before


def test_a_scripted_engine_has_the_same_surface() -> None:
    with FakeEngine(lambda _: "yes", score=0.9, small=tiny_vlm(), large=tiny_vlm(size="large")) as fake:
        other = fake.with_config(fake.config.escalating("always"))
        futures = [fake.submit(ask(1)), other.submit(ask(2))]
        assert [future.result().report.route for future in futures] == ["small", "large"]
        assert [type(each) for each in fake.run_batch([ask(1)])] == [Response]
    with pytest.raises(EngineClosedError):
        other.run(ask(1))
