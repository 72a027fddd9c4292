"""All that needs a GPU, in one run of a few minutes; prints a block of Markdown for the docs.

    python -m benchmarks.gpu --output gpu.md
    python -m benchmarks.gpu --dry-run

Is every family exact in bfloat16, under SDPA and under flash attention? Does the bundled pair answer as on
a CPU, spread over devices and quantized too? What do the steps gain at 1B -> 8B, and does a training step
train? A part begins only where ``--seconds`` leave time for it, and what is not installed is named.
``--dry-run`` does the same on a CPU, with tiny models: the figures say nothing, but everything runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from benchmarks import latency
from benchmarks.gpu_pair import agreement, ask_pair, train_steps
from benchmarks.shapes import PAIRS, build, processor
from sgl_engine import VLM
from sgl_engine.errors import SGLError
from sgl_engine.families.tiny import TINY_FAMILIES
from sgl_engine.passes import check_exactness
from sgl_engine.testing import tiny_vlm

Row = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One question that the run answers.

    Attributes:
        title: Its heading.
        columns: Of its table.
        rows: What fills it.
        seconds: What it takes on a GPU, about.
    """

    title: str
    columns: Row
    rows: Callable[[argparse.Namespace], Iterator[Row]]
    seconds: int


def attentions(device: str) -> list[str]:
    """The implementations that can be run here."""
    found = ["sdpa"]
    if device == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        found.append("flash_attention_2")
    return found


def exactness(options: argparse.Namespace) -> Iterator[Row]:
    """Every family, and the shape of the latency table: the engine against the model's own forward."""
    for implementation in attentions(options.device):
        for family in options.families:
            vlm = tiny_vlm(family, size="large")
            yield family, implementation, outcome(vlm, implementation, options.device)
        shape = PAIRS[options.shapes].small
        vlm = VLM(
            build(shape, dtype=torch.bfloat16, device=options.device),
            processor(shape, shape.tile_tokens),
            name=options.shapes,
        )
        yield f"{options.shapes}, small", implementation, outcome(vlm, implementation, options.device)
    if "flash_attention_2" not in attentions(options.device):
        yield "all", "flash_attention_2", "not run: flash-attn is not installed, or there is no GPU"


def outcome(vlm: VLM, implementation: str, device: str) -> str:
    """Whether a model is captured and pruned exactly in bfloat16; what differs where it is not."""
    vlm.model.to(device, torch.bfloat16)
    vlm.model.set_attn_implementation(implementation)
    vlm.is_checked = False
    try:
        check_exactness(vlm)
    except SGLError as error:
        return error.problem
    return "exact"


def placed(options: argparse.Namespace) -> Iterator[Row]:
    """The bundled pair on the device, spread and quantized, against a CPU in float32."""
    expected = ask_pair(options.questions, device="cpu", dtype="float32")
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "float32": ("torch", {"device": options.device, "dtype": "float32"}),
        "bfloat16": ("torch", {"device": options.device, "dtype": "bfloat16"}),
        "device_map over two devices": (
            "accelerate",
            {"dtype": "float32", "large_settings": spread(options)},
        ),
        'quantization="int8"': (
            "torchao",
            {"device": options.device, "dtype": "bfloat16", "large_settings": {"quantization": "int8"}},
        ),
        "bitsandbytes, 8 bit": ("bitsandbytes", bits(8)),
        "bitsandbytes, 4 bit": ("bitsandbytes", bits(4)),
    }
    for name, (package, settings) in ways.items():
        if importlib.util.find_spec(package) is None:
            yield name, f"not run: {package} is not installed", "", ""
        elif package == "bitsandbytes" and options.device == "cpu":
            yield name, "not run: it needs a GPU", "", ""
        else:
            yield name, *agreement(expected, ask_pair(options.questions, **settings))


def spread(options: argparse.Namespace) -> dict[str, Any]:
    """The large model's tower in one place, its decoder in another."""
    other: Any = "cpu" if options.device == "cpu" else 1 if torch.cuda.device_count() > 1 else "cpu"
    first: Any = "disk" if options.device == "cpu" else 0
    parts = dict.fromkeys(("model.multi_modal_projector", "model.language_model", "lm_head"), other)
    return {
        "device_map": {"model.vision_tower": first, **parts},
        "model_kwargs": {"offload_folder": str(options.folder)},
    }


