"""How well a pair answers about held-out pages, and what pruning under the small model's guidance costs.

    python -m benchmarks.pages WEIGHTS/small WEIGHTS/large --questions 300

One question to a page. Prints exact match by kind and by number of tiles: small alone, large alone, large
guided at each retention; what pruning loses, paired; the share of the evidence that is kept; the cascade at
several thresholds; AUROC of the score. Transcriptions are left out, or, with ``--transcriptions``, asked
for alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.heldout import by_kind, is_exact, percent
from sgl_engine import SGLEngine
from sgl_engine.config import PRESETS, EngineConfig, ExitConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.demo import SCORER
from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages import Page, heldout_pages
from sgl_engine.demo.pages.cells import evidence_tokens
from sgl_engine.evaluation.intervals import auroc
from sgl_engine.exit.decision import score_parts
from sgl_engine.passes.large import run_large_pass
from sgl_engine.passes.small import run_small_pass
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import PruningPlan, keep_everything, plan_pruning
from sgl_engine.report import cost
from sgl_engine.request import Request

POINTS = ("64%", "35%", "9%")
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Row:
    """One question's outcome. ``kept`` is None where the question has no evidence; times are ms."""

    kind: str
    tiles: int
    score: float
    small: bool
    large: bool
    guided: dict[str, bool]
    kept: dict[str, float | None]  # share of the evidence's tokens
    ms: dict[str, float]  # by "small", "large" and retention
    flops: dict[str, float]


def measure(engine: SGLEngine, page: Page, question: Question) -> Row:
    """All ways of answering one question."""
    request = Request.ask(question.text, Image.fromarray(page.pixels))
    limit = engine.config.generation.max_new_tokens
    prompt, large_prompt = engine.small.encode(request), engine.large.encode(request)
    small = run_small_pass(engine.small, AnswerTask(prompt, limit))
    plans = {"large": keep_everything(large_prompt)}
    for point in POINTS:
        pruning = PRESETS[point]
        plans[point] = plan_pruning(
            large_prompt,
            small.importance,
            layer=pruning.layer(engine.large.num_layers),
            keep_ratio=pruning.keep_ratio,
        )
    passes = {
        name: run_large_pass(engine.large, AnswerTask(large_prompt, limit), plan)
        for name, plan in plans.items()
    }
    patches = engine.small.tower_patches(prompt)
    spent = cost.small_pass_flops(engine.small.shape, patches=patches, prompt=prompt, result=small)
    right = {name: is_exact(result.generation.text, question) for name, result in passes.items()}
    evidence = set(evidence_tokens(question.evidence, page.rows, page.columns).tolist())
    return Row(
        kind=question.kind,
        tiles=page.rows * page.columns,
        score=score_parts(small.parts, SCORER).score,
        small=is_exact(small.generation.text, question),
        large=right["large"],
        guided={point: right[point] for point in POINTS},
        kept={point: _kept(plans[point], large_prompt, evidence) for point in POINTS},
        ms={"small": sum(small.stage_ms.values())}
        | {name: sum(result.stage_ms.values()) for name, result in passes.items()},
        flops={"small": spent}
        | {
            name: _flops(engine, large_prompt, plans[name], len(result.generation))
            for name, result in passes.items()
        },
    )


def _kept(plan: PruningPlan, prompt: EncodedPrompt, evidence: set[int]) -> float | None:
    if not evidence:
        return None
    kept = set(plan.keep.tolist())
    seen = {index for index, place in enumerate(prompt.visual_positions) if int(place) in kept}
    return len(seen & evidence) / len(evidence)


def _flops(engine: SGLEngine, prompt: EncodedPrompt, plan: PruningPlan, tokens: int) -> float:
    return cost.answer_flops(
        engine.large.shape,
        patches=engine.large.tower_patches(prompt),
        prompt_tokens=len(prompt),
        output_tokens=tokens,
        plan=plan,
    )


def paired(rows: Sequence[Row], better: Callable[[Row], bool], than: Callable[[Row], bool]) -> str:
    """Mean difference in points with half of its 95 % interval."""
    differences = [float(better(row)) - float(than(row)) for row in rows]
    half = 1.96 * stdev(differences) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
    return f"{100 * fmean(differences):+.1f} ± {100 * half:.1f}"


