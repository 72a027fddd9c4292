"""How well the bundled pair answers, and what its score is worth.

    python -m benchmarks.pair --questions 2000

Every held-out question goes through the small model, the large model unpruned, and the large model pruned
under the small one's guidance at the default operating point. Prints exact match per kind with 95 %
intervals, AUROC of the score over all questions and within each kind, and the cascade at several
thresholds.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from statistics import fmean, median

from rich.console import Console
from rich.table import Table

from benchmarks.heldout import by_kind, is_exact, parse, percent, questions
from sgl_engine import SGLEngine
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.demo import demo_engine
from sgl_engine.demo.drawing import Question
from sgl_engine.evaluation.intervals import auroc
from sgl_engine.exit.decision import SCORERS, score_parts
from sgl_engine.passes.large import run_large_pass
from sgl_engine.passes.small import run_small_pass
from sgl_engine.pruning.plan import keep_everything
from sgl_engine.report import cost
from sgl_engine.request import Request

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.01)


@dataclass(frozen=True)
class PairRow:
    """One question's outcome. TFLOPs are those of the pass; ``*_ms`` milliseconds."""

    kind: str
    small: bool
    large: bool
    guided: bool
    score: float
    scores: dict[str, float]  # by every scorer
    small_tflops: float
    large_tflops: float
    guided_tflops: float
    small_ms: float
    large_ms: float
    guided_ms: float


def measure(engine: SGLEngine, request: Request, question: Question) -> PairRow:
    """All three ways of answering one question."""
    limit = engine.config.generation.max_new_tokens
    prompt = engine.small.encode(request)
    small = run_small_pass(engine.small, AnswerTask(prompt, limit))
    large_prompt = engine.large.encode(request)
    plan = engine.plan(large_prompt, small.importance)
    large = run_large_pass(engine.large, AnswerTask(large_prompt, limit), keep_everything(large_prompt))
    guided = run_large_pass(engine.large, AnswerTask(large_prompt, limit), plan)
    flops = [
        cost.answer_flops(
            engine.large.shape,
            patches=engine.large.tower_patches(large_prompt),
            prompt_tokens=len(large_prompt),
            output_tokens=len(result.generation),
            plan=result.plan,
        )
        for result in (large, guided)
    ]
    return PairRow(
        kind=question.kind,
        small=is_exact(small.generation.text, question),
        large=is_exact(large.generation.text, question),
        guided=is_exact(guided.generation.text, question),
        score=score_parts(small.parts, engine.config.exit.scorer).score,
        scores={name: scorer(small.parts) for name, scorer in SCORERS.items()},
        small_tflops=cost.small_pass_flops(
            engine.small.shape, patches=engine.small.tower_patches(prompt), prompt=prompt, result=small
        )
        / 1e12,
        large_tflops=flops[0] / 1e12,
        guided_tflops=flops[1] / 1e12,
        small_ms=sum(small.stage_ms.values()),
        large_ms=sum(large.stage_ms.values()),
        guided_ms=sum(guided.stage_ms.values()),
    )


def kinds_table(rows: list[PairRow]) -> Table:
    """Exact match and AUROC per kind."""
    table = Table(title="Exact match in % (95 % interval), held-out questions")
    for name in ("kind", "n", "small", "large", "large, guided at 35 %", "AUROC of the score"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    groups = {**by_kind(rows, lambda row: row.kind), "all": rows}
    for kind, group in groups.items():
        if kind == "all":
            table.add_section()
        area = auroc([row.score for row in group], [row.small for row in group])
        shares = (percent(getattr(row, name) for row in group) for name in ("small", "large", "guided"))
        table.add_row(kind, str(len(group)), *shares, f"{area:.3f}")
    return table


def scorers_table(rows: list[PairRow]) -> Table:
    """AUROC of each score, overall and as a mean over kinds."""
    table = Table(title="Separating right from wrong small answers")
    for name in ("score", "AUROC overall", "AUROC within a kind, mean"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for name in SCORERS:
        inside = [
            auroc([row.scores[name] for row in group], [row.small for row in group])
            for group in by_kind(rows, lambda row: row.kind).values()
        ]
        inside = [area for area in inside if not math.isnan(area)]
        overall = auroc([row.scores[name] for row in rows], [row.small for row in rows])
        table.add_row(name, f"{overall:.3f}", f"{fmean(inside) if inside else math.nan:.3f}")
    return table


def cascade_table(rows: list[PairRow]) -> Table:
    """What the cascade answers and costs at several thresholds, against the large model alone."""
    table = Table(title="The cascade: exit at score >= threshold, else the large model, guided at 35 %")
    for name in (
        "threshold",
        "escalated %",
        "exact match %",
        "TFLOPs, share of large alone",
        "ms, share of large alone",
    ):
        table.add_column(name, justify="right")
    alone = sum(row.large_tflops for row in rows)
    alone_ms = sum(row.large_ms for row in rows)
    for threshold in THRESHOLDS:
        up = [row.score < threshold for row in rows]
        right = [row.guided if escalated else row.small for row, escalated in zip(rows, up, strict=True)]
        flops = sum(row.small_tflops + row.guided_tflops * e for row, e in zip(rows, up, strict=True))
        spent = sum(row.small_ms + row.guided_ms * e for row, e in zip(rows, up, strict=True))
        name = "never exit" if threshold > 1 else f"{threshold:.2f}"
        table.add_row(
            name, f"{100 * fmean(up):.1f}", percent(right), f"{flops / alone:.2f}", f"{spent / alone_ms:.2f}"
        )
    table.add_section()
    table.add_row("large alone", "", percent(row.large for row in rows), "1.00", "1.00")
    return table


def main() -> None:
    """Run and print."""
    options = parse(__doc__, questions=2000, json="also write every row here")
    engine = demo_engine()
    rows = [
        measure(engine, request, question)
        for request, question in questions(options.questions, options.start)
    ]
    console = Console(width=120)
    for table in (kinds_table(rows), scorers_table(rows), cascade_table(rows)):
        console.print(table)
    ms = {name: median(getattr(row, f"{name}_ms") for row in rows) for name in ("small", "large", "guided")}
    console.print("median ms per question: " + ", ".join(f"{name} {value:.0f}" for name, value in ms.items()))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
