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


def tiny_chat() -> ChatSGL:
    """Models of random weights: they go on and on, so that a stop is seen to come from us."""
    engine = SGLEngine(tiny_vlm(size="small", side_tokens=6), tiny_vlm(size="large", side_tokens=6))
    return ChatSGL(engine=engine, max_tokens=6)


@pytest.fixture
def chat() -> ChatSGL:
    """One for each test, which may hook into its models."""
    return tiny_chat()


@pytest.fixture(scope="module")
def alone() -> tuple[ChatSGL, list[tuple[Any, ...]]]:
    """A chat model, and what it answers to thirty-two questions one by one."""
    chat = tiny_chat()
    return chat, [close_to(outcome(chat.invoke(ask(index)))) for index in range(32)]


HANG_S = 300.0
"""How long tests wait for what must happen: no measure of anything, only the end of a hang."""


class Forwards:
    """Counts forwards of a decoder from now on; after so many it waits until it may go on."""

    def __init__(self, chat: ChatSGL, route: str, hold_after: int | None = None) -> None:
        self.count = 0
        self.holds, self.go_on = threading.Event(), threading.Event()
        self._chat, self._hold_after = chat, hold_after
        getattr(chat.engine, route).text_model.register_forward_hook(self._step)

    async def in_the_end(self) -> int:
        """Their number, when nothing is under way any more."""
        self.go_on.set()
        while not self._chat.engine._scheduler.is_idle:  # noqa: ASYNC110  # it offers no event
            await asyncio.sleep(0.001)
        return self.count

    def _step(self, *_: object) -> None:
        self.count += 1
        if self.count == self._hold_after:
            self.holds.set()
            assert self.go_on.wait(HANG_S)


def outcome(message: BaseMessage) -> tuple[Any, ...]:
    report = message.response_metadata["sgl"]
    return message.content, report["score"], report["route"], report["kept_visual_tokens"]


def close_to(single: tuple[Any, ...]) -> tuple[Any, ...]:
    """What runs side by side, and so how numbers are rounded, depends on who else asks."""
    content, score, *rest = single
    return content, pytest.approx(score, rel=1e-3), *rest


async def test_thirty_two_tasks_get_the_answers_of_single_calls(
    alone: tuple[ChatSGL, list[tuple[Any, ...]]],
) -> None:
    chat, expected = alone
    together = await asyncio.gather(*(chat.ainvoke(ask(index)) for index in range(32)))
    assert [outcome(message) for message in together] == expected
    assert len({content for content, *_ in expected}) > 16

    async def streamed(index: int) -> str:
        return "".join([chunk.text async for chunk in chat.astream(ask(index))])

    texts = await asyncio.gather(*(streamed(index) for index in range(32)))
    assert texts == [content for content, *_ in expected]


def test_thirty_two_threads_get_the_answers_of_single_calls(
    alone: tuple[ChatSGL, list[tuple[Any, ...]]],
) -> None:
    chat, expected = alone
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(chat.invoke, [ask(index) for index in range(32)]))
    assert [outcome(message) for message in together] == expected
    assert [outcome(message) for message in chat.batch([ask(index) for index in range(32)])] == expected


class Loop:
    """Asks from other threads whether the event loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.wait_s = HANG_S
        self.answers: list[bool] = []

    def ask(self) -> None:
        beaten = threading.Event()
        self._loop.call_soon_threadsafe(beaten.set)
        self.answers.append(beaten.wait(self.wait_s))

    async def is_free(self, call: Callable[[], Awaitable[object]], *, wait_s: float = HANG_S) -> bool:
        """Whether it answered every time while `call` ran."""
        self.answers, self.wait_s = [], wait_s
        await call()
        assert self.answers
        return all(self.answers)


async def test_the_event_loop_is_never_blocked(chat: ChatSGL) -> None:
    loop = Loop()
    chat.engine.small.text_model.register_forward_hook(lambda *_: loop.ask())

    async def stream() -> None:
        assert [chunk async for chunk in chat.astream(ask(1), max_tokens=2)]

    async def synchronous() -> None:
        chat.invoke(ask(1), max_tokens=2)

    assert await loop.is_free(lambda: chat.ainvoke(ask(1), max_tokens=2))
    assert await loop.is_free(stream)
    assert not await loop.is_free(synchronous, wait_s=0.1)  # the control


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_encoding_a_picture_does_not_block_the_event_loop(
    chat: ChatSGL, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, loop = Image.Image.save, Loop()

    def asking(*args: Any, **kwargs: Any) -> None:
        loop.ask()
        save(*args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", asking)
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
        assert await loop.is_free(call)
    assert await loop.is_free(lambda: chat.ainvoke(question, max_tokens=2))
    assert await loop.is_free(lambda: chat.abatch([question], max_tokens=2))
    assert not await loop.is_free(synchronous, wait_s=0.1)  # the control


@pytest.mark.parametrize("route", ["small", "large"])
@pytest.mark.parametrize("call", ["ainvoke", "astream"])
async def test_cancelling_a_task_stops_generation(chat: ChatSGL, route: str, call: str) -> None:
    options: Any = {"max_tokens": 400, "escalate": "always" if route == "large" else "never"}
    forwards = Forwards(chat, route, hold_after=5)

    async def run() -> None:
        if call == "ainvoke":
            await chat.ainvoke(ask(2), **options)
        else:
            async for _ in chat.astream(ask(2), **options):
                pass

    task = asyncio.create_task(run())
    assert await asyncio.to_thread(forwards.holds.wait, HANG_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await forwards.in_the_end() == 5
    assert outcome(await chat.ainvoke(ask(3))) == outcome(chat.invoke(ask(3)))


async def test_leaving_a_stream_stops_generation(chat: ChatSGL) -> None:
    forwards = Forwards(chat, "large", hold_after=60)
    async with aclosing(chat.astream(ask(2), max_tokens=400, escalate="always")) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    assert await forwards.in_the_end() <= 60
    assert outcome(await chat.ainvoke(ask(3))) == outcome(chat.invoke(ask(3)))


async def test_leaving_a_synchronous_stream_stops_generation(chat: ChatSGL) -> None:
    forwards = Forwards(chat, "large", hold_after=60)  # the model does not wait for its reader
    chunks = chat.stream(ask(2), max_tokens=400, escalate="always")
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert await forwards.in_the_end() <= 60
    assert outcome(chat.invoke(ask(3)))


async def test_a_call_that_waits_for_the_model_can_be_cancelled(chat: ChatSGL) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with chat.engine.small.exclusive():
            held.set()
            release.wait(HANG_S)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    forwards = Forwards(chat, "small")
    task = asyncio.create_task(chat.ainvoke(ask(1)))
    lane = chat.engine._scheduler._worker.small
    while not (lane.waiting or lane.running):  # noqa: ASYNC110  # by another thread
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, timeout=HANG_S / 2)
    release.set()
    holder.join()
    assert await forwards.in_the_end() == 0


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
