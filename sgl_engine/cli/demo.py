"""``sgl demo``: questions about one page of six tiles, each timed against the large model alone."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from sgl_engine import Request, RunReport
from sgl_engine.cli import options, output

if TYPE_CHECKING:
    from sgl_engine import SGLEngine
    from sgl_engine.evaluation.records import BenchAnswer

HELP = "see what the method does on a page of six tiles"
DESCRIPTION = (
    "Asks the bundled pair questions about a page: one that the small model answers by itself, one that goes "
    "to the large model, which sees what the small one found important and overrules it, one for which the "
    "large model skips tiles. Each is also put to the large model alone, in turns, and both are timed."
)


@dataclass(frozen=True)
class Shown:
    """One question, asked both ways.

    Attributes:
        question: What was asked.
        truth: What the page says.
        answer: The pair's.
        report: How that came about.
        ms: Median milliseconds of it.
        alone: The large model's own answer, unpruned, with its cost.
        alone_ms: Median milliseconds of that.
    """

    question: str
    truth: str
    answer: str
    report: RunReport
    ms: float
    alone: BenchAnswer
    alone_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=options.count,
        default=7,
        help="times that each question is asked each way; medians are shown (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=options.count, help="of torch (default: as many as it takes)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback when the engine fails")


def run(arguments: argparse.Namespace) -> None:
    """Ask, time, print."""
    import torch

    from sgl_engine import demo

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    page = demo.PICTURES / "page.png"
    asked: list[dict[str, Any]] = json.loads((demo.PICTURES / "demo.json").read_text())
    options.load_quietly()
    with output.waiting("Loading the models"):
        engine = demo.demo_engine()
    print(f"The page: {page}\n")
    for number, each in enumerate(asked, start=1):
        pruning = engine.config.pruning.model_copy(update={"tiles": each["tiles"]})
        chosen = engine.with_config(engine.config.model_copy(update={"pruning": pruning}))
        with output.waiting("Asking, in turns"):
            shown = ask(chosen, page, each["question"], each["answer"], rounds=arguments.rounds)
        print("\n".join([f"{number}. {shown.question}", *(f"   {line}" for line in lines(shown)), ""]))
    print(
        f"Milliseconds are medians of {arguments.rounds} rounds in turns on {torch.get_num_threads()} "
        "thread(s), from the opened picture to the answer, with nothing known from a round before."
    )


def ask(engine: SGLEngine, page: Path, question: str, truth: str, *, rounds: int) -> Shown:
    """One question to the pair and to the large model alone, in turns."""
    from PIL import Image

    from sgl_engine.evaluation.records import DataRow
    from sgl_engine.evaluation.systems import alone

    with Image.open(page) as opened:
        request = Request.ask(question, opened.convert("RGB"))
    row = DataRow(index=0, id="", kind="", metric="exact", question=question, answers=(truth,))
    config = engine.config.without_reuse()
    cold = engine.with_config(config)
    ours, theirs = [], []
    for number in range(1 + rounds):  # the first round warms up
        started = time.perf_counter()
        response = cold.run(request)
        ms = 1e3 * (time.perf_counter() - started)
        large = alone(engine.large, request, row, config, config.large_pictures)
        if number:
            ours.append(ms)
            theirs.append(large.ms or 0.0)
    return Shown(question, truth, response.text, response.report, median(ours), large, median(theirs))


def lines(shown: Shown) -> list[str]:
    """What happened, for people."""
    report, alone = shown.report, shown.alone
    verdict = "right" if shown.answer == shown.truth else f"WRONG: the page says {shown.truth}"
    tera = report.small_tflops + report.large_tflops
    return [
        f"{output.printable(shown.answer)}  ({verdict}; {output.route(report)})",
        _decision(report, shown.answer),
        (
            f"time  {shown.ms:.0f} ms, {shown.ms / shown.alone_ms:.2f} of the large model alone "
            f"({shown.alone_ms:.0f} ms)"
        ),
        (
            f"cost  {output.flops(tera)}, {tera / alone.tflops:.2f} of the large model alone "
            f"({output.flops(alone.tflops)}), which says: {output.printable(alone.text)}"
        ),
    ]


def _decision(report: RunReport, answer: str) -> str:
    small = (
        f"the small model says {output.printable(report.small_answer or answer)}, score {report.score:.2f}"
    )
    if not report.escalated:
        return f"{small}, at least {report.threshold:g}: the large model is not asked"
    agreed = "agrees" if report.large_agreed else "overrules it"
    seen = f"{report.kept_visual_tokens} of {report.visual_tokens} visual tokens"
    if report.kept_tiles is not None and report.kept_tiles != report.tiles:
        seen += f" in {report.kept_tiles} of {report.tiles} tiles"
    return f"{small}, below {report.threshold:g}: the large one, which is given {seen}, {agreed}"