def bits(number: int) -> dict[str, Any]:
    """The large model in bitsandbytes' format of so many bits."""
    return {
        "dtype": "bfloat16",
        "small_settings": {"device": "cuda"},
        "large_settings": {"device_map": {"": 0}, "quantization_config": {f"load_in_{number}bit": True}},
    }


def gains(options: argparse.Namespace) -> Iterator[Row]:
    """``benchmarks.latency`` at realistic sizes."""
    given = (
        f"--device {options.device} --shapes {options.shapes} --tokens {options.tokens} --repeats "
        f"{options.repeats} --answer-tokens {options.answer_tokens} --dtype bfloat16 --only"
    ).split()
    timed = latency.parse([*given, *options.rows])
    for row in latency.compare(timed, Console(stderr=True)):
        low, high = row["spread"]
        yield (
            str(row["name"]),
            str(row["visual_tokens"]),
            f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
            row["target"] or "",
        )


def training(options: argparse.Namespace) -> Iterator[Row]:
    """Steps on one page: the loss has to fall."""
    for size in options.sizes:
        yield size, *train_steps(size, options.device, steps=options.steps)


PARTS = (
    Part("Exact in bfloat16", ("model", "attention", "outcome"), exactness, 60),
    Part(
        "The bundled pair, against a CPU in float32",
        ("large model", "same answers", "same route", "ms a question"),
        placed,
        120,
    ),
    Part("Gains", ("what", "visual tokens", "ratio (quartiles)", "target"), gains, 180),
    Part("Training", ("model", "loss before", "loss after", "ms a step"), training, 20),
)


def machine(options: argparse.Namespace) -> str:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    if options.device == "cuda":
        name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return (
        f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, shapes {options.shapes}"
    )


def run(options: argparse.Namespace) -> str:
    """All parts for which there is time, as Markdown."""
    started = time.perf_counter()
    lines = [
        f"Measured on {machine(options)}" + (" (a dry run: figures say nothing)." if options.dry_run else ".")
    ]
    for part in PARTS:
        began = time.perf_counter()
        if began - started + part.seconds > options.seconds:
            lines += ["", f"### {part.title}", "", "Not run: no time was left."]
            continue
        table = list(filled(part, options))
        lines += ["", f"### {part.title} ({time.perf_counter() - began:.0f} s)", "", *table]
    return "\n".join(lines) + "\n"


def filled(part: Part, options: argparse.Namespace) -> Iterator[str]:
    """The lines of its table; where it breaks off, the last one says why."""
    yield f"| {' | '.join(part.columns)} |"
    yield f"|{'---|' * len(part.columns)}"
    try:
        for row in part.rows(options):
            yield f"| {' | '.join(row)} |"
    except Exception as error:  # noqa: BLE001  # one part that fails must not cost the others on a lent machine
        traceback.print_exc()
        yield f"| broke off: {type(error).__name__}: {str(error).splitlines()[0][:200]} |"


DRY: Mapping[str, Any] = {
    "shapes": "tiny",
    "tokens": 16,
    "repeats": 1,
    "answer_tokens": 3,
    "questions": 1,
    "steps": 2,
    "families": ("internvl", "qwen2_5_vl"),
    "rows": ("capture", "early-exit"),
    "sizes": ("small",),
}
"""What a dry run does, so that it takes seconds."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny models")
    parser.add_argument("--shapes", choices=list(PAIRS), default="internvl3-1b-8b")
    parser.add_argument("--tokens", type=int, default=1024, help="visual tokens of a picture")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--questions", type=int, default=30, help="to the bundled pair")
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--seconds", type=float, default=450, help="no part begins that would end later")
    parser.add_argument("--folder", type=Path, default=Path("runs/offload"), help="for weights on disk")
    parser.add_argument("--output", type=Path, help="file that the block is written to")
    options = parser.parse_args(arguments)
    options.device = "cpu" if options.dry_run else "cuda"
    options.families, options.rows, options.sizes = TINY_FAMILIES, tuple(latency.ROWS), ("small", "large")
    if options.dry_run:
        vars(options).update(DRY)
    elif not torch.cuda.is_available():
        parser.error("there is no GPU that this torch can use; --dry-run needs none")
    return options


def main() -> None:
    """Run and print."""
    options = parse()
    block = run(options)
    print(block)
    if options.output:
        options.output.write_text(block)


if __name__ == "__main__":
    main()
