"""One escalated request by stage: the engine's own clock, and in it the decoder's passes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from PIL import Image

from benchmarks.bench_pair import Timed
from sgl_engine import VLM, Request, SGLEngine
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages import heldout_pages


@dataclass(frozen=True)
class Stages:
    """Medians over requests.

    Attributes:
        name: What was run.
        ms: Milliseconds per stage, in order; "generate" is divided into prefill, decoding, and the rest of
            the token loop.
    """

    name: str
    ms: dict[str, float]

    @property
    def total_ms(self) -> float:
        """Of all stages."""
        return sum(self.ms.values())


def profile_escalation(timed: Timed) -> Stages:
    """The pair's, at its own shape."""
    engine = timed.engine(escalate=True)
    runs = [_profile(engine, timed.request(), timed.wait) for _ in range(1 + timed.repeats)][1:]
    return Stages(f"{timed.tokens} visual tokens", _medians(runs))


def profile_bundled(count: int) -> Stages:
    """The bundled pair's, over held-out questions."""
    engine = demo_engine()
    engine = engine.with_config(engine.config.escalating("always"))
    runs = [
        _profile(engine, Request.ask(question.text, Image.fromarray(page.pixels)), lambda: None)
        for page, question in islice(heldout_pages(1 + count), 1 + count)
    ][1:]
    return Stages("bundled pair", _medians(runs))


def _profile(engine: SGLEngine, request: Request, wait: Callable[[], object]) -> dict[str, float]:
    with _watched(engine.small, wait) as small, _watched(engine.large, wait) as large:
        stages = dict(engine.run(request).report.stage_ms)
    total = stages.pop("total")
    divided: dict[str, float] = {}
    for stage, ms in stages.items():
        step, _, model = stage.rpartition("_")
        if step != "generate":
            divided[stage] = ms
            continue
        parts = {"small": small, "large": large}[model]
        divided |= {f"{part}_{model}": parts[part] for part in ("prefill", "decode")}
        divided[f"token loop_{model}"] = ms - sum(parts.values())
    divided["between stages"] = total - sum(stages.values())
    return divided


@contextmanager
def _watched(vlm: VLM, wait: Callable[[], object]) -> Iterator[dict[str, float]]:
    """Milliseconds in passes that extend a cache: of several tokens, and of one."""
    spent: dict[str, float] = defaultdict(float)
    original = vlm.forward_batch

    def forward(embeddings: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        logits = original(embeddings, **settings)
        wait()
        if settings["cache"] is not None:  # the consistency pass has none, and a stage of its own
            spent["decode" if embeddings.shape[1] == 1 else "prefill"] += 1e3 * (
                time.perf_counter() - started
            )
        return logits

    vlm.forward_batch = forward  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        del vlm.forward_batch


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: median(run.get(name, 0.0) for run in runs) for name in names}
