"""Asynchronous calls: the loop is never blocked; leaving or cancelling stops generation within one token."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from PIL import Image

from langchain_sgl import ChatSGL, image_block
from sgl_engine import SGLEngine
from sgl_engine.testing import tiny_vlm


def ask(index: int) -> list[BaseMessage]:
    values = np.random.default_rng(index).integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
    return [HumanMessage([image_block(Image.fromarray(values)), f"What is number {index}?"])]


@pytest.fixture
def chat() -> ChatSGL:
    """Models of random weights: they go on and on, so that a stop is seen to come from us."""
    engine = SGLEngine(tiny_vlm(size="small", side_tokens=6), tiny_vlm(size="large", side_tokens=6))
    return ChatSGL(engine=engine, max_tokens=12)


def forwards(chat: ChatSGL, route: str) -> list[float]:
    """The time of each decoder forward from now on."""
    times: list[float] = []
    vlm = getattr(chat.engine, route)
    vlm.text_model.register_forward_hook(lambda *_: times.append(time.monotonic()))
    return times


async def quiet(times: list[float]) -> int:
    """Waits until no forward has come for a while; their number."""
    count = -1
    while count != len(times):
        count = len(times)
        await asyncio.sleep(0.2)
    return count


def outcome(message: BaseMessage) -> tuple[Any, ...]:
    report = message.response_metadata["sgl"]
    return message.content, report["score"], report["route"], report["kept_visual_tokens"]


def close_to(single: tuple[Any, ...]) -> tuple[Any, ...]:
    """What runs side by side, and so how numbers are rounded, depends on who else asks."""
    content, score, *rest = single
    return content, pytest.approx(score, rel=1e-3), *rest


async def test_thirty_two_tasks_get_the_answers_of_single_calls(chat: ChatSGL) -> None:
    alone = [close_to(outcome(chat.invoke(ask(index)))) for index in range(32)]
    together = await asyncio.gather(*(chat.ainvoke(ask(index)) for index in range(32)))
    assert [outcome(message) for message in together] == alone
    assert len({content for content, *_ in alone}) > 16

    async def streamed(index: int) -> str:
        return "".join([chunk.text async for chunk in chat.astream(ask(index))])

    texts = await asyncio.gather(*(streamed(index) for index in range(32)))
    assert texts == [content for content, *_ in alone]


def test_thirty_two_threads_get_the_answers_of_single_calls(chat: ChatSGL) -> None:
    alone = [close_to(outcome(chat.invoke(ask(index)))) for index in range(32)]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(chat.invoke, [ask(index) for index in range(32)]))
    assert [outcome(message) for message in together] == alone
    assert [outcome(message) for message in chat.batch([ask(index) for index in range(32)])] == alone


SLEEP_S, BLOCKED_S = 0.8, 0.6  # far apart: a busy machine pauses everybody for a third of a second


async def longest_pause(call: Callable[[], Awaitable[object]]) -> float:
    """Seconds for which the event loop could do nothing else, at most, while `call` ran."""
    longest, last = 0.0, time.monotonic()

    async def beat() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.002)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    beating = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    await call()
    await asyncio.sleep(0.01)
    beating.cancel()
    return longest


async def test_the_event_loop_is_never_blocked(chat: ChatSGL) -> None:
    # A model that sleeps: a busy one would share the interpreter's lock, and the test would measure that.
    chat.engine.small.text_model.register_forward_hook(lambda *_: time.sleep(SLEEP_S))

    async def stream() -> None:
        assert [chunk async for chunk in chat.astream(ask(1), max_tokens=2)]

    async def synchronous() -> None:
        chat.invoke(ask(1), max_tokens=2)

    assert await longest_pause(lambda: chat.ainvoke(ask(1), max_tokens=2)) < BLOCKED_S
    assert await longest_pause(stream) < BLOCKED_S
    assert await longest_pause(synchronous) >= SLEEP_S


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_encoding_a_picture_does_not_block_the_event_loop(
    chat: ChatSGL, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(SLEEP_S)
        save(*args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", slow)
    question: list[BaseMessage] = [
        HumanMessage([{"type": "image", "image": Image.new("RGB", (40, 40))}, "What is it?"])
    ]

    async def stream() -> None:
        assert [chunk async for chunk in chat.astream(question, max_tokens=2)]

    async def events() -> None:
        assert [event async for event in chat.astream_events(question, max_tokens=2)]

    async def third_version() -> None:
        assert await (await chat.astream_events(question, version="v3", max_tokens=2))

    async def synchronous() -> None:
        chat.invoke(question, max_tokens=2)

    for call in (stream, events, third_version):
        assert await longest_pause(call) < BLOCKED_S
    assert await longest_pause(lambda: chat.ainvoke(question, max_tokens=2)) < BLOCKED_S
    assert await longest_pause(lambda: chat.abatch([question], max_tokens=2)) < BLOCKED_S
    assert await longest_pause(synchronous) >= SLEEP_S


@pytest.mark.parametrize("route", ["small", "large"])
@pytest.mark.parametrize("call", ["ainvoke", "astream"])
async def test_cancelling_a_task_stops_generation(chat: ChatSGL, route: str, call: str) -> None:
    times = forwards(chat, route)
    options: Any = {"max_tokens": 400, "escalate": "always" if route == "large" else "never"}
    if route == "large":
        await chat.ainvoke(ask(1), max_tokens=1)  # what follows cancels in the large pass
        times.clear()

    async def run() -> None:
        if call == "ainvoke":
            await chat.ainvoke(ask(2), **options)
        else:
            async for _ in chat.astream(ask(2), **options):
                pass

    task = asyncio.create_task(run())
    while len(times) < 5:  # noqa: ASYNC110  # counted by a hook in another thread
        await asyncio.sleep(0.001)
    task.cancel()
    at_cancel = len(times)
    with pytest.raises(asyncio.CancelledError):
        await task
    # One token may be under way, and one more forward may have ended before this thread was asked again.
    assert await quiet(times) <= at_cancel + 2
    assert outcome(await chat.ainvoke(ask(3))) == outcome(chat.invoke(ask(3)))


async def test_leaving_a_stream_stops_generation(chat: ChatSGL) -> None:
    times = forwards(chat, "large")
    async with aclosing(chat.astream(ask(2), max_tokens=400, escalate="always")) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    left = len(times)
    assert await quiet(times) <= left + 1 < 400
    assert outcome(await chat.ainvoke(ask(3))) == outcome(chat.invoke(ask(3)))


def test_leaving_a_synchronous_stream_stops_generation(chat: ChatSGL) -> None:
    times: list[float] = []
    chat.engine.large.text_model.register_forward_hook(lambda *_: times.append(1.0))
    chunks = chat.stream(ask(2), max_tokens=400, escalate="always")
    next(chunks)
    left = len(times)
    chunks.close()  # type: ignore[attr-defined]
    time.sleep(0.2)
    # The model does not wait for its reader, so it may be ahead by what was computed until it was closed.
    stopped = len(times)
    time.sleep(0.2)
    assert left <= len(times) == stopped < 400
    assert outcome(chat.invoke(ask(3)))


async def test_a_call_that_waits_for_the_model_can_be_cancelled(chat: ChatSGL) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with chat.engine.small.exclusive():
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    times = forwards(chat, "small")
    task = asyncio.create_task(chat.ainvoke(ask(1)))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, timeout=5)
    release.set()
    holder.join()
    assert await quiet(times) == 0


async def test_timeouts_hold_while_others_compute(chat: ChatSGL) -> None:
    from langchain_core.exceptions import ModelTimeoutError

    chat.engine.small.text_model.register_forward_hook(lambda *_: time.sleep(0.05))
    results = await asyncio.gather(
        chat.ainvoke(ask(1), max_tokens=10),
        chat.ainvoke(ask(2), timeout=0.1, max_tokens=10),
        return_exceptions=True,
    )
    assert isinstance(results[1], ModelTimeoutError)
    assert not isinstance(results[0], BaseException)


async def test_errors_reach_the_caller(chat: ChatSGL) -> None:
    from langchain_core.exceptions import ModelInvalidRequestError

    bad = [HumanMessage([{"type": "image", "base64": "AAAA"}])]
    with pytest.raises(ModelInvalidRequestError):
        await chat.ainvoke(bad)
    with pytest.raises(ModelInvalidRequestError):
        [chunk async for chunk in chat.astream(bad)]
    results = await chat.abatch([bad, ask(1)], return_exceptions=True)
    assert isinstance(results[0], ModelInvalidRequestError)
    assert isinstance(results[1], BaseMessage)
