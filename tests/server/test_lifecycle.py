"""From before the weights are loaded until the last answer is out; and clients that leave."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import QUESTION, serving, uvicorn

from sgl_engine import EngineConfig, Request, SchedulerConfig, SGLEngine
from sgl_engine.cli import main
from sgl_engine.server import ServerSettings, create_app
from sgl_engine.server.run import DrainingServer
from sgl_engine.server.state import SPARE_THREADS, ServerState
from sgl_engine.testing import FakeEngine, tiny_vlm

LIMIT_S = 60.0
"""Only ends a hang."""


def test_a_server_lives_before_it_can_answer() -> None:
    go_on = threading.Event()

    def load() -> SGLEngine:
        assert go_on.wait(LIMIT_S)
        return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))

    with serving(load, wait=False) as server:
        assert server.client.get("/health").status_code == 200
        ready = server.client.get("/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "loading")
        early = server.chat()
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert b"sgl_ready 0.0" in server.client.get("/metrics").content
        go_on.set()
        server.wait_ready()
        assert b"sgl_ready 1.0" in server.client.get("/metrics").content
        assert server.chat(max_tokens=4).status_code == 200


def test_weights_that_cannot_run_are_never_ready(caplog: Any) -> None:
    def load() -> SGLEngine:
        raise OSError("no such disk")

    with serving(load, wait=False) as server:
        while (state := server.app.state.sgl).failure is None:
            server.client.get("/health")
        ready = server.client.get("/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_loaded")
        assert server.client.get("/health").status_code == 200
        assert "no such disk" not in ready.text
    assert isinstance(state.failure, OSError)
    assert "no such disk" in caplog.text


def until_idle(engine: SGLEngine) -> None:
    """Waits until nobody is inside; ``pytest`` ends a hang."""
    while engine.load()["under_way"]:
        time.sleep(0.01)


class Held:
    """An engine whose small model waits to be let go on, and tells that it was cancelled."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.requests: list[Request] = []
        config = EngineConfig(scheduler=SchedulerConfig(max_queue=1))
        self.engine = FakeEngine(self._say, config=config)

    def _say(self, request: Request) -> str:
        self.requests.append(request)
        self.inside.set()
        while not self.go_on.wait(0.01):
            assert request.cancel is not None
            if request.cancel.is_set():
                return "nobody reads this"
        return "late"


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.go_on.set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_makes_room(held: Held, stream: bool) -> None:
    with serving(held.engine) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S, trust_env=False) as client:
            body = {"messages": QUESTION, "stream": stream}
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            assert await asyncio.to_thread(held.inside.wait, LIMIT_S)
            # Control: while the client stays, there is no room.
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 429
            asking.cancel()
            await asyncio.to_thread(until_idle, held.engine)
            assert held.requests[0].cancel is not None
            assert held.requests[0].cancel.is_set()
            held.go_on.set()
            again = await client.post("/v1/chat/completions", json={"messages": QUESTION})
    assert again.json()["choices"][0]["message"]["content"] == "late"


def test_a_client_that_leaves_mid_stream_stops_the_model_within_a_token() -> None:
    steps = []
    engine = FakeEngine(lambda request: "no", score=0.0)
    real, left = engine.large.model.lm_head.forward, threading.Event()

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(left.is_set())
        if len(steps) == 3:
            assert left.wait(LIMIT_S)
        return real(*args, **kwargs)

    engine.large.model.lm_head.forward = counted
    with serving(engine) as server:
        body = {"messages": QUESTION, "stream": True, "max_tokens": 500}
        with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
        left.set()
        until_idle(engine)
    assert len([step for step in steps if step]) < 20


def server_threads() -> int:
    """Threads in which requests are answered."""
    return sum(thread.name.startswith("AnyIO worker") for thread in threading.enumerate())