def groups_table(rows: Sequence[Row], title: str, name: Callable[[Row], str]) -> Table:
    """Exact match in % by group, and of all."""
    table = Table(title=title)
    for column in ("", "n", "small", "large", *(f"guided {point}" for point in POINTS)):
        table.add_column(column, justify="right")
    for label, group in {**by_kind(rows, name), "all": list(rows)}.items():
        guided = (percent(row.guided[point] for row in group) for point in POINTS)
        small, large = percent(row.small for row in group), percent(row.large for row in group)
        table.add_row(label, str(len(group)), small, large, *guided)
    return table


def pruning_table(rows: Sequence[Row]) -> Table:
    """What each retention loses, keeps of the evidence, and costs."""
    table = Table(title="Guided by the small model, minus large alone (paired, 95 %)")
    for column in ("retention", "points", "evidence kept %", "ms / large", "FLOPs / large"):
        table.add_column(column, justify="right")
    for point in POINTS:
        lost = paired(rows, lambda row, point=point: row.guided[point], lambda row: row.large)  # type: ignore[misc]
        kept = [share for row in rows if (share := row.kept[point]) is not None]
        ratios = (
            sum(_of(row, how)[point] for row in rows) / sum(_of(row, how)["large"] for row in rows)
            for how in ("ms", "flops")
        )
        shown = f"{100 * fmean(kept):.1f}" if kept else "-"
        table.add_row(point, lost, shown, *(f"{ratio:.2f}" for ratio in ratios))
    return table


def _of(row: Row, how: str) -> dict[str, float]:
    return row.ms if how == "ms" else row.flops


def cascade_table(rows: Sequence[Row], point: str) -> Table:
    """The cascade at several thresholds, against the large model alone."""
    table = Table(title=f"Exit at score >= threshold, else guided at {point}")
    for column in ("threshold", "escalated %", "exact match %", "minus large", "ms / large", "FLOPs / large"):
        table.add_column(column, justify="right")
    for threshold in THRESHOLDS:
        up = [row for row in rows if row.score < threshold]
        ratios = (
            (sum(_of(row, how)["small"] for row in rows) + sum(_of(row, how)[point] for row in up))
            / sum(_of(row, how)["large"] for row in rows)
            for how in ("ms", "flops")
        )

        def answer(row: Row, threshold: float = threshold) -> bool:
            return row.guided[point] if row.score < threshold else row.small

        lost = paired(rows, answer, lambda row: row.large)
        shares = (f"{100 * len(up) / len(rows):.1f}", percent(answer(row) for row in rows), lost)
        table.add_row(f"{threshold:.2f}", *shares, *(f"{ratio:.2f}" for ratio in ratios))
    return table


def report(rows: Sequence[Row], console: Console) -> None:
    """Print every table."""
    console.print(groups_table(rows, "Exact match in % (95 % interval), by kind", lambda row: row.kind))
    console.print(groups_table(rows, "By number of tiles", lambda row: f"{row.tiles} tiles"))
    console.print(pruning_table(rows))
    for point in POINTS[:2]:
        console.print(cascade_table(rows, point))
    areas = [
        auroc([row.score for row in group], [row.small for row in group])
        for group in by_kind(rows, lambda row: row.kind).values()
    ]
    inside = [area for area in areas if not math.isnan(area)]
    whole = auroc([row.score for row in rows], [row.small for row in rows])
    console.print(f"AUROC of the score {whole:.3f}; within kinds {fmean(inside) if inside else math.nan:.3f}")
    times = {name: median(row.ms[name] for row in rows) for name in rows[0].ms}
    console.print("median ms: " + ", ".join(f"{name} {value:.0f}" for name, value in times.items()))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--tiles", type=int, help="of every page; drawn if not given")
    parser.add_argument("--transcriptions", action="store_true", help="ask for these alone")
    parser.add_argument("--json", type=Path, help="also write every row here")
    return parser.parse_args()


def asked(options: argparse.Namespace) -> Iterator[tuple[Page, Question]]:
    """The questions of the command line."""
    pages = heldout_pages(
        options.questions,
        start=options.start,
        tiles=options.tiles,
        transcriptions=options.transcriptions,
    )
    return iter(track(pages, description="questions", total=options.questions))


def main() -> None:
    """Run and print."""
    options = parse()
    config = EngineConfig(exit=ExitConfig(scorer=SCORER))
    engine = SGLEngine.from_pretrained(str(options.small), str(options.large), config, dtype="float32")
    rows = [measure(engine, page, question) for page, question in asked(options)]
    report(rows, Console(width=130))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
