"""``sgl check``: what a pair would do and need, before its weights are downloaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgl_engine.cli import options, output
from sgl_engine.cli.check_words import cascade_table, model_rows, placement_rows, remarks

if TYPE_CHECKING:
    from sgl_engine import PairCheck

HELP = "what a pair needs and saves, before its weights are downloaded"
DESCRIPTION = (
    "Reads the small files of two models (configuration, processor, tokenizer, template), from folders or "
    "from the hub, and counts: memory, visual tokens, operations. No weights are read. "
    "Exit code 2: they do not run as a pair."
)
EXAMPLES = """examples:
  sgl check OpenGVLab/InternVL3-1B-hf OpenGVLab/InternVL3-8B-hf
  sgl check ./small ./large --page 800x600 --json
"""
NOT_A_PAIR = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("small", metavar="SMALL", help="folder or hub id of the small model")
    parser.add_argument("large", metavar="LARGE", help="folder or hub id of the large model")
    parser.add_argument(
        "--page",
        metavar="WxH",
        type=_pixels,
        help="size in pixels of the page that is asked about (default: A4 at 150 dpi, 1240x1754)",
    )
    parser.add_argument("--question", metavar="TEXT", help="what is asked about it")
    parser.add_argument(
        "--answer-tokens", metavar="N", type=options.count, help="length of an answer (default: 32)"
    )
    for model in ("small", "large"):
        parser.add_argument(
            f"--{model}-revision", metavar="REV", help=f"branch, tag or commit of the {model} model"
        )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the models"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument("--debug", action="store_true", help="show the traceback when the check fails")


def run(arguments: argparse.Namespace) -> int | None:
    """Check, and print what was found."""
    options.load_quietly()
    from sgl_engine import check_pair

    given = {
        name: value
        for name in ("page", "question", "answer_tokens")
        if (value := getattr(arguments, name)) is not None
    }
    with output.waiting("Reading the models' small files"):
        found = check_pair(
            arguments.small,
            arguments.large,
            revisions=(arguments.small_revision, arguments.large_revision),
            trust_remote_code=arguments.trust_remote_code,
            **given,
        )
    if arguments.json:
        print(found.model_dump_json(indent=2))
    else:
        show(found, Console(highlight=False))
    return None if found.runs else NOT_A_PAIR


def show(found: PairCheck, console: Console) -> None:
    """Print the models side by side, then what they are as a pair."""
    width, height = found.page
    models = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in (f"page of {width} x {height}", "small", "large"):
        models.add_column(name, style="dim" if name.startswith("page") else None, overflow="fold")
    for label, small, large in model_rows(found):
        models.add_row(label, Text(small), Text(large))
    console.print(models)
    for line in remarks(found):
        console.print(Text(line))
    if found.cascade is not None:
        console.print()
        console.print(cascade_table(found.cascade))
    if found.placement is not None:
        console.print()
        for label, value in placement_rows(found.placement):
            console.print(Text(f"{label}: {value}"))
    if found.python is not None:
        console.print()
        console.print(Text(found.python), soft_wrap=True)


def _pixels(value: str) -> tuple[int, int]:
    width, _, height = value.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{value!r} is not WIDTHxHEIGHT in pixels, such as 1240x1754")
    return int(width), int(height)
