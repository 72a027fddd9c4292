"""Where the small model looks: at the evidence, or at a place in the prompt?

    python -m benchmarks.maps --questions 300

Held-out pages with questions whose evidence is known (`Question.evidence`). First, by number of tiles: the
share of the map's mass and of the evidence in each tile, by its place in the prompt, and how often the one
tile that holds the evidence comes first, by the sum of mass, by the most important token, by question rows,
and by place alone (the mean share of all other pages). Then, for maps that are and are not corrected for what
does not depend on the question: the share of the evidence that is kept, and how often all of it is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import heldout
from sgl_engine import SGLEngine
from sgl_engine.demo import demo_engine
from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages import draw_page
from sgl_engine.demo.pages.cells import TOKENS, evidence_tokens
from sgl_engine.prompt import neutral_request
from sgl_engine.rankers import MAPS, RANKERS, RankingCase

RATIOS = (0.05, 0.2, 0.4)
"""Kept by the presets, from their first pruned layer on."""
RULES = ("sum of mass", "top token", "question rows", "place alone", "chance")


@dataclass(frozen=True, eq=False)
class Seen:
    """One question: float32 maps (V,) by name, and bool (V,) what holds its evidence."""

    maps: dict[str, Tensor]
    evidence: Tensor

    @property
    def tiles(self) -> int:
        """Of its page."""
        return len(self.evidence) // TOKENS

    def by_tile(self, values: Tensor) -> Tensor:
        """Sums (tiles,) of something of each token, as shares of all."""
        sums = values.float().reshape(self.tiles, TOKENS).sum(dim=1)
        return sums / sums.sum()


def look(engine: SGLEngine, seed: int, question: Question, case: RankingCase) -> Seen | None:
    """Every map of one question; None where its evidence is the whole page, or nothing."""
    page = draw_page(seed, split="heldout")
    evidence = torch.zeros(page.rows * page.columns * TOKENS, dtype=torch.bool)
    evidence[torch.from_numpy(evidence_tokens(question.evidence, page.rows, page.columns))] = True
    if not evidence.any() or evidence.all():
        return None
    own = [name for name in MAPS if name != "diverse"]  # which asks the large model
    maps = {name: RANKERS[name](case).mass for name in (*own, "uniform")}
    empty = RANKERS["small-guided"](RankingCase.of(engine, neutral_request(case.request))).mass
    plain = maps["small-guided"]
    maps["minus the neutral question's, with its answer"] = plain / plain.sum() - empty / empty.sum()
    maps["over the neutral question's"] = plain / empty.clamp_min(1e-9)
    return Seen(maps, evidence)


def add_mean_maps(seen: Sequence[Seen]) -> None:
    """Corrects each map by the mean of all other pages of its shape: what is due to the place alone."""
    shapes = defaultdict(list)
    for each in seen:
        shapes[each.tiles].append(each)
    for group in shapes.values():
        total = torch.stack(
            [each.maps["small-guided"] / each.maps["small-guided"].sum() for each in group]
        ).sum(0)
        for each in group if len(group) > 1 else ():
            own = each.maps["small-guided"] / each.maps["small-guided"].sum()
            mean = (total - own) / (len(group) - 1)
            each.maps["minus the mean map"] = own - mean
            each.maps["over the mean map"] = own / mean.clamp_min(1e-9)
            each.maps["the mean map alone"] = mean


def first_tile(each: Seen, rule: str) -> Tensor:
    """Which tile a rule puts first."""
    plain = each.maps["small-guided"]
    if rule == "top token":
        return plain.argmax() // TOKENS
    name = {"question rows": "question-rows", "place alone": "the mean map alone"}.get(rule, "small-guided")
    return each.by_tile(each.maps[name]).argmax()


def places(seen: Sequence[Seen]) -> Table:
    """Mass, evidence and first tiles by number of tiles."""
    table = Table("tiles", "pages", "mass by place %", "evidence by place %", *(f"{r} %" for r in RULES))
    for tiles in sorted({each.tiles for each in seen} - {1}):
        group = [each for each in seen if each.tiles == tiles and "the mean map alone" in each.maps]
        if not group:  # a page that is alone in its shape has no mean to be held against
            continue
        mass = torch.stack([each.by_tile(each.maps["small-guided"]) for each in group]).mean(0)
        evidence = torch.stack([each.by_tile(each.evidence) for each in group]).mean(0)
        single = [each for each in group if int((each.by_tile(each.evidence) > 0).sum()) == 1]
        hits = [
            heldout.percent(
                bool(first_tile(each, rule) == each.by_tile(each.evidence).argmax()) for each in single
            )
            for rule in RULES[:-1]
        ]
        cells = [" ".join(f"{100 * float(part):.0f}" for part in parts) for parts in (mass, evidence)]
        table.add_row(str(tiles), str(len(group)), *cells, *hits, f"{100 / tiles:.0f}")
    return table


def kept(each: Seen, name: str, ratio: float) -> float:
    """Share of the evidence among the most important tokens."""
    count = max(1, round(ratio * len(each.evidence)))
    best = each.maps[name].sort(descending=True, stable=True).indices[:count]
    return float(each.evidence[best].sum() / each.evidence.sum())


def shares(seen: Sequence[Seen]) -> tuple[Table, dict[str, dict[str, float]]]:
    """Evidence kept by map and ratio, and against the plain map question by question."""
    table = Table(
        "map", *(f"{100 * ratio:.0f} % kept: evidence %, all of it %, minus plain" for ratio in RATIOS)
    )
    numbers: dict[str, dict[str, float]] = {}
    names = [name for name in seen[0].maps if all(name in each.maps for each in seen)]
    plain = {ratio: torch.tensor([kept(each, "small-guided", ratio) for each in seen]) for ratio in RATIOS}
    for name in names:
        cells = []
        for ratio in RATIOS:
            found = torch.tensor([kept(each, name, ratio) for each in seen])
            gain = found - plain[ratio]
            error = 1.96 * float(gain.std()) / len(seen) ** 0.5
            whole = float((found == 1).float().mean())
            numbers.setdefault(name, {})[f"{ratio}"] = float(found.mean())
            cells.append(
                f"{100 * float(found.mean()):.1f}, {100 * whole:.1f}, "
                f"{100 * float(gain.mean()):+.1f} +- {100 * error:.1f}"
            )
        table.add_row(name, *cells)
    return table, numbers


def main() -> None:
    """Measure and print."""
    options = heldout.parse(__doc__, questions=300, json="evidence kept, by map and ratio")
    engine = demo_engine()
    seen = []
    asked = heldout.questions(options.questions, options.start)
    for seed, (request, question) in enumerate(islice(asked, options.questions), options.start):
        found = look(engine, seed, question, RankingCase.of(engine, request, seed=seed))
        if found is not None:
            seen.append(found)
    add_mean_maps(seen)
    console = Console(width=180)
    console.print(f"{len(seen)} questions with evidence")
    console.print(places(seen))
    table, numbers = shares([each for each in seen if "the mean map alone" in each.maps])
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
