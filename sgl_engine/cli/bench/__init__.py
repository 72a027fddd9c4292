"""``sgl bench``: what the cascade costs and loses, on your pictures and your pair."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sgl_engine import ConfigError, EngineConfig, ExitConfig, GenerationConfig
from sgl_engine.cli import options, output
from sgl_engine.cli.bench import paper
from sgl_engine.cli.bench.arguments import HELD_OUT, HELD_OUT_TOKENS, add_arguments

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "add_arguments", "run"]

if TYPE_CHECKING:
    from sgl_engine import SGLEngine
    from sgl_engine.evaluation.dataset import Data
    from sgl_engine.evaluation.records import BenchRecord
    from sgl_engine.evaluation.report import Report
    from sgl_engine.evaluation.runner import Runner
    from sgl_engine.evaluation.store import Store
    from sgl_engine.evaluation.systems import Systems

HELP = "measure what the cascade costs and loses"
DESCRIPTION = """\
Asks both models alone, the guided large model, the cascade and rivals the same questions, and compares
accuracy, operations and time. Stop it at any time: the same command goes on where it stopped, and with a
larger --questions it asks more. Writes results.md, results.json, results.csv and figures."""
EXAMPLES = """\
a file of questions has one JSON object a line; paths are relative to the file:
  {"image": "page.png", "question": "How much is the tax?", "answers": ["1.20"], "metric": "anls"}
  metric: exact (default), vqa_score, anls, relaxed, ...; also: id, and kind, by which results are broken down

examples:
  sgl bench --questions 500 --out runs/bench
  sgl bench --questions 2000 --compare-on 200 --processes 2 --out runs/bench
  sgl bench --data questions.jsonl --small OpenGVLab/InternVL3-1B-hf --large OpenGVLab/InternVL3-8B-hf
  sgl bench --rankers small-guided,random --retention 35%,9%,0:0.09
  sgl bench --suite paper --from benchmarks/ --small ... --large ...
