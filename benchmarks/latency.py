"""What each shared step gains, as ratios that are measured in one run.

    python -m benchmarks.latency --json latency.json --figure latency.png
    python -m benchmarks.latency --tokens 1024 --repeats 3 --only capture consistency
    python -m benchmarks.latency --profile
    python -m benchmarks.latency --device cuda --shapes internvl3-1b-8b

Both sides of a comparison run in this process and take turns. The models have random weights, made in memory,
so times mean something and answers do not; every answer has ``--answer-tokens`` tokens. "batch" runs the
bundled pair, "python-step" a tiny model. ``--profile`` shows one escalated request by stage, of both pairs,
and compares nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks import latency_passes as passes
from benchmarks import latency_requests as requests
from benchmarks.bench_pair import Timed, Weights
from benchmarks.latency_figure import draw
from benchmarks.latency_profile import Stages, profile_bundled, profile_escalation
from benchmarks.shapes import PAIRS
from benchmarks.timing import Comparison

ROWS: Mapping[str, Callable[[Timed], list[Comparison]]] = {
    "capture": passes.capture,
    "eager": passes.eager,
    "consistency": passes.consistency,
    "pruned-prefill": passes.pruned_prefill,
    "decode-step": passes.decode_step,
    "early-exit": requests.early_exit,
    "accepted-draft": requests.accepted_draft,
    "accepted-draft-tiles": requests.accepted_draft_tiles,
    "second-question": requests.second_question,
}
ONCE: Mapping[str, Callable[[int, Callable[[], float]], list[Comparison]]] = {
    "batch": requests.batch,
    "python-step": requests.python_step,
}
"""Rows that have sizes of their own."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*ROWS, *ONCE], default=[*ROWS, *ONCE])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048], help="visual tokens")
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--shapes", choices=list(PAIRS), default="cpu")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: processor time, for busy machines; with one thread only",
    )
    parser.add_argument("--profile", action="store_true", help="one escalated request by stage, nothing else")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and (options.threads > 1 or options.device == "cuda"):
        parser.error("--clock cpu adds threads up, and does not see a GPU: use --threads 1 and --device cpu")
    for path in (options.json, options.figure):
        if path:  # before the work, not after it
            path.parent.mkdir(parents=True, exist_ok=True)
    return options


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    device = torch.cuda.get_device_name() if options.device == "cuda" else model
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "allocator": {name: os.environ[name] for name in sorted(os.environ) if _concerns_memory(name)},
        "shapes": f"{options.shapes}: {PAIRS[options.shapes].note}",
        "dtype": options.dtype,
        "answer_tokens": options.answer_tokens,
        "repeats": options.repeats,
        "clock": options.clock,
    }


def _concerns_memory(name: str) -> bool:
    return name == "LD_PRELOAD" or name.startswith(("MALLOC_", "GLIBC_TUNABLES"))


def pairs(options: argparse.Namespace) -> list[Timed]:
    """One for each number of visual tokens, on the same weights."""
    weights = Weights(options.shapes, getattr(torch, options.dtype), options.device)
    return [
        Timed(weights, tokens, options.answer_tokens, options.repeats, CLOCKS[options.clock])
        for tokens in options.tokens
    ]


def compare(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Runs the rows that are asked for; prints each as soon as it is there."""
    measured = []
    rows: list[tuple[int | None, Callable[[], list[Comparison]]]] = []
    wanted = [name for name in options.only if name in ROWS]
    for timed in pairs(options) if wanted else ():
        rows += [(timed.tokens, partial(ROWS[name], timed)) for name in wanted]
    alone = [name for name in options.only if name in ONCE]
    rows += [(None, partial(ONCE[name], options.repeats, CLOCKS[options.clock])) for name in alone]
    for tokens, row in rows:
        for outcome in row():
            measured.append({"visual_tokens": tokens, **outcome.to_json()})
            low, high = outcome.spread
            console.print(f"{tokens or '':>5}  {outcome.name}: {outcome.ratio:.2f} ({low:.2f} to {high:.2f})")
    return measured


def ratios_table(measured: list[dict[str, Any]]) -> Table:
    """Everything that was measured, against the targets."""
    table = Table(title="Ratios of medians (quartiles of the rounds' own ratios)")
    for name in ("what", "visual tokens", "ratio", "spread", "target", ""):
        table.add_column(name, justify="left" if name == "what" else "right")
    verdicts = {True: "pass", False: "MISS", None: ""}
    for row in measured:
        low, high = row["spread"]
        table.add_row(
            row["name"] + (f"\n  {row['note']}" if row["note"] else ""),
            str(row["visual_tokens"] or ""),
            f"{row['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            row["target"] or "",
            verdicts[row["passed"]],
        )
    return table


def stages_table(profiles: list[Stages]) -> Table:
    """Milliseconds of one escalated request, stage by stage."""
    table = Table(title="One escalated request, ms by stage (medians)")
    table.add_column("stage")
    for profile in profiles:
        table.add_column(profile.name, justify="right")
    for stage in dict.fromkeys(stage for profile in profiles for stage in profile.ms):
        cells = (
            f"{profile.ms[stage]:.1f} ({profile.ms[stage] / profile.total_ms:.0%})"
            if stage in profile.ms
            else ""
            for profile in profiles
        )
        table.add_row(stage, *cells)
    table.add_section()
    table.add_row("total", *(f"{profile.total_ms:.1f}" for profile in profiles))
    return table


def main() -> None:
    """Run and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    console = Console(width=130)
    about = machine(options)
    console.print(about)
    measured: list[dict[str, Any]] = []
    profiles: list[Stages] = []
    if options.profile:
        profiles = [profile_escalation(timed) for timed in pairs(options)]
        profiles.append(profile_bundled(max(20, options.repeats)))
        console.print(stages_table(profiles))
    else:
        measured = compare(options, console)
        console.print(ratios_table(measured))
    if options.json:
        stages = [{"name": profile.name, "ms": profile.ms} for profile in profiles]
        options.json.write_text(json.dumps({"machine": about, "rows": measured, "stages": stages}, indent=1))
    if options.figure:
        draw(measured, profiles, options.figure)


if __name__ == "__main__":
    main()
