"""Are the answers of two versions of the engine the same? Tokens, log-probabilities, kept tokens, routes.

    python -m benchmarks.same_answers record before.json --questions 600      in the old checkout
    python -m benchmarks.same_answers record after.json --questions 600       in the new one
    python -m benchmarks.same_answers compare before.json after.json

``training.regenerate`` records the few that the tests compare with (``tests/engine/answers_before.json``).
Each held-out question is asked three times: as configured, with the large model forced, and by
``score_answers`` with the right answer among others. Only public names are used, so that this file runs in
either checkout (``PYTHONPATH=OLD python NEW/benchmarks/same_answers.py record ...``). Nothing is kept
between questions: what a question costs, and so what is computed for it, does not depend on the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOGPROB_LIMIT = 1e-4
"""Natural log; float32 on one machine gives 1e-6 where other products are summed in another order."""


def record(count: int) -> Iterator[dict[str, Any]]:
    """Asks the bundled pair the first held-out questions; what it said, in plain JSON."""
    from dataclasses import replace

    from PIL import Image

    from sgl_engine import EngineConfig, Request
    from sgl_engine.demo import demo_engine
    from sgl_engine.demo.pages import heldout_pages

    engine = demo_engine(EngineConfig().without_reuse())
    always = engine.with_config(engine.config.escalating("always"))
    others = ["none", "7", "red"]
    for page, question in heldout_pages(count):
        request = replace(Request.ask(question.text, Image.fromarray(page.pixels)), logprobs=True)
        scores = engine.score_answers(request, [question.answer, *others])
        yield {
            "question": question.text,
            "auto": _answered(engine.run(request)),
            "always": _answered(always.run(request)),
            "scores": {"logprobs": list(scores.logprobs), "route": scores.report.route},
        }


def _answered(response: Any) -> dict[str, Any]:
    plan = response.plan
    return {
        "text": response.text,
        "tokens": [token.token for token in response.tokens],
        "logprobs": [token.logprob for token in response.tokens],
        "route": response.report.route,
        "score": response.report.score,
        "tflops": response.report.small_tflops + response.report.large_tflops,
        "kept": None if plan is None else hashlib.sha256(plan.keep.numpy().tobytes()).hexdigest(),
    }


def differences(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Counts what differs: texts and tokens, routes and kept sets exactly, numbers beyond rounding."""
    found: Counter[str] = Counter()
    for old, new in zip(before, after, strict=True):
        assert old["question"] == new["question"], "these are other questions"
        for way in ("auto", "always"):
            for exact in ("text", "tokens", "route", "kept"):
                found[f"{way}: {exact}"] += old[way][exact] != new[way][exact]
            found[f"{way}: score"] += gap([old[way]["score"]], [new[way]["score"]]) > LOGPROB_LIMIT
            found[f"{way}: operations"] += old[way]["tflops"] != new[way]["tflops"]
            found[f"{way}: logprobs"] += gap(old[way]["logprobs"], new[way]["logprobs"]) > LOGPROB_LIMIT
        found["scores: route"] += old["scores"]["route"] != new["scores"]["route"]
        found["scores: logprobs"] += gap(old["scores"]["logprobs"], new["scores"]["logprobs"]) > LOGPROB_LIMIT
    return found


def gap(before: Sequence[float], after: Sequence[float]) -> float:
    """Returns the largest difference; infinite where there are more of one than of the other."""
    if len(before) != len(after):
        return float("inf")
    return max((abs(old - new) for old, new in zip(before, after, strict=True)), default=0.0)


def largest_gap(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> float:
    """Returns the largest difference between log-probabilities of the same answers."""
    pairs = [
        (old[way]["logprobs"], new[way]["logprobs"])
        for old, new in zip(before, after, strict=True)
        for way in ("auto", "always", "scores")
    ]
    return max(gap(old, new) for old, new in pairs)


def main() -> int:
    """Records or compares; returns 1 where anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="ask, and write what was said to a file")
    recording.add_argument("file", type=Path)
    recording.add_argument("--questions", type=int, default=600)
    comparing = commands.add_parser("compare", help="count what differs between two files")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        options.file.write_text(json.dumps(list(record(options.questions)), indent=1))
        return 0
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    found = differences(before, after)
    print(f"{len(after)} questions, each asked three ways; log-probabilities may differ by {LOGPROB_LIMIT}")
    for what, count in sorted(found.items()):
        print(f"  {what:20} {count} differ")
    print(f"  largest difference of log-probabilities: {largest_gap(before, after):.2e}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