"""
_PAGE = 120  # columns, where nobody's terminal says how many there are


def run(arguments: argparse.Namespace) -> None:
    """Measure, keep, report.

    Raises:
        ConfigError: The data, a setting or the folder cannot be used.
        ModelError: A model cannot be used.
        KeyboardInterrupt: It was stopped; what was done is kept.
    """
    from sgl_engine.evaluation.optional import check_extra
    from sgl_engine.evaluation.paper.dataset import PaperData
    from sgl_engine.evaluation.runner import Runner, manifest
    from sgl_engine.evaluation.store import Store

    check_extra("sklearn.metrics", "matplotlib.figure", "rapidfuzz.distance")
    point = _cascade_point(arguments)
    engine, data, systems = begin(arguments)
    store = Store(arguments.out, manifest(engine, data, systems), overwrite=arguments.overwrite)
    if isinstance(data, PaperData):
        paper.warn(data)
    else:
        for line in data.bad:
            _say(f"line {line.number} is left out: {line.problem}")
    store.records()
    for line in store.bad:
        _say(f"line {line.number} of {store.folder}'s records is left out, and asked again: {line.problem}")
    _measure(arguments, Runner(engine, data, systems, store))
    if isinstance(data, PaperData):
        paper.report(arguments, data, store, point)
        return
    with output.waiting("Resampling and drawing"):
        report = _report(arguments, data, store, point)
        written = report.write(arguments.out)
    _show(report, written)


def begin(arguments: argparse.Namespace) -> tuple[SGLEngine, Data, Systems]:
    """Loads what the command line names; every process of a run begins so."""
    from sgl_engine.evaluation.systems import Systems

    data = _data(arguments)
    systems = Systems(
        points=arguments.retention,
        rankers=_rankers(arguments.rankers or ("baselines" if arguments.suite is None else "none")),
        seed=arguments.seed,
        max_rows=arguments.side_by_side,
        studies=arguments.suite is None,
        compared=_compared(arguments, data),
    )
    with output.waiting("Loading the models"):
        engine = options.load_engine(arguments, _config(arguments))
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    return engine, data, systems


def _data(arguments: argparse.Namespace) -> Data:
    from sgl_engine.evaluation.dataset import HeldOut, JsonLines

    if arguments.suite is not None:
        return paper.read(arguments)
    if arguments.data is None:
        return HeldOut(arguments.questions or HELD_OUT, transcriptions=True)
    return JsonLines.read(arguments.data, arguments.questions)


def _compared(arguments: argparse.Namespace, data: Data) -> int | None:
    """Turns a number of questions into a number of rows: transcriptions between them count besides."""
    from sgl_engine.evaluation.dataset import HeldOut

    questions: int | None = arguments.compare_on
    if questions is not None and arguments.suite is not None:
        raise ConfigError(
            f"--compare-on {questions} cannot be had with --suite: its scores are over all questions.",
            remedy="Leave it out; --tasks and --questions make a run of the paper's benchmarks shorter.",
        )
    if questions is None or not isinstance(data, HeldOut):
        return questions
    return len(replace(data, count=questions))


def _config(arguments: argparse.Namespace) -> EngineConfig:
    longest = arguments.max_new_tokens
    if longest is None:
        drawn = arguments.data is None and arguments.suite is None
        longest = HELD_OUT_TOKENS if drawn else GenerationConfig().max_new_tokens
    return EngineConfig(
        generation=GenerationConfig(max_new_tokens=longest), exit=ExitConfig(threshold=arguments.threshold)
    )


def _cascade_point(arguments: argparse.Namespace) -> str:
    points: Iterable[str] = arguments.retention
    wanted = arguments.cascade_at
    if wanted is None:
        return "35%" if "35%" in points else next(iter(points))
    if wanted not in points:
        raise ConfigError(
            f"--cascade-at {wanted} is none of the operating points {', '.join(points)}.",
            remedy="Name one of them, or add it to --retention.",
        )
    return str(wanted)


def _rankers(wanted: str) -> tuple[str, ...]:
    from sgl_engine.rankers import BASELINES, RANKERS

    groups = {"baselines": tuple(BASELINES), "all": tuple(RANKERS), "none": ()}
    if wanted in groups:
        return groups[wanted]
    names = tuple(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    unknown = [name for name in names if name not in RANKERS]
    if unknown or not names:
        raise ConfigError(
            f"There is no ranker {(unknown or [wanted])[0]!r}.",
            remedy=f"Use baselines, all, none, or some of {', '.join(RANKERS)}.",
        )
    return names


def _records(arguments: argparse.Namespace, runner: Runner) -> Iterator[BenchRecord]:
    if arguments.processes == 1:
        return runner.run()
    from sgl_engine.evaluation.runner import measured_by

    # Each process on one thread, if nothing else is said: more would contend for the same cores.
    alone = argparse.Namespace(**{**vars(arguments), "threads": arguments.threads or 1})
    return runner.keep(measured_by(partial(begin, alone), runner.pending(), arguments.processes))


def _measure(arguments: argparse.Namespace, runner: Runner) -> None:
    total, left = len(runner.data), len(runner.pending())
    console = Console(stderr=True)
    columns = (
        TextColumn("questions"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("questions", total=total, completed=total - left)
            for record in _records(arguments, runner):
                if record.error is not None:
                    progress.console.print(f"{record.row.id}: {record.error}", markup=False, highlight=False)
                progress.advance(bar)
    except KeyboardInterrupt:
        _say(
            f"stopped; {total - len(runner.pending())} of {total} questions are kept in {arguments.out}, "
            "and the same command goes on from there"
        )
        raise


def _report(arguments: argparse.Namespace, data: Data, store: Store, point: str) -> Report:
    from sgl_engine.evaluation.intervals import Bootstrap
    from sgl_engine.evaluation.report import make_report
    from sgl_engine.evaluation.summary import Summary

    records = [record for index, record in sorted(store.records().items()) if index < len(data)]
    return make_report(
        store.manifest,
        records,
        data.bad,
        lambda rows: Summary(
            rows=rows,
            draws=Bootstrap(len(rows), draws=arguments.bootstrap, seed=arguments.seed),
            point=point,
            threshold=arguments.threshold,
        ),
    )


def _show(report: Report, written: list[Path]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PAGE
    for table in report.tables()[:2]:
        console.print(table.rich())
    for line in report.notes():
        console.print(output.printable(line), markup=False)
    console.print()
    for path in written:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _say(text: str) -> None:
    print("sgl:", text, file=sys.stderr)
