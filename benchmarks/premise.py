"""Does the small model know what the large one needs to see (SGL, finding iii, on the bundled pair)?

    python -m benchmarks.premise --questions 500

Exact match of the large model when its visual tokens are pruned by several rankings on equal terms: the small
model's summed map, the large model's own map summed over all layers (an upper reference: it has already paid
for the pass), one early layer's attention from the last prompt token (FastV), an even spread, and chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.heldout import is_exact, parse, percent, questions
from sgl_engine import SGLEngine
from sgl_engine.attention import capture_attention
from sgl_engine.cost import average_retention
from sgl_engine.demo import demo_engine
from sgl_engine.demo.drawing import Question
from sgl_engine.importance import importance_map
from sgl_engine.large_pass import run_large_pass
from sgl_engine.pruning import keep_everything, plan_pruning
from sgl_engine.small_pass import run_small_pass
from sgl_engine.types import EncodedPrompt, ImportanceMap, Request
from sgl_engine.vlm import VLM

LONGEST = 64
"""Answer tokens; the longest right answer has 46. A pruned model that loops would go on to the end."""
FASTV_LAYER = 1
"""0-based; FastV ranks by the attention of its second layer."""
Point = tuple[str, float, float]
"""Name, K as a fraction of the layers, kept from K on."""
POINTS: tuple[Point, ...] = (
    ("64 %", 0.4, 0.4),
    ("35 %", 0.2, 0.2),
    ("9 %", 0.0, 0.09),
    ("paper's 9 % preset", 0.05, 0.05),
)
Rankings = Callable[[Request, Question, EncodedPrompt, int], dict[str, ImportanceMap]]
"""Request, question, the large model's prompt, seed -> every ranking of that prompt's visual tokens."""


def _ranked(mass: torch.Tensor, prompt: EncodedPrompt) -> ImportanceMap:
    """A ranking as a map."""
    return ImportanceMap(mass=mass.float(), spans=prompt.spans, num_queries=1)


def blind_rankings(prompt: EncodedPrompt, seed: int) -> dict[str, ImportanceMap]:
    """What needs no model: an even spread, and chance."""
    count = prompt.num_visual_tokens
    chance = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    # Every n-th token first, then the ones between: a regular grid at any ratio, along the reading order.
    even = -((torch.arange(count) * 0.6180339887) % 1.0)
    return {"even spread": _ranked(even, prompt), "random": _ranked(chance, prompt)}


def rankings(
    engine: SGLEngine, request: Request, _: Question, prompt: EncodedPrompt, seed: int
) -> dict[str, ImportanceMap]:
    """The small model's, two of the large one's own, and the blind ones."""
    limit = LONGEST
    guided = run_small_pass(engine.small, engine.small.encode(request), max_new_tokens=limit).importance
    assert guided is not None
    with capture_attention(engine.large, prompt) as own:
        run_large_pass(engine.large, prompt, keep_everything(prompt), max_new_tokens=limit)
    with capture_attention(engine.large, prompt, first_row=len(prompt) - 1) as last_row:
        run_large_pass(engine.large, prompt, keep_everything(prompt), max_new_tokens=1)
    return {
        "small-guided": guided,
        "large's own, all layers": importance_map(own.sums(), prompt.spans),
        "one early layer (FastV)": _ranked(last_row.sums().prefill[FASTV_LAYER], prompt),
        **blind_rankings(prompt, seed),
    }


@dataclass
class Outcome:
    """Right or wrong, question by question."""

    unpruned: list[bool] = field(default_factory=list)
    pruned: dict[str, dict[str, list[bool]]] = field(default_factory=dict)  # ranking -> point -> outcomes
    retention: dict[str, float] = field(default_factory=dict)  # point -> average retention


def measure(
    large: VLM, rank: Rankings, count: int, start: int, points: tuple[Point, ...] = POINTS
) -> Outcome:
    """Every question under every ranking at every operating point."""
    outcome, layers = Outcome(), large.num_layers
    limit = LONGEST
    for index, (request, question) in enumerate(questions(count, start)):
        prompt = large.encode(request)
        whole = run_large_pass(large, prompt, keep_everything(prompt), max_new_tokens=limit)
        outcome.unpruned.append(is_exact(whole.generation.text, question))
        for name, importance in rank(request, question, prompt, index).items():
            for point, fraction, ratio in points:
                plan = plan_pruning(prompt, importance, layer=int(layers * fraction), keep_ratio=ratio)
                result = run_large_pass(large, prompt, plan, max_new_tokens=limit)
                outcome.retention[point] = average_retention(plan, layers)
                hits = outcome.pruned.setdefault(name, {}).setdefault(point, [])
                hits.append(is_exact(result.generation.text, question))
    return outcome


def show(outcome: Outcome, layers: int, points: tuple[Point, ...] = POINTS) -> Table:
    """Rankings down, operating points across."""
    count = len(outcome.unpruned)
    table = Table(title=f"Exact match of the large model in % (95 % interval), {count} held-out questions")
    table.add_column("ranking")
    for point, fraction, ratio in points:
        depth = f"K = {int(layers * fraction)} of {layers}, keep {ratio:.0%}"
        table.add_column(f"{point}\n{depth}\nretention {outcome.retention[point]:.1%}", justify="right")
    table.add_row("unpruned", *[percent(outcome.unpruned)] * len(points))
    for name, results in outcome.pruned.items():
        table.add_row(name, *(percent(results[point]) for point, *_ in points))
    return table


def main() -> None:
    """Run and print."""
    options = parse(__doc__, questions=500, json="also write the outcomes here")
    engine = demo_engine()
    outcome = measure(engine.large, partial(rankings, engine), options.questions, options.start)
    Console(width=140).print(show(outcome, engine.large.num_layers))
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
