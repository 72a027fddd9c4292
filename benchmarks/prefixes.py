"""What a kept prefix costs a first question about a picture, and saves every further one, by its length.

    python -m benchmarks.prefixes                    # the bundled pair, and models of 1, 14 and 190 million

Processor time of this process, on one thread: other work on the machine does not count. A round takes a new
picture, makes its features known, and asks about it three times: without prefixes, with them for the first
time ("kept": two forwards in place of one), and with them again ("known").
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.shapes import PAIRS, Decoder, Shape, Tower, build, picture, processor
from sgl_engine import VLM, EngineConfig, Request, SGLEngine
from sgl_engine.config import ReuseConfig
from sgl_engine.decoding import AnswerTask
from sgl_engine.passes import run_small_pass

WITHOUT = ReuseConfig(prefixes=False)
WITH = ReuseConfig(min_prefix_tokens=1)
SHAPES = {
    "1 million": Shape("internvl", Decoder(3, 160, 4, 2, 320, 512), Tower(2, 96, 2, 192)),
    "14 million": Shape("internvl", Decoder(12, 288, 6, 2, 768, 512), Tower(4, 128, 2, 256)),
    "190 million": PAIRS["cpu"].small,
}
BUNDLED = "bundled pair"
TOKENS = (16, 36, 64, 100, 144, 196, 256)

Ask = Callable[[int, str, ReuseConfig], object]
"""Number of a picture, a question, what is kept."""


def of_shape(name: str, tokens: int) -> Ask:
    """The small model's pass of a model with random weights: answer of one token, map and score."""
    import torch

    shape = replace(SHAPES[name], tile_tokens=tokens)
    vlm = VLM(build(shape, dtype=torch.float32), processor(shape, tokens), name=name)

    def ask(number: int, question: str, reuse: ReuseConfig) -> object:
        prompt = vlm.encode(Request.ask(question, picture(shape, tokens, number)), reuse=reuse)
        return run_small_pass(vlm, AnswerTask(prompt, 1), reuse=reuse)

    return ask


def of_bundled(route: Any) -> Ask:
    """A request to the bundled pair, from the picture's bytes to the report."""
    from PIL import Image

    from sgl_engine.demo import demo_engine
    from sgl_engine.demo.pages import heldout_pages

    engine = demo_engine()
    config = engine.config.escalating(route)

    def ask(number: int, question: str, reuse: ReuseConfig) -> object:
        pair: SGLEngine = engine.with_config(EngineConfig(**{**dict(config), "reuse": reuse}))
        [(page, _)] = heldout_pages(1, start=number)
        return pair.run(Request.ask(question, Image.fromarray(page.pixels), max_new_tokens=4))

    return ask


def measure(ask: Ask, rounds: int) -> tuple[float, float, float]:
    """Milliseconds of processor time: without, kept, known; medians."""
    taken: list[tuple[float, ...]] = []
    for number in range(rounds + 1):
        ask(number, "What is it?", WITHOUT)
        times = []
        # The same number of tokens each, and no two alike.
        for question, reuse in (("Who is it?", WITHOUT), ("Why is it?", WITH), ("When is it", WITH)):
            began = time.process_time()
            ask(number, question, reuse)
            times.append(1e3 * (time.process_time() - began))
        taken.append(tuple(times))
    return tuple(median(column) for column in zip(*taken[1:], strict=True))  # type: ignore[return-value]


def rows(
    models: Sequence[str], tokens: Sequence[int], rounds: int
) -> Iterator[tuple[str, int, tuple[float, float, float]]]:
    """What is measured: its name, visual tokens, times."""
    for name in models:
        if name == BUNDLED:
            for route, ends in (("never", "early exit"), ("always", "escalated")):
                yield f"{name}, {ends}", 144, measure(of_bundled(route), rounds)
            continue
        for count in tokens:
            yield name, count, measure(of_shape(name, count), rounds)


def main() -> None:
    """Prints a table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", nargs="+", choices=[BUNDLED, *SHAPES], default=[BUNDLED, *SHAPES])
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="square numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | visual tokens | without, ms | kept | known | a first question pays | a further one saves |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, tokens, (without, kept, known) in rows(options.models, options.tokens, options.rounds):
        pays, saves = kept / without - 1, 1 - known / without
        print(
            f"| {name} | {tokens} | {without:.1f} | {kept:.1f} | {known:.1f} | {pays:+.0%} | {saves:+.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
