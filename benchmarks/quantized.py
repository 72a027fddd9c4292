"""What eight-bit weights cost and save: memory, time, and how often the answer stays the same.

    python -m benchmarks.quantized
    python -m benchmarks.quantized --shape none --questions 60

Needs the extra "quantized". On the bundled pair, pages that this package draws are asked about: by the pair
as it is, with its large model in eight bits, and with both. At a shape (``benchmarks.shapes``), one model
with random weights reads a prompt and writes tokens, before and after its matrices are quantized. Processor
time, one thread. "same token": positions of the prompt after which the likeliest token is the same; "logits
off": how far they move, in standard deviations.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from PIL import Image

from benchmarks.shapes import PAIRS, build, picture, processor
from sgl_engine import VLM, EngineConfig, Request
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages import heldout_pages
from sgl_engine.model.quantization import quantized_layers, weight_bytes

_TOKENS = 1024
_STEPS = 16


def pair_rows(questions: int, seed: int) -> None:
    """The bundled pair: each way of loading it, on the same questions."""
    ways: dict[str, dict[str, Any]] = {
        "as it is": {},
        "large in int8": {"large_settings": {"quantization": "int8"}},
        "both in int8": {"quantization": "int8"},
    }
    asked = written_questions(questions, seed)
    expected: list[tuple[str, str]] = []
    print("| the pair | weights, MiB | CPU s | same answer | same route | right |")
    print("|---|---|---|---|---|---|")
    for name, settings in ways.items():
        engine = demo_engine(EngineConfig().without_reuse(), **settings)
        started = time.process_time()
        answers = [engine.run(request) for request, _ in asked]
        seconds = time.process_time() - started
        found = [(answer.text, answer.report.route) for answer in answers]
        expected = expected or found
        size = sum(weight_bytes(vlm.model) for vlm in (engine.small, engine.large)) / 2**20
        same = sum(one[0] == other[0] for one, other in zip(found, expected, strict=True))
        routes = sum(one[1] == other[1] for one, other in zip(found, expected, strict=True))
        right = sum(text == truth for (text, _), (_, truth) in zip(found, asked, strict=True))
        print(
            f"| {name} | {size:.1f} | {seconds:.1f} | {same} of {len(asked)} | {routes} | {right} |",
            flush=True,
        )


def written_questions(count: int, seed: int) -> list[tuple[Request, str]]:
    """Questions about drawn pages, with their answers."""
    return [
        (Request.ask(question.text, Image.fromarray(page.pixels)), question.answer)
        for page, question in heldout_pages(count, start=seed)
    ]


def shape_rows(name: str, dtype: torch.dtype, repeats: int) -> None:
    """One model of a shape: prefill and decoding, before and after."""
    shape = PAIRS[name].large
    vlm = VLM(build(shape, dtype=dtype), processor(shape, _TOKENS), name=name)
    prompt = vlm.encode(Request.ask("What is it?", picture(shape, _TOKENS, 0)))
    embeddings = vlm.embed(prompt)
    about = f"{PAIRS[name].note}, {str(dtype).removeprefix('torch.')}"
    print(f"\n| {about} | weights, MiB | tower s | prefill s | token ms | same token | logits off |")
    print("|---|---|---|---|---|---|---|")
    before: torch.Tensor | None = None
    for way in ("as it is", "int8"):
        if way == "int8":
            quantize(vlm.model)
        tower = clocked(lambda: vlm.embed(prompt), repeats)
        prefill = clocked(lambda: logits_of(vlm, prompt, embeddings, rows=1), repeats)
        step = clocked(lambda: written(vlm, prompt, embeddings), repeats) - prefill
        logits = logits_of(vlm, prompt, vlm.embed(prompt), rows=_TOKENS)
        before = logits if before is None else before
        same = float((logits.argmax(-1) == before.argmax(-1)).float().mean())
        off = float((logits - before).std() / before.std())
        size = weight_bytes(vlm.model) / 2**20
        print(
            f"| {way} | {size:,.0f} | {tower:.2f} | {prefill:.2f} | {1e3 * step / _STEPS:.0f} | {same:.1%} "
            f"| {off:.3f} |",
            flush=True,
        )
        gc.collect()


def quantize(model: Any) -> None:
    """The matrices that ``quantization="int8"`` quantizes, where they are."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    names = quantized_layers(model)
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in names)


def clocked(work: Callable[[], Any], repeats: int) -> float:
    """Median processor seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return median(seconds)


def logits_of(vlm: VLM, prompt: Any, embeddings: torch.Tensor, rows: int) -> torch.Tensor:
    """One pass over the prompt."""
    return vlm.forward(embeddings, prompt=prompt, first_position=0, cache=vlm.new_cache(), logit_rows=rows)


def written(vlm: VLM, prompt: Any, embeddings: torch.Tensor) -> None:
    """The prompt, and some tokens after it."""
    cache = vlm.new_cache()
    logits = vlm.forward(embeddings, prompt=prompt, first_position=0, cache=cache)
    for step in range(_STEPS):
        token = vlm.embed_tokens(logits[-1].argmax(-1, keepdim=True))
        logits = vlm.forward(token, prompt=prompt, first_position=len(prompt) + step, cache=cache)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=120, help="0 leaves the pair out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", choices=[*PAIRS, "none"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.questions:
        pair_rows(options.questions, options.seed)
    if options.shape != "none":
        shape_rows(options.shape, getattr(torch, options.dtype), options.repeats)


if __name__ == "__main__":
    main()
