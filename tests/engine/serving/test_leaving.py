"""A process that ends while requests are under way: nothing begins any more, and what runs stops at once.

Each case is a process of its own, a fork of one that has imported everything (which takes seconds) and begun
nothing. Its model stops in the middle of an answer, and goes on only when the engine has been told to stop;
the first of its exit handlers, which runs last, says what has become of it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from scheduling import HANG_S

SCRIPT = """
import atexit, gc, json, logging, os, signal, sys, threading
from concurrent.futures import wait
for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao, which warns of its kernels
    logging.getLogger(name).setLevel(logging.ERROR)

from sgl_engine import Request, SGLEngine
from sgl_engine.testing import tiny_vlm

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
small, large = tiny_vlm(size="small"), tiny_vlm(size="large")
assert threading.active_count() == 1  # a fork has no other threads
gc.freeze()  # else every fork looks through all that was imported when it ends, and copies it by that
for line in sys.stdin:
    how, model, folder = json.loads(line)
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, name in enumerate(("out", "err"), 1):
    os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
stop_at = 3
engine = SGLEngine(small, large)
engine = engine.with_config(engine.config.escalating("always"))
stopping, futures, rows, errors = engine._scheduler._worker.stopping, [], [], []
at_work = threading.Event()


@atexit.register
def report():
    names = [type(future.exception(0)).__name__ for future in futures]
    print(json.dumps({"forwards": len(rows), "errors": names + errors, "stopped": stopping.is_set()}))


def watched(vlm):
    own = vlm.forward_batch

    def forward(*given, **settings):
        rows.append(len(settings["batch"]))
        if len(rows) == stop_at:
            at_work.set()
            stopping.wait()
        return own(*given, **settings)

    vlm.forward_batch = forward


def asked(index):
    # The large model begins when the small one has said all.
    return Request.ask(f"What is number {index}?", max_new_tokens=1500 if model == "small" else 12)


def run(index):
    try:
        engine.run(asked(index))
    except Exception as error:
        errors.append(type(error).__name__)


def interrupt():
    at_work.wait()
    os.kill(os.getpid(), signal.SIGINT)


watched(small if model == "small" else large)
threading.Thread(target=interrupt if "interrupt" in how else at_work.wait, daemon=True).start()
if how == "interrupt in run_batch":
    engine.run_batch([asked(index) for index in range(4)])
elif how == "threads":
    for index in range(4):
        threading.Thread(target=run, args=(index,), daemon=True).start()
else:
    futures += [engine.submit(asked(index)) for index in range(20)]
    if how == "interrupt":
        futures[-1].result()
at_work.wait()
if how == "dropped":
    del engine
if how == "exit":
    sys.exit(3)
"""


Leave: TypeAlias = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def ready() -> Iterator[subprocess.Popen[str]]:
    """The process that is forked, once for each line that it reads."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        start_new_session=True,  # so that what hangs can be ended with it
    ) as process:
        yield process
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def leave(ready: subprocess.Popen[str], tmp_path: Path) -> Leave:
    """Makes a process end -> its exit code, and its report."""

    def end(how: str, model: str = "small") -> tuple[int, dict[str, Any]]:
        assert ready.stdin is not None
        assert ready.stdout is not None
        ready.stdin.write(json.dumps([how, model, str(tmp_path)]) + "\n")
        ready.stdin.flush()
        timer = threading.Timer(HANG_S, os.killpg, (ready.pid, signal.SIGKILL))
        timer.start()
        code = ready.stdout.readline()
        timer.cancel()
        out, err = (path.read_text() if (path := tmp_path / name).exists() else "" for name in ("out", "err"))
        assert code, f"It hung for {HANG_S:g} s: {err}"
        assert out, err
        if "interrupt" not in how:
            assert not err
        return int(code), json.loads(out)

    return end


@pytest.mark.parametrize(
    ("how", "model", "code"),
    [("exit", "small", 3), ("dropped", "large", 0), ("interrupt", "small", -signal.SIGINT)],
)
def test_submitted_work_keeps_no_process_from_ending(leave: Leave, how: str, model: str, code: int) -> None:
    got, report = leave(how, model)
    assert got == code
    assert report["forwards"] == 3
    assert len(report["errors"]) == 20
    assert set(report["errors"]) <= {"RequestCancelledError", "EngineClosedError"}


def test_an_interrupted_call_stops_within_one_token(leave: Leave) -> None:
    assert leave("interrupt in run_batch") == (
        -signal.SIGINT,
        {"forwards": 3, "errors": [], "stopped": True},
    )


def test_threads_of_the_caller_are_told(leave: Leave) -> None:
    code, report = leave("threads")
    assert (code, report["forwards"]) == (0, 3)
    assert len(report["errors"]) == 4
    assert set(report["errors"]) <= {"RequestCancelledError", "EngineClosedError"}
