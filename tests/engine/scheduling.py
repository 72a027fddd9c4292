"""What the tests of the scheduler share: requests that differ, models that are watched, held or broken."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import noise
from tolerances import of_logprobs

from sgl_engine import VLM, EngineConfig, GenerationConfig, Request, Response, SchedulerConfig, SGLEngine
from sgl_engine.config import NO_REUSE
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.serving import lookout
from sgl_engine.serving.lane import Lane
from sgl_engine.serving.worker import Worker
from sgl_engine.testing import tiny_vlm

HANG_S = 300.0
"""How long tests wait for what must happen: no measure of anything, only the end of a hang."""

PLAIN = EngineConfig(reuse=NO_REUSE, generation=GenerationConfig(draft=False))
"""Every request takes as many steps, whatever the models of the session have seen before, one per token."""
PER_TOKEN = of_logprobs(tiny_vlm(size="small"))


def ask(index: int, **settings: Any) -> Request:
    """Sizes, lengths and pictures differ, so that a mixed-up row shows."""
    settings = {"max_new_tokens": 3 + index % 6} | settings
    return Request.ask(f"What is number {index}?", noise(40 + index, 50, seed=index), **settings)


def route(engine: SGLEngine, escalate: Any) -> SGLEngine:
    return engine.with_config(engine.config.escalating(escalate))


def limited(engine: SGLEngine, **limits: Any) -> SGLEngine:
    scheduler = SchedulerConfig(**limits)
    return engine.with_config(engine.config.model_copy(update={"scheduler": scheduler}))


def outcome(response: Response) -> tuple[Any, ...]:
    report = response.report
    kept = response.plan.keep.tolist() if isinstance(response.plan, PruningPlan) else None
    within = PER_TOKEN * report.small_output_tokens
    return response.text, report.route, pytest.approx(report.score, rel=within), kept


def same(got: object, alone: Response) -> bool:
    assert isinstance(got, Response), got
    text, answered, score, kept = outcome(alone)
    assert (got.text, got.report.route, got.report.score) == (text, answered, score)
    assert (None if got.plan is None else got.plan.keep.tolist()) == kept
    return True


def watch(vlm: VLM, monkeypatch: pytest.MonkeyPatch, before: Callable[[Any], None]) -> list[int]:
    """Calls `before(batch)` before every forward of the decoder; rows of each, as they come."""
    rows: list[int] = []
    original = vlm.forward_batch

    def forward(embeddings: torch.Tensor, *, batch: Any, **rest: Any) -> torch.Tensor:
        rows.append(len(batch))
        before(batch)
        return original(embeddings, batch=batch, **rest)

    monkeypatch.setattr(vlm, "forward_batch", forward)
    return rows


def worker_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock by which the worker shares out time and waits, which stands still unless it is moved."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    for cls in (Worker, Lane):
        monkeypatch.setattr(sys.modules[cls.__module__], "time", clock)
    return now


def only_the_worker_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers do not look up themselves whether an answer is still wanted, however slow the worker is."""
    monkeypatch.setattr(lookout, "_LOOK_UP_S", HANG_S)


@contextmanager
def held(vlm: VLM) -> Iterator[None]:
    """Within the context, somebody else has the model."""
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with vlm.exclusive():
            holding.set()
            release.wait(HANG_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(HANG_S)
    try:
        yield
    finally:
        release.set()
        holder.join()


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for what another thread does."""
    give_up = time.perf_counter() + HANG_S  # tests replace time.monotonic
    while not condition():
        assert time.perf_counter() < give_up, what
        time.sleep(0.002)


def worker_thread(engine: SGLEngine) -> threading.Thread | None:
    return engine._scheduler._worker._thread


def waiting(engine: SGLEngine) -> int:
    """Jobs in the small model's queue."""
    return len(engine._scheduler._worker.small.waiting)


def running(engine: SGLEngine) -> bool:
    """Whether a group of the small model runs, or waits for the model."""
    return bool(engine._scheduler._worker.small.running)


def as_new(engine: SGLEngine) -> bool:
    """Whether nothing is left of any request."""
    until(lambda: engine._scheduler.is_idle, "nothing under way")
    worker = engine._scheduler._worker
    lanes = worker.small, worker.large
    return worker._active == 0 and not any(lane.waiting or lane.running or lane.coming for lane in lanes)
