"""What ``sgl bench`` takes on its command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_engine import PRESETS, ExitConfig
from sgl_engine.cli import options
from sgl_engine.cli.bench import paper

HELD_OUT = 200
"""Questions about held-out pages, where nobody says how many."""
HELD_OUT_TOKENS = 128
"""Of their answers: the longest transcription has 119; a pruned model that repeats itself goes to the end."""
_POINTS = "64%,35%,9%"
_NAMES = ", ".join(PRESETS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    data = parser.add_argument_group("what is asked")
    data.add_argument(
        "--data",
        metavar="FILE.jsonl",
        type=lambda name: None if name == options.GENERATED else options.path(name),
        help=f'your questions, or "{options.GENERATED}": about held-out pages of the bundled pair (default)',
    )
    data.add_argument(
        "--questions",
        metavar="N",
        type=options.count,
        help=f"only the first N (default: all of FILE.jsonl; {HELD_OUT} about held-out pages, and for every "
        f"ten of them a transcription besides)",
    )
    data.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=options.count,
        help=f"longest answer, in tokens (default: the engine's; {HELD_OUT_TOKENS} for held-out pages)",
    )
    paper.add_arguments(parser)
    options.add_models(parser)
    _add_systems(parser)
    _add_running(parser)
    _add_output(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback when the engine fails")


def _add_systems(parser: argparse.ArgumentParser) -> None:
    systems = parser.add_argument_group("who answers")
    systems.add_argument(
        "--retention",
        metavar="P,...",
        type=options.points,
        default=_POINTS,
        help=f"operating points: {_NAMES}, or F:R, which keeps the fraction R of the visual tokens from the "
        f"fraction F of the layers on; with +N behind it, in the tiles of the N most important tokens, "
        f"and with -neutral at the end, as with --neutral (default: {_POINTS})".replace("%", "%%"),
    )
    systems.add_argument(
        "--cascade-at", metavar="P", help="the cascade's operating point (default: 35%%, or the first one)"
    )
    systems.add_argument(
        "--threshold",
        metavar="S",
        type=options.fraction,
        default=ExitConfig().threshold,
        help="the cascade that tables single out exits at this score (default: %(default)s)",
    )
    systems.add_argument(
        "--rankers",
        metavar="NAME,...",
        help="rankings of visual tokens to compare: names, baselines, all or none (default: baselines; none "
        "of the paper's benchmarks)",
    )
    systems.add_argument(
        "--compare-on",
        metavar="N",
        type=options.count,
        help="rankers and studies, which take most of the time, take part in the first N questions only "
        "(default: all)",
    )
    systems.add_argument(
        "--seed",
        metavar="N",
        type=options.whole,
        default=0,
        help="of what is drawn by lot (default: %(default)s)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("how it runs")
    running.add_argument(
        "--side-by-side",
        metavar="N",
        type=options.count,
        default=32,
        help="passes of rankers that run at once at most: fewer need less memory (default: %(default)s)",
    )
    running.add_argument(
        "--processes",
        metavar="N",
        type=options.count,
        default=1,
        help="share the questions among N processes with models of their own, on one thread each, which "
        "compete for the machine: times are those of such a run (default: %(default)s)",
    )
    running.add_argument(
        "--threads", metavar="N", type=options.count, help="of each process (default: torch's; 1 of several)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out",
        metavar="DIR",
        type=options.path,
        default=Path("sgl-bench"),
        help="folder of records and results; a run that it holds goes on (default: %(default)s)",
    )
    results.add_argument("--overwrite", action="store_true", help="begin anew: what DIR holds is thrown away")
    results.add_argument(
        "--bootstrap",
        metavar="N",
        type=options.count,
        default=2000,
        help="resamples that intervals are made of (default: %(default)s)",
    )
