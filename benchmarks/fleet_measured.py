"""Service times of the bundled pair on this machine, and a real run of two processes for the simulation.

Times of service are processor seconds on one thread: what others do on the machine is not in them. Those of
the two processes are wall seconds of that run, and the simulation beside it is given the same ones.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.fleet_model import Draws, Fleet, Measured, Trace, latencies, replay
from sgl_engine import EngineConfig, Request, SGLEngine
from sgl_engine.batch.inputs import open_rows
from sgl_engine.batch.plain import PlainForm
from sgl_engine.batch.ray_data import LargeStage, SmallStage
from sgl_engine.cluster import ClusterSettings
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages.generator import heldout_pages
from sgl_engine.evaluation.records import DataRow
from sgl_engine.evaluation.systems import alone

BATCHES = (1, 2, 4, 8)
SEED = 2_000
WARM = 5
DRAWN = 20_000


def machine_name() -> str:
    """What people would call this machine."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        name = next(line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, one core"


def processor_s(work: Callable[[], object]) -> float:
    """Processor seconds of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(questions: int) -> Measured:
    """Asks every question in turns: the small model, the pair with a forced escalation, the large alone."""
    torch.set_num_threads(1)
    engine = demo_engine()
    config = engine.config.without_reuse()
    cold = engine.with_config(config)
    never, always = (engine.with_config(config.escalating(route)) for route in ("never", "always"))
    small, guided, large, escalated = [], [], [], 0
    for number, (page, question) in enumerate(heldout_pages(questions + 1, start=SEED)):
        request = Request.ask(question.text, Image.fromarray(page.pixels))
        row = DataRow(index=0, id="", kind="", metric="exact", question=question.text, answers=("",))
        small_s = processor_s(lambda request=request: never.run(request))
        both_s = processor_s(lambda request=request: always.run(request))
        large_s = processor_s(
            lambda request=request, row=row: alone(engine.large, request, row, config, config.large_pictures)
        )
        if number:  # the first round warms up
            escalated += cold.run(request).report.escalated
            small.append(small_s)
            guided.append(max(0.0, both_s - small_s))
            large.append(large_s)
    requests = [
        Request.ask(question.text, Image.fromarray(page.pixels))
        for page, question in heldout_pages(2 * max(BATCHES), start=SEED)
    ]
    gains = {name: _gains(chosen, requests) for name, chosen in (("small", never), ("both", always))}
    return Measured(
        machine=machine_name(),
        pair="the bundled pair, float32",
        questions=questions,
        escalation_rate=escalated / questions,
        small_s=tuple(small),
        guided_s=tuple(guided),
        alone_s=tuple(large),
        batch_sizes=BATCHES,
        small_gain=gains["small"],
        guided_gain=gains["both"],
    )


def _gains(engine: SGLEngine, requests: Sequence[Request]) -> tuple[float, ...]:
    """Processor time of a request in a batch of each size, over that of one alone; the less of two."""
    each = {
        size: min(
            processor_s(
                lambda size=size: [
                    engine.run_batch(requests[at : at + size]) for at in range(0, len(requests), size)
                ]
            )
            for _ in range(2)
        )
        for size in BATCHES
    }
    return tuple(each[size] / each[1] for size in BATCHES)


def two_processes(count: int, load: float, measured: Measured) -> dict[str, Any]:
    """A process with the small model and one with the large, asked at random times, beside the simulation.

    Args:
        count: Questions.
        load: Of the busier process, at the measured times.
        measured: Says how often to ask.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w") as file:
            for n, (page, question) in enumerate(heldout_pages(count, start=SEED)):
                Image.fromarray(page.pixels).save(folder / f"{n}.png")
                file.write(json.dumps({"question": question.text, "image": f"{n}.png"}) + "\n")
        return _asked(str(folder / "rows.jsonl"), count, load, measured)


