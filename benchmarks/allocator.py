"""What the allocator costs: `python -m benchmarks.allocator --json allocator.json`.

The same work under different settings of the C library's allocator, each in a process of its own, several
times in turns: escalated requests of the bundled pair, and small passes and pruned large prefills at the
shapes of ``benchmarks.latency``. Prints milliseconds per request (median of processes, and their range),
how much of it is the kernel's ("system"), and page faults, which are what freed and newly given memory costs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

GIB = 2**30
JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
SETTINGS: dict[str, dict[str, str]] = {
    "glibc, as it comes": {},
    "glibc, keeps what is freed": {
        "MALLOC_TRIM_THRESHOLD_": str(8 * GIB),
        "MALLOC_MMAP_THRESHOLD_": str(4 * GIB),
        "MALLOC_TOP_PAD_": str(2**26),
    },
    "glibc, huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "glibc, keeps what is freed, huge pages": {
        "MALLOC_TOP_PAD_": str(2**26),
        "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold={8 * GIB}"
        f":glibc.malloc.mmap_threshold={4 * GIB}",
    },
    "jemalloc": {"LD_PRELOAD": JEMALLOC},
    "jemalloc, keeps what is freed, huge pages": {
        "LD_PRELOAD": JEMALLOC,
        "MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0,narenas:1",
    },
    "torch, huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}


def bundled(count: int) -> Callable[[], object]:
    """Escalated requests of the bundled pair."""
    from itertools import cycle, islice

    from PIL import Image

    from sgl_engine import Request
    from sgl_engine.demo import demo_engine
    from sgl_engine.demo.pages import heldout_pages

    engine = demo_engine()
    engine = engine.with_config(engine.config.escalating("always"))
    requests = cycle(
        [
            Request.ask(question.text, Image.fromarray(page.pixels))
            for page, question in islice(heldout_pages(count), count)
        ]
    )
    return lambda: engine.run(next(requests))


def shapes(model: str) -> Callable[[], object]:
    """A small pass, or a large model's pruned prefill with its tower, at 1,024 visual tokens."""
    import torch

    from benchmarks.bench_pair import Timed, Weights
    from benchmarks.latency_passes import random_plan
    from sgl_engine.decoding.answer import AnswerTask
    from sgl_engine.passes import run_large_pass, run_small_pass

    timed = Timed(Weights("cpu", torch.bfloat16, "cpu"), tokens=1024, answer_tokens=4, repeats=1)
    vlm = timed.small if model == "small" else timed.large

    def work() -> object:
        prompt = vlm.encode(timed.request())
        if model == "small":
            return run_small_pass(vlm, AnswerTask(prompt, 4))
        return run_large_pass(vlm, AnswerTask(prompt, 1), random_plan(vlm, prompt))

    return work


WORK: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
    "bundled": (lambda: bundled(20), 20),
    "small": (lambda: shapes("small"), 3),
    "large": (lambda: shapes("large"), 2),
}
"""Name -> what makes a request, and how many of them are timed."""


def measure(name: str) -> dict[str, float]:
    """Per request, in this process, after a warm-up."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    make, count = WORK[name]
    work = make()
    for _ in range(max(1, count // 4)):
        work()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(count):
        work()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_ms": 1e3 * seconds / count,
        "cpu_ms": 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count,
        "system_ms": 1e3 * (after.ru_stime - before.ru_stime) / count,
        "page_faults": (after.ru_minflt - before.ru_minflt) / count,
        "peak_mib": after.ru_maxrss / 1024,
    }


def run_one(name: str, setting: str) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.allocator", "--one", name]
    environment = {**os.environ, **SETTINGS[setting]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603  # ourselves
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def table(name: str, runs: dict[str, list[dict[str, float]]]) -> Table:
    """One kind of work under each setting."""
    shown = Table(title=f"{name}: per request, median of processes (range)")
    for column in ("allocator", "wall ms", "CPU ms", "system ms", "page faults", "peak MiB"):
        shown.add_column(column, justify="left" if column == "allocator" else "right")
    for setting, measured in runs.items():
        cells = []
        for key in ("wall_ms", "cpu_ms", "system_ms", "page_faults", "peak_mib"):
            values = [each[key] for each in measured]
            spread = f" ({min(values):,.0f} to {max(values):,.0f})" if key in ("wall_ms", "cpu_ms") else ""
            cells.append(f"{median(values):,.0f}{spread}")
        shown.add_row(setting, *cells)
    return shown


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--repeats", type=int, default=3, help="processes for each setting")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=list(WORK), help="one measurement, as JSON, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    settings = [name for name in SETTINGS if "jemalloc" not in name or Path(JEMALLOC).exists()]
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in options.only:
        runs: dict[str, list[dict[str, float]]] = {setting: [] for setting in settings}
        for _ in range(options.repeats):
            for setting in settings:
                runs[setting].append(run_one(name, setting))
        Console(width=130).print(table(name, runs))
        results[name] = runs
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
