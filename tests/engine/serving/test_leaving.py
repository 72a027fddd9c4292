"""A process that ends while requests are under way: nothing begins any more, and what runs stops at once.

Each case is a process of its own. Its model stops in the middle of an answer, and goes on only when the
engine has been told to stop; the first of its exit handlers, which runs last, says what has become of it.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scheduling import HANG_S

SCRIPT = """
import atexit, json, logging, os, signal, sys, threading
from concurrent.futures import wait
for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao, which warns of its kernels
    logging.getLogger(name).setLevel(logging.ERROR)

from sgl_engine import Request, SGLEngine
from sgl_engine.testing import tiny_vlm

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
how, model, stop_at = sys.argv[1], sys.argv[2], 3
small, large = tiny_vlm(size="small"), tiny_vlm(size="large")
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


def leave(how: str, model: str = "small") -> tuple[int, dict[str, Any]]:
    """The process's exit code, and its report."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, model],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_S,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout, done.stderr
    if "interrupt" not in how:
        assert not done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("how", "model", "code"),
    [("exit", "small", 3), ("dropped", "large", 0), ("interrupt", "small", -signal.SIGINT)],
)
def test_submitted_work_keeps_no_process_from_ending(how: str, model: str, code: int) -> None:
    got, report = leave(how, model)
    assert got == code
    assert report["forwards"] == 3
    assert len(report["errors"]) == 20
    assert set(report["errors"]) <= {"RequestCancelledError", "EngineClosedError"}


def test_an_interrupted_call_stops_within_one_token() -> None:
    assert leave("interrupt in run_batch") == (
        -signal.SIGINT,
        {"forwards": 3, "errors": [], "stopped": True},
    )


def test_threads_of_the_caller_are_told() -> None:
    code, report = leave("threads")
    assert (code, report["forwards"]) == (0, 3)
    assert len(report["errors"]) == 4
    assert set(report["errors"]) <= {"RequestCancelledError", "EngineClosedError"}
