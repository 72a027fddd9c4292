"""``sgl batch``: all rows of a file or folder, each answered by the small model or by the large one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sgl_engine import ConfigError, EngineConfig
from sgl_engine.cli import options, output

if TYPE_CHECKING:
    from sgl_engine.batch.forms import RowForm, Written
    from sgl_engine.batch.inputs import Rows
    from sgl_engine.batch.job import Job
    from sgl_engine.batch.output import RunFolder

HELP = "answer all rows of a file or folder"
DESCRIPTION = (
    "Answers every row of INPUT in order: the small model all of them, the large one the rest. A row that "
    "cannot be used gets an error and stops nothing; a run that was cut short goes on. The exit code is 2 "
    "where rows have failed."
)
EXAMPLES = """examples:
  sgl batch questions.jsonl --out run/
  sgl batch scans/ --question "How much is the total?" --out run/
  sgl batch requests.jsonl --out run/          # OpenAI's batch format, told by its custom_id
  sgl batch questions.parquet --out run/ --ray --actors 8,1

questions.jsonl, or the columns of questions.parquet:
  {"question": "How much is the total?", "image": "receipt.png"}
  {"question": "Which is newer?", "images": ["a.png", "https://example.com/b.jpg"], "id": "pair 7"}

run/rows.jsonl has a line for each row, run/reports.jsonl the report of each answer."""
SOME_FAILED: Final = 2
_EVERY_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "input", metavar="INPUT", type=options.path, help="a .jsonl or .parquet file, or a folder of pictures"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=options.path,
        required=True,
        help="where the rows go; a run there goes on",
    )
    parser.add_argument("--question", metavar="TEXT", help="what is asked of rows that have no question")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=options.count,
        help="longest answer, in tokens (default: the engine's); OpenAI's format says it itself",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        default="sgl",
        help="the pair's name in OpenAI's format; NAME:small and NAME:large are its models "
        "(default: %(default)s)",
    )
    cluster = parser.add_argument_group("on many machines (the extra cluster)")
    cluster.add_argument(
        "--ray", action="store_true", help="spread the rows by Ray Data; RAY_ADDRESS names a cluster"
    )
    cluster.add_argument(
        "--actors",
        metavar="S,L",
        type=_two,
        default=(1, 1),
        help="processes that hold the small and the large model (default: 1,1)",
    )
    cluster.add_argument(
        "--gpus", metavar="N", type=float, default=0.0, help="GPUs of each of them (default: none)"
    )
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int | None:
    """Answer; returns the exit code.

    Raises:
        ConfigError: The input, the folder or a setting cannot be used.
        ModelError: A model cannot be used.
        EngineError: The engine cannot go on; the run can, another time.
    """
    from sgl_engine.batch.inputs import open_rows
    from sgl_engine.batch.output import RunFolder

    config = options.engine_config(arguments)
    options.check_pair(arguments)
    rows = open_rows(arguments.input)
    form, job = _prepared(arguments, rows, config)
    with RunFolder(arguments.out, job, form) as folder:
        known = folder.done
        if known < len(rows):
            _answer(arguments, config, rows, form, folder)
        told = f"{folder.done} rows: {folder.done - folder.failed} answered, {folder.failed} failed"
        output.say(f"{told}; {known} were there already." if known else f"{told}.")
        return SOME_FAILED if folder.failed else None


def _prepared(arguments: argparse.Namespace, rows: Rows, config: EngineConfig) -> tuple[RowForm, Job]:
    """What the rows are taken for, and what of the run must not change."""
    from sgl_engine.batch.job import describe
    from sgl_engine.batch.openai import OpenAIForm, is_openai, repeated_ids
    from sgl_engine.batch.plain import PlainForm
    from sgl_engine.demo import WEIGHTS
    from sgl_engine.server import ServerSettings

    openai = is_openai(rows)
    if openai and (arguments.question or arguments.max_new_tokens):
        raise ConfigError(
            f"{arguments.input} is in OpenAI's format, whose requests say everything themselves.",
            remedy="Leave --question and --max-new-tokens out.",
        )
    job = describe(
        rows,
        form=OpenAIForm.name if openai else PlainForm.name,
        small=arguments.small or WEIGHTS / "small",
        large=arguments.large or WEIGHTS / "large",
        config=config,
        question=arguments.question,
        max_new_tokens=arguments.max_new_tokens,
        model_name=arguments.model_name,
        dtype=arguments.dtype,
    )
    name = sha256(repr(sorted(job.items())).encode()).hexdigest()[:12]
    if openai:
        settings = ServerSettings(model=arguments.model_name)
        return OpenAIForm(name, settings, repeated_ids(rows)), job
    return PlainForm(name, arguments.question, arguments.max_new_tokens), job


def _answer(
    arguments: argparse.Namespace, config: EngineConfig, rows: Rows, form: RowForm, folder: RunFolder
) -> None:
    """Answers what is left, and writes each row down."""
    with _answering(arguments, config, rows, form, folder.done) as written, _progress(rows, folder) as told:
        for row in written:
            folder.add(row)
            told(row)


@contextmanager
def _answering(
    arguments: argparse.Namespace, config: EngineConfig, rows: Rows, form: RowForm, start: int
) -> Iterator[Iterator[Written]]:
    """What is written about each row that is left, by one engine or by many."""
    if arguments.ray:
        from sgl_engine.batch.ray_data import Actors, answer_on_ray
        from sgl_engine.cluster import ClusterSettings

        small, large = options.model_sources(arguments)
        pair = ClusterSettings(small=small, large=large, engine=config)
        small_actors, large_actors = arguments.actors
        actors = Actors(small_actors, large_actors, arguments.gpus)
        yield answer_on_ray(pair, rows, form, start, actors)
        return
    from sgl_engine.batch.local import answer_rows

    with output.waiting("Loading the models"):
        engine = options.load_engine(arguments, config)
    try:
        yield answer_rows(engine, rows, form, start)
    finally:
        engine.close(wait=False)  # an interrupted run waits for nobody


@contextmanager
def _progress(rows: Rows, folder: RunFolder) -> Iterator[_Told]:
    """Shows on stderr how far a run is: a bar on a terminal, else a line now and then."""
    console = Console(stderr=True)
    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with bar:
        yield _Told(bar, len(rows), folder)


class _Told:
    """Counts what this run has answered."""

    def __init__(self, bar: Progress, total: int, folder: RunFolder) -> None:
        self._bar, self._total, self._folder = bar, total, folder
        self._task = bar.add_task("", total=total, completed=folder.done)
        self._asked = self._escalated = 0
        self._next_s = time.monotonic() + _EVERY_S

    def __call__(self, row: Written) -> None:
        """One more row."""
        self._asked, self._escalated = self._asked + 1, self._escalated + row.escalated
        shares = f"{self._escalated / self._asked:.0%} by the large model, {self._folder.failed} failed"
        self._bar.update(self._task, completed=self._folder.done, description=shares)
        if self._bar.disable and time.monotonic() >= self._next_s:
            output.say(f"{self._folder.done:,} of {self._total:,} rows, {shares}")
            self._next_s = time.monotonic() + _EVERY_S


def _two(value: str) -> tuple[int, int]:
    numbers = value.split(",")
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{value!r} is not two whole numbers, as 8,1")
    return options.count(numbers[0]), options.count(numbers[1])
