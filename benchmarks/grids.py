"""Can a small model guide a large one that sees another visual grid?

    python -m benchmarks.grids sgl_engine/demo/weights/small-16x16 --questions 500

Exact match of the bundled large model when its visual tokens are pruned by the map of the bundled small
model, which sees the same grid; by that of a small model with another grid, carried over through the picture
(``ImportanceMap.resample``); by the latter's map of the question before, a control that only knows where
things usually stand; by an even spread; and by chance. Each small model's own answers are counted too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict

from rich.console import Console

from benchmarks.heldout import is_exact, parse, percent
from benchmarks.premise import LONGEST, POINTS, blind_rankings, measure, show
from sgl_engine.demo import demo_engine
from sgl_engine.demo.drawing import Question
from sgl_engine.small_pass import run_small_pass
from sgl_engine.types import EncodedPrompt, ImportanceMap, Request
from sgl_engine.vlm import VLM

POINTS_SHOWN = POINTS[:3]


class Guides:
    """Ranks for one question after the other, and keeps what the small models answer themselves."""

    def __init__(self, same: VLM, other: VLM) -> None:
        """The small model with the large one's grid, and the one with another."""
        self.models = {f"small, {grid(model)}": model for model in (same, other)}
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.before: ImportanceMap | None = None

    def __call__(
        self, request: Request, question: Question, prompt: EncodedPrompt, seed: int
    ) -> dict[str, ImportanceMap]:
        """Every ranking of the large prompt's visual tokens."""
        maps = {}
        for name, model in self.models.items():
            result = run_small_pass(model, model.encode(request), max_new_tokens=LONGEST)
            assert result.importance is not None
            maps[name] = result.importance.resample(prompt.spans)
            self.right[name].append(is_exact(result.generation.text, question))
        # The first question has none before it: chance stands in.
        blind = blind_rankings(prompt, seed)
        before, self.before = self.before or blind["random"], maps[name]
        return {**maps, f"{name}, of the question before": before, **blind}


def grid(model: VLM) -> str:
    """Visual tokens down and across, as in "12 x 12"."""
    return " x ".join(map(str, model.family.tile_grid(model.config)))


def main() -> None:
    """Run and print."""
    options = parse(
        __doc__,
        questions=500,
        json="also write the outcomes here",
        model="folder of a small model with another grid",
    )
    engine = demo_engine()
    guides = Guides(engine.small, VLM.from_pretrained(options.model, dtype="float32"))
    outcome = measure(engine.large, guides, options.questions, options.start, points=POINTS_SHOWN)
    console = Console(width=140)
    console.print(show(outcome, engine.large.num_layers, points=POINTS_SHOWN))
    for name, right in guides.right.items():
        console.print(f"{name}, answering by itself: {percent(right)}")
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome) | {"small": guides.right}))


if __name__ == "__main__":
    main()
