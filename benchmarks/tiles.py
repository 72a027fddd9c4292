"""Tiles that the large model does not see: what of its vision tower that saves, and what it costs.

    python -m benchmarks.tiles --questions 120 --start 50000

By family, what one rule saves of a tiny model's tower; what is lost can be told of trained pairs alone. So,
by rule, on held-out pages of several tiles and the bundled pair, which is of the InternVL family: tiles that
are shown, operations of the tower that are saved, evidence that is shown, and right answers against the same
question with all tiles, unpruned and at 35 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import heldout
from sgl_engine import PRESETS, EngineConfig, PruningConfig, Request, SGLEngine
from sgl_engine.attention import ImportanceMap
from sgl_engine.decoding import AnswerTask, draft_tokens
from sgl_engine.demo import demo_engine
from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages import draw_page
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.passes import LargePassResult, run_large_batch
from sgl_engine.prompt import PromptTiles
from sgl_engine.pruning import PruningPlan, plan_pruning
from sgl_engine.rankers import RANKERS, RankingCase
from sgl_engine.report import seen_patches
from sgl_engine.testing import TINY_FAMILIES, tiny_vlm

ALL = "all tiles"
POINTS = {"unpruned": PRESETS["100%"], "35 %": PRESETS["35%"]}


@dataclass(frozen=True, eq=False)
class Page:
    """One question about a page of several tiles.

    Attributes:
        case: The small model's pass.
        tiles: The large prompt's, T of them.
        mass: The small model's map on the large model's tokens, float32 (V,).
        evidence: bool (V,), what holds the question's.
    """

    case: RankingCase
    tiles: PromptTiles
    mass: Tensor
    evidence: Tensor

    def by_tile(self, values: Tensor) -> Tensor:
        """Sums (T,) of something of each token."""
        return self.tiles.tokens.float() @ values.float()

    def holding(self, tokens: Tensor) -> Tensor:
        """Which tiles hold one of these tokens, bool (T,) of bool (V,)."""
        return self.by_tile(tokens) > 0

    def top(self, count: int, mass: Tensor | None = None) -> Tensor:
        """Which tiles hold one of the most important tokens, bool (T,)."""
        values = self.mass if mass is None else mass
        best = values.sort(descending=True, stable=True).indices[:count]
        return self.holding(torch.zeros_like(self.evidence).index_fill(0, best, value=True))

    def heavy(self, share: float) -> Tensor:
        """Which tiles have so much of the mass, bool (T,); the heaviest always."""
        sums = self.by_tile(self.mass)
        return (sums >= share * sums.sum()) | (sums == sums.max())


RULES: Mapping[str, Callable[[Page], Tensor]] = {
    ALL: lambda page: torch.ones(len(page.tiles), dtype=torch.bool),
    "top 20 tokens": lambda page: page.top(20),
    "top 5 tokens": lambda page: page.top(5),
    "top 5, beyond a neutral question": lambda page: page.top(5, RANKERS["beyond-neutral"](page.case).mass),
    "top 1 token": lambda page: page.top(1),
    "mass of 25 % at least": lambda page: page.heavy(0.25),
    "the evidence's tiles (oracle)": lambda page: page.holding(page.evidence),
}


@dataclass(frozen=True)
class Shown:
    """What a rule did on one question; shares in [0, 1].

    Attributes:
        tiles: Shown, of all of the page's.
        saved: Operations of the vision tower that were not made.
        evidence: Shown, of all of the question's.
        right: By operating point.
    """

    tiles: float
    saved: float
    evidence: float
    right: dict[str, bool]


def pages(engine: SGLEngine, count: int, start: int) -> Iterator[tuple[Page, Question]]:
    """Held-out questions with evidence, about pages of several tiles."""
    asked = heldout.questions(10 * count, start)
    found = 0
    for seed, (request, question) in enumerate(asked, start):
        drawn = draw_page(seed, split="heldout")
        evidence = torch.zeros(drawn.rows * drawn.columns * TOKENS, dtype=torch.bool)
        evidence[torch.from_numpy(evidence_tokens(question.evidence, drawn.rows, drawn.columns))] = True
        if drawn.rows * drawn.columns == 1 or not evidence.any():
            continue
        case = RankingCase.of(engine, request, seed=seed)
        tiles, map_ = case.large_prompt.tiles, case.small.importance
        assert tiles is not None, "pages come in tiles"
        assert map_ is not None, "a case has pictures"
        yield Page(case, tiles, map_.resample(case.large_prompt.spans).mass, evidence), question
        found += 1
        if found == count:
            return


def planned(page: Page, chosen: Tensor, pruning: PruningConfig, layers: int) -> PruningPlan:
    """The plan that shows the tiles ``chosen`` (T,) alone, and of them what ``pruning`` keeps."""
    # As plans choose tiles by tokens: all of theirs come first.
    inside = page.tiles.made_of(chosen.nonzero()[:, 0].tolist())
    mass = page.mass / page.mass.max() + inside.float()
    return plan_pruning(
        page.case.large_prompt,
        ImportanceMap(mass, page.case.large_prompt.spans, 1),
        layer=pruning.layer(layers),
        keep_ratio=pruning.keep_ratio,
        tiles=page.tiles,
        top_tokens=int(inside.sum()),
    )


def ask(engine: SGLEngine, page: Page, question: Question) -> dict[str, Shown]:
    """Every rule on one question; those that show the same share a pass."""
    large, case = engine.large, page.case
    plans = {
        (rule, point): planned(page, choose(page), pruning, large.num_layers)
        for rule, choose in RULES.items()
        for point, pruning in POINTS.items()
    }
    keys = {name: (plan.layer, plan.chosen_tiles, tuple(plan.keep.tolist())) for name, plan in plans.items()}
    different = {keys[name]: plan for name, plan in plans.items()}
    draft = draft_tokens(large, large, case.large.generation.token_ids.tolist())
    task = AnswerTask(case.large_prompt, case.max_new_tokens, draft=draft)
    results = run_large_batch(large, [task] * len(different), list(different.values()))
    answers = dict(zip(different, results, strict=True))

    def right(rule: str, point: str) -> bool:
        result = answers[keys[rule, point]]
        assert isinstance(result, LargePassResult), "nobody has cancelled it"
        return heldout.is_exact(result.generation.text, question)

    found = {}
    for rule in RULES:
        plan = plans[rule, "unpruned"]
        shown = page.tiles.made_of(range(len(page.tiles)) if plan.chosen_tiles is None else plan.chosen_tiles)
        seen, every = seen_patches(large, case.large_prompt, plan), large.tower_patches(case.large_prompt)
        share = len(seen) / len(every)
        # Every tile is the same square, so operations are as tiles.
        evidence = float((page.evidence & shown).sum() / page.evidence.sum())
        found[rule] = Shown(share, 1 - sum(seen) / sum(every), evidence, {p: right(rule, p) for p in POINTS})
    return found


def difference(rows: list[dict[str, Shown]], rule: str, point: str) -> tuple[float, float]:
    """Right answers against all tiles, in points, and the half of its 95 % interval."""
    gains = torch.tensor([float(row[rule].right[point]) - float(row[ALL].right[point]) for row in rows])
    return 100 * float(gains.mean()), 196 * float(gains.std()) / len(rows) ** 0.5


def rules_table(rows: list[dict[str, Shown]]) -> Table:
    """One row a rule."""
    table = Table("rule", "tiles shown %", "tower saved %", "evidence shown %", *POINTS)
    for rule in RULES:
        cells = [
            100 * sum(getattr(row[rule], name) for row in rows) / len(rows)
            for name in ("tiles", "saved", "evidence")
        ]
        if rule == ALL:
            accuracy = [heldout.percent(row[rule].right[point] for row in rows) for point in POINTS]
        else:
            accuracy = ["{:+.1f} +- {:.1f}".format(*difference(rows, rule, point)) for point in POINTS]
        table.add_row(rule, *(f"{cell:.1f}" for cell in cells), *accuracy)
    return table


def families_table() -> Table:
    """What the rule of the top 5 tokens leaves of each family's tower, on one picture."""
    table = Table("family", "tiles", "shown", "tower saved %", "points lost")
    picture = draw_page(3, split="heldout", tiles=4).pixels
    request = Request.ask("What is it?", Image.fromarray(picture), max_new_tokens=1)
    config = EngineConfig(pruning=PruningConfig(tiles=5)).escalating("always")
    for family in TINY_FAMILIES:
        small, large = (tiny_vlm(family, size=size, max_tiles=6) for size in ("small", "large"))
        with SGLEngine(small, large, config) as engine:
            report = engine.run(request).report
            prompt = large.encode(request)
        patches = large.tower_patches(prompt)
        tiles, shown = report.tiles or 0, report.kept_tiles or 0
        saved = 100 * (1 - shown / tiles) if len(set(patches)) == 1 else 0.0
        lost = "above" if family == "internvl" else "no trained pair"
        table.add_row(family, str(tiles), str(shown), f"{saved:.0f}", lost if tiles > 1 else "none: whole")
    return table


def main() -> None:
    """Measure and print."""
    options = heldout.parse(__doc__, questions=120, json="what each rule did, question by question")
    console = Console(width=150)
    console.print(families_table())
    engine = demo_engine()
    asked = islice(pages(engine, options.questions, options.start), options.questions)
    rows = [ask(engine, page, question) for page, question in asked]
    console.print(f"{len(rows)} questions about pages of several tiles, the bundled pair")
    console.print(rules_table(rows))
    if options.json:
        found = [{rule: vars(shown) for rule, shown in row.items()} for row in rows]
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
