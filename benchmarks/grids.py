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

from rich.console import Console
from rich.progress import track

from benchmarks.heldout import parse, percent
from sgl_engine import SGLEngine
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.config import PRESETS, EngineConfig, GenerationConfig, PruningConfig
from sgl_engine.demo import demo_engine
from sgl_engine.evaluation.dataset import HeldOut
from sgl_engine.evaluation.metrics import exact
from sgl_engine.evaluation.records import BenchAnswer, DataRow
from sgl_engine.evaluation.systems import Systems, answer_by
from sgl_engine.evaluation.tables import Table
from sgl_engine.model.vlm import VLM
from sgl_engine.rankers import RANKERS, RankingCase
from sgl_engine.request import Request

CONFIG = EngineConfig(generation=GenerationConfig(max_new_tokens=64))
POINTS = {
    "64 %": PRESETS["64%"],
    "35 %": PRESETS["35%"],
    "9 %": PruningConfig(layer_fraction=0.0, keep_ratio=0.09),
}
Answers = dict[str, dict[str, BenchAnswer]]


class Guides:
    """Ranks for one question after the other, and keeps what the small models answer themselves."""

    def __init__(self, same: VLM, other: VLM, large: VLM) -> None:
        """The small model with the large one's grid, and the one with another."""
        self.engines = {f"small, {grid(small)}": SGLEngine(small, large, CONFIG) for small in (same, other)}
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.before: ImportanceMap | None = None

    def answer(self, row: DataRow, request: Request, systems: Systems) -> Answers:
        """The large model's answers under every map."""
        maps: dict[str, ImportanceMap] = {}
        for name, engine in self.engines.items():
            case = RankingCase.of(engine, request, seed=row.index)
            maps[name] = RANKERS["small-guided"](case)
            self.right[name].append(exact(case.small.generation.text, row.answers) == 1.0)
        blind = {ranker: RANKERS[ranker](case) for ranker in ("uniform", "random")}
        # The first question has none before it: chance stands in.
        before, self.before = self.before or blind["random"], maps[name]
        maps |= {f"{name}, of the question before": before, **blind}
        return answer_by(engine, case, maps, row, systems)


def grid(model: VLM) -> str:
    """Visual tokens down and across, as in "12 x 12"."""
    return " x ".join(map(str, model.family.tile_grid(model.config)))


def table(answers: list[Answers]) -> Table:
    """Guides down, operating points across."""
    names = [f"{point}, sees {100 * answers[0]['random'][point].retention:.1f} %" for point in POINTS]
    rows = [
        (guide, *(percent(each[guide][point].right for each in answers) for point in POINTS))
        for guide in answers[0]
    ]
    title = f"Exact match of the large model in % (95 % interval), {len(answers)} held-out questions"
    return Table(title, ("guide", *names), rows)


def main() -> None:
    """Run and print."""
    options = parse(
        __doc__,
        questions=500,
        json="also write the outcomes here",
        model="folder of a small model with another grid",
    )
    pair = demo_engine(CONFIG)
    guides = Guides(pair.small, VLM.from_pretrained(options.model, dtype="float32"), pair.large)
    data, systems = HeldOut(options.questions, options.start), Systems(POINTS, ())
    answers = []
    for index in track(range(len(data)), description="questions"):
        sample = data[index]
        answers.append(guides.answer(sample.row, Request.ask(sample.row.question, *sample.images), systems))
    console = Console(width=140)
    console.print(table(answers).rich())
    for name, right in guides.right.items():
        console.print(f"{name}, answering by itself: {percent(right)}")
    if options.json:
        found = {
            guide: {point: [each[guide][point].right for each in answers] for point in POINTS}
            for guide in answers[0]
        }
        options.json.write_text(json.dumps({"pruned": found, "small": guides.right}))


if __name__ == "__main__":
    main()
