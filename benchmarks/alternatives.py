"""The whole cascade against what else is done with the same weights, and what many requests at once cost.

    python -m benchmarks.alternatives --questions 60
    python -m benchmarks.alternatives --only submit

Held-out pages, the bundled pair, one thread, processor time, nothing known of any picture. Every page is
asked of all ways in turn, in another order each time: the engine at its defaults, transformers' ``generate``
of the large model, its assisted generation (the small model drafts) and its prompt lookup (n-grams of the
prompt do). "same" counts answers equal to plain ``generate``'s. "submit": so many requests handed over at
once, per request.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.bench_pair import plain_generate
from sgl_engine import EngineConfig, Request, SchedulerConfig, SGLEngine
from sgl_engine.demo import demo_engine
from sgl_engine.demo.drawing import Question
from sgl_engine.demo.pages import heldout_pages

_LOOK_UP_TOKENS = 3
_NEW_TOKENS = 256


@dataclass
class Way:
    """One way to answer, and what became of the questions.

    Attributes:
        name: For the table.
        answer: Makes the answer's text of a page and a question.
        seconds: Processor time of each.
        texts: Each answer.
    """

    name: str
    answer: Callable[[Image.Image, str], str]
    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def ways(engine: SGLEngine) -> list[Way]:
    """The engine first, then plain generation, then the others."""
    assistant = {"assistant_model": engine.small.model}
    look_up = {"prompt_lookup_num_tokens": _LOOK_UP_TOKENS}
    return [
        Way("the engine, defaults", lambda page, text: engine.run(Request.ask(text, page)).text),
        Way("large `generate`", lambda page, text: _generate(engine, text, page)),
        Way("assisted generation", lambda page, text: _generate(engine, text, page, **assistant)),
        Way("prompt lookup", lambda page, text: _generate(engine, text, page, **look_up)),
    ]


def _generate(engine: SGLEngine, text: str, page: Image.Image, **settings: Any) -> str:
    return plain_generate(engine.large, text, page, _NEW_TOKENS, **settings)().strip()


def ask_all(count: int, start: int) -> tuple[list[Way], list[str]]:
    """Asks every question of every way; returns them, and the right answers."""
    engine = demo_engine(EngineConfig().without_reuse())
    asked = list(pages(count + 2, start))
    found = ways(engine)
    for page, question in asked[:2]:  # a round that does not count
        for way in found:
            way.answer(page, question.text)
    for number, (page, question) in enumerate(asked[2:]):
        for way in [*found[number % len(found) :], *found[: number % len(found)]]:
            started = time.process_time()
            text = way.answer(page, question.text)
            way.seconds.append(time.process_time() - started)
            way.texts.append(text)
    return found, [question.answer for _, question in asked[2:]]


def pages(count: int, start: int) -> Iterator[tuple[Image.Image, Question]]:
    """Held-out pages, one question each."""
    for page, question in islice(heldout_pages(count, start=start), count):
        yield Image.fromarray(page.pixels), question


def submit_ms(count: int) -> float:
    """Milliseconds of processor time per request, where ``count`` are submitted at once."""
    scheduler = SchedulerConfig(max_queue=2 * count)
    page, question = next(pages(1, 0))
    with demo_engine(EngineConfig(scheduler=scheduler)) as engine:
        request = Request.ask(question.text, page)
        engine.run(request)  # the picture is known, so that what is left is the way through the engine
        started = time.process_time()
        futures = [engine.submit(request) for _ in range(count)]
        for future in futures:
            future.result()
        return 1e3 * (time.process_time() - started) / count


def table_of(found: list[Way], answers: list[str]) -> Table:
    """One row a way, against plain generation."""
    plain = found[1]
    table = Table("way", "time / large generate", "median, of single questions", "same", "right")
    for way in found:
        single = median(mine / other for mine, other in zip(way.seconds, plain.seconds, strict=True))
        same = sum(mine == other for mine, other in zip(way.texts, plain.texts, strict=True))
        right = sum(mine == answer for mine, answer in zip(way.texts, answers, strict=True))
        ratio = sum(way.seconds) / sum(plain.seconds)
        table.add_row(way.name, f"{ratio:.2f}", f"{single:.2f}", f"{same} of {len(answers)}", str(right))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--only", choices=["ways", "submit"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    if options.only != "submit":
        console.print(table_of(*ask_all(options.questions, options.start)))
    if options.only != "ways":
        submit_ms(10)
        few, many = submit_ms(100), submit_ms(1000)
        console.print(
            f"submitted at once, per request: 100 {few:.1f} ms, 1,000 {many:.1f} ms, {many / few:.2f} times"
        )


if __name__ == "__main__":
    main()
