"""What the small answer is worth as a draft of the large one, on the bundled pair.

    python -m benchmarks.drafts --questions 600

Every held-out question goes through the small model; the large pass of those that escalate runs with and
without the draft, by turns, and must give the same tokens. Prints how much of the drafts is accepted, the
forwards that are left, and the time of a large pass with a draft by that of one without.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, quantiles

from rich.console import Console
from rich.table import Table

from benchmarks.heldout import parse, percent, questions
from sgl_engine import SGLEngine
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.decoding.draft import draft_tokens
from sgl_engine.demo import demo_engine
from sgl_engine.exit.decision import decide_exit, score_parts
from sgl_engine.passes.large import LargePassResult, run_large_pass
from sgl_engine.passes.small import run_small_pass
from sgl_engine.request import Request

REPEATS = 3
"""Large passes of each sort per question; the fastest counts."""


@dataclass(frozen=True)
class DraftRow:
    """One escalated question; ``*_ms`` milliseconds of a large pass, vision tower included."""

    kind: str
    drafted: int
    accepted: int
    tokens: int
    forwards: int
    drafted_ms: float
    plain_ms: float


def measure(engine: SGLEngine, request: Request, kind: str) -> DraftRow | None:
    """None where the small answer is kept."""
    limit = engine.config.generation.max_new_tokens
    prompt = engine.small.encode(request)
    small = run_small_pass(engine.small, AnswerTask(prompt, limit))
    if decide_exit(score_parts(small.parts, engine.config.exit.scorer), engine.config.exit).exit:
        return None
    large_prompt = engine.large.encode(request)
    plan = engine.plan(large_prompt, small.importance)
    draft = draft_tokens(engine.small, engine.large, small.generation.token_ids.tolist())

    def run(tokens: Sequence[int]) -> tuple[float, LargePassResult]:
        started = time.perf_counter()
        result = run_large_pass(engine.large, AnswerTask(large_prompt, limit, draft=tuple(tokens)), plan)
        return 1e3 * (time.perf_counter() - started), result

    runs = [(run(draft), run(())) for _ in range(REPEATS)]
    (_, drafted), (_, plain) = runs[0]
    assert drafted.generation.token_ids.tolist() == plain.generation.token_ids.tolist(), request
    return DraftRow(
        kind=kind,
        drafted=drafted.drafted_tokens,
        accepted=drafted.accepted_tokens,
        tokens=len(drafted.generation),
        forwards=len(drafted.fed),
        drafted_ms=min(ms for (ms, _), _ in runs),
        plain_ms=min(ms for _, (ms, _) in runs),
    )


def report(rows: Sequence[DraftRow], asked: int) -> Table:
    """What the rows come to."""
    table = Table(
        "of the escalated questions", f"{len(rows)} of {asked}", title="The small answer as a draft"
    )
    ratios = [row.drafted_ms / row.plain_ms for row in rows]
    whole = [row.drafted_ms / row.plain_ms for row in rows if row.forwards == 1]
    first, _, third = quantiles(ratios, n=4)
    table.add_row("accepted whole, one forward, %", percent(row.forwards == 1 for row in rows))
    table.add_row(
        "tokens accepted, %", f"{100 * sum(r.accepted for r in rows) / sum(r.drafted for r in rows):.1f}"
    )
    table.add_row(
        "accepted share of a draft, mean %", f"{100 * fmean(r.accepted / r.drafted for r in rows):.1f}"
    )
    table.add_row("tokens of an answer, mean", f"{fmean(row.tokens for row in rows):.2f}")
    table.add_row("forwards for it, mean", f"{fmean(row.forwards for row in rows):.2f}")
    table.add_row("large pass, with / without", f"{median(ratios):.3f} ({first:.3f}-{third:.3f})")
    table.add_row("  where accepted whole", f"{median(whole):.3f}" if whole else "-")
    table.add_row("  all together", f"{sum(r.drafted_ms for r in rows) / sum(r.plain_ms for r in rows):.3f}")
    return table


def main() -> None:
    """Measures, prints, writes."""
    options = parse(__doc__, questions=600, json="rows as JSON")
    engine = demo_engine()
    found = [
        measure(engine, request, question.kind)
        for request, question in questions(options.questions, options.start)
    ]
    rows = [row for row in found if row is not None and row.drafted]
    console = Console()
    console.print(report(rows, len(found)))
    console.print("escalated, by kind:", dict(Counter(row.kind for row in rows)))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