def _asked(path: str, count: int, load: float, measured: Measured) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    to_small, to_large, done = context.Queue(), context.Queue(), context.Queue()
    workers = [
        context.Process(target=_serve_small, args=(path, to_small, to_large, done), daemon=True),
        context.Process(target=_serve_large, args=(path, to_large, done), daemon=True),
    ]
    for worker in workers:
        worker.start()
    # Both are loaded, and have taken so long for a few: this machine may have other things to do.
    warm = dict(done.get(timeout=300) for _ in workers)
    rate = load / max(warm["small"], measured.escalation_rate * warm["large"])
    draw = random.Random(0)  # noqa: S311  # arrivals, not secrets
    began = time.time()
    arrivals = []
    for number in range(count):
        time.sleep(draw.expovariate(rate))
        arrivals.append(time.time() - began)
        to_small.put(number)
    ended: dict[int, float] = {}
    small_s: dict[int, float] = {}
    large_s: dict[int, float] = {}
    while len(ended) < count:
        kind, number, seconds, at = done.get(timeout=120)
        (small_s if kind == "small" else large_s)[number] = seconds
        if at is not None:
            ended[number] = at - began
    to_small.put(None)
    for worker in workers:
        worker.join(30)
    trace = Trace(tuple(arrivals), tuple(small_s[n] for n in range(count)), large_s)
    return {
        "machine": machine_name(),
        "questions": count,
        "requests_per_s": rate,
        "escalated": len(large_s),
        "small_mean_s": float(np.mean(list(small_s.values()))),
        "guided_mean_s": float(np.mean(list(large_s.values()))),
        "latency": _beside(trace, [ended[n] - arrivals[n] for n in range(count)]),
    }


def _beside(trace: Trace, latencies_s: Sequence[float]) -> dict[str, dict[str, float]]:
    """What was waited, beside two simulations: of the same requests, and of others drawn from them."""
    count, rate = len(trace.arrivals), len(trace.arrivals) / trace.arrivals[-1]
    guided = tuple(trace.large_s.get(n, 0.0) for n in range(count))
    drawn = Draws.of(Measured("", "", count, 0.5, trace.small_s, guided, guided), DRAWN)
    drawn = replace(drawn, luck=np.where(drawn.guided_s > 0.0, 0.0, 1.0))  # as each of them has
    given = {
        "real_s": np.array(latencies_s),
        "same_requests_s": np.array(replay(trace)),
        "drawn_s": latencies(Fleet("split", 1, 1), drawn, rate, 0.5),
    }
    found = {
        name: {kind: float(of(values)) for kind, values in given.items()}
        for name, of in (("mean", np.mean), ("p50", np.median), ("p95", lambda v: np.percentile(v, 95)))
    }
    for each in found.values():
        for kind in ("same_requests", "drawn"):
            each[f"{kind}_gap_percent"] = 100 * (each[f"{kind}_s"] / each["real_s"] - 1)
    return found


def _serve_small(path: str, given: Any, further: Any, done: Any) -> None:
    torch.set_num_threads(1)
    stage = SmallStage(
        ClusterSettings(engine=EngineConfig().without_reuse()), open_rows(Path(path)), PlainForm("two")
    )
    stage({"data": np.arange(1)})
    began = time.perf_counter()
    for number in range(WARM):
        stage({"data": np.array([number])})
    done.put(("small", (time.perf_counter() - began) / WARM))
    while (number := given.get()) is not None:
        began = time.perf_counter()
        columns = stage({"data": np.array([number])})
        seconds = time.perf_counter() - began
        is_carried = bool(columns["carried"][0])
        if is_carried:
            further.put((number, columns))
        done.put(("small", number, seconds, None if is_carried else time.time()))
    further.put(None)


def _serve_large(path: str, given: Any, done: Any) -> None:
    torch.set_num_threads(1)
    config, form = EngineConfig().without_reuse(), PlainForm("two")
    stage = LargeStage(ClusterSettings(engine=config), form)
    small = SmallStage(ClusterSettings(engine=config.escalating("always")), open_rows(Path(path)), form)
    warm = [small({"data": np.array([number])}) for number in range(WARM)]
    del small
    stage(warm[0])
    began = time.perf_counter()
    for columns in warm:
        stage(columns)
    done.put(("large", (time.perf_counter() - began) / WARM))
    while (carried := given.get()) is not None:
        number, columns = carried
        began = time.perf_counter()
        stage(columns)
        done.put(("large", number, time.perf_counter() - began, time.time()))