async def test_threads_that_nobody_needs_any_more_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as requests under way at once, and after them only as many as are used."""
    many, go_on = 12, threading.Event()
    entered = threading.Semaphore(0)

    def wait() -> None:
        entered.release()
        assert go_on.wait(LIMIT_S)

    state = ServerState(FakeEngine(lambda request: "no"))
    state._load()
    before = server_threads()
    held = [asyncio.create_task(state.in_thread(wait)) for _ in range(many)]
    for _ in range(many):
        assert await asyncio.to_thread(entered.acquire, timeout=LIMIT_S)
    assert server_threads() == before + many
    go_on.set()
    await asyncio.gather(*held)
    assert server_threads() == before + many  # idle for no time yet
    monkeypatch.setattr("anyio._backends._asyncio.WorkerThread.MAX_IDLE_TIME", 0)
    await state.in_thread(lambda: None)

    def wait_for_ends() -> None:
        while server_threads() > before + 1:
            time.sleep(0.01)

    await asyncio.to_thread(wait_for_ends)  # ``pytest`` ends a hang


async def test_no_more_threads_than_requests_may_be_inside() -> None:
    config = EngineConfig(scheduler=SchedulerConfig(max_queue=1))
    state = ServerState(FakeEngine(lambda request: "no", config=config))
    state._load()
    go_on, entered = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        entered.release()
        assert go_on.wait(LIMIT_S)

    before = server_threads()
    held = [asyncio.create_task(state.in_thread(wait)) for _ in range(40)]
    for _ in range(1 + SPARE_THREADS):
        assert await asyncio.to_thread(entered.acquire, timeout=LIMIT_S)
    assert server_threads() == before + 1 + SPARE_THREADS
    assert not entered.acquire(blocking=False)
    go_on.set()
    await asyncio.gather(*held)


def test_an_ending_server_lets_streams_end_and_nobody_in(held: Held) -> None:
    with serving(held.engine) as server:
        chunks: list[str] = []

        def ask() -> None:
            chunks.append(server.chat(stream=True).text)

        asking = threading.Thread(target=ask)
        asking.start()
        assert held.inside.wait(LIMIT_S)
        loop_future: Any = asyncio.run_coroutine_threadsafe(
            server.app.state.sgl.drained(LIMIT_S), server.app.state.sgl.loop
        )
        while not server.app.state.sgl.is_ending:
            pass
        refused = server.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ending")
        assert server.client.get("/ready").status_code == 503
        assert server.client.get("/health").status_code == 200
        assert not loop_future.done()
        held.go_on.set()
        assert loop_future.result(LIMIT_S) is True
        asking.join(LIMIT_S)
    events = [line.removeprefix("data: ") for line in chunks[0].split("\n\n") if line]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1])
    assert text == "late"


def test_a_command_whose_models_cannot_be_loaded_ends_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And does not answer 503 for ever: whoever started it has to hear of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nowhere = str(tmp_path / "nowhere")
    assert main(["serve", "--port", str(port), "--small", nowhere, "--large", nowhere]) == 2
    assert "There is no model folder" in capsys.readouterr().err


async def test_the_first_signal_drains_and_the_second_ends(held: Held) -> None:
    app = create_app(held.engine)
    server = DrainingServer(uvicorn.Config(app, log_config=None), app, LIMIT_S)
    server._loop = asyncio.get_running_loop()
    with app.state.sgl.counted(is_open=False):
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0)
        assert app.state.sgl.is_ending
        assert not server.should_exit
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit


def test_settings_have_sane_defaults() -> None:
    assert ServerSettings().api_key is None
    assert ServerSettings().models == ("sgl", "sgl:small", "sgl:large")


def test_the_command_serves_and_ends_when_it_is_told_to() -> None:
    """A real process on the bundled pair: ready, one answer, SIGTERM, exit code 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"from sgl_engine.cli import main; raise SystemExit(main(['serve', '--port', '{port}']))"
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, trust_env=False) as client:
        while process.poll() is None:
            with suppress(httpx.TransportError):
                if client.get("/ready").status_code == 200:
                    break
            time.sleep(0.1)
        answer = client.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 4})
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=LIMIT_S)
    assert answer.status_code == 200
    assert process.returncode == 0, log
    assert '"path": "/v1/chat/completions", "status": 200' in log
