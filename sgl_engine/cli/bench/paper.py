"""``sgl bench --suite paper``: the paper's eleven benchmarks, from local files or the hub, to its table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console

from sgl_engine import ConfigError, OpenAIModel
from sgl_engine.cli import output
from sgl_engine.prompt import at_home

if TYPE_CHECKING:
    from sgl_engine.evaluation.paper.dataset import PaperData
    from sgl_engine.evaluation.paper.judge import Judge
    from sgl_engine.evaluation.paper.scores import PaperScores
    from sgl_engine.evaluation.records import BenchRecord
    from sgl_engine.evaluation.store import Store

HUB = "hub"
JUDGE_KEY = "SGL_JUDGE_KEY"
"""Environment variable with the key of the judge's server."""
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which benchmarks, and where they lie."""
    group = parser.add_argument_group("the paper's benchmarks (docs/benchmarks.md)")
    group.add_argument("--suite", choices=("paper",), help="the benchmarks of the paper's main table")
    group.add_argument(
        "--from",
        dest="place",
        metavar="DIR",
        default=HUB,
        help=f"folder with a file or folder for each benchmark, or {HUB}: fetched (default: %(default)s)",
    )
    group.add_argument(
        "--tasks", metavar="NAME,...", help="only these benchmarks (default: all that DIR has)"
    )
    group.add_argument(
        "--boxes",
        choices=("fractions", "pixels", "thousandths"),
        default="fractions",
        help="how RefCOCO asks for boxes: as the models were trained to write them (default: %(default)s)",
    )
    group.add_argument(
        "--judge",
        metavar="MODEL@URL",
        help="who judges MM-Vet's answers, as gpt-4@https://api.openai.com/v1; "
        f"the key is {JUDGE_KEY} of the environment (default: nobody, and MM-Vet has no score)",
    )


def read(arguments: argparse.Namespace) -> PaperData:
    """Reads what is asked.

    Raises:
        ConfigError: A benchmark is unknown, not there, or cannot be read.
    """
    from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS, Coordinates
    from sgl_engine.evaluation.paper.dataset import PaperData, fetch_benchmarks, find_benchmarks

    assert arguments.boxes in get_args(Coordinates), "argparse offers no other"
    names = [name.strip() for name in (arguments.tasks or ",".join(BENCHMARKS)).split(",")]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ConfigError(
            f"There is no benchmark {unknown[0]!r}.", remedy=f"Use some of {', '.join(BENCHMARKS)}."
        )
    if arguments.place == HUB:
        places = fetch_benchmarks(names)
    else:
        places = find_benchmarks(at_home(arguments.place), names)
    return PaperData.read(
        places,
        limit=arguments.questions,
        coordinates=arguments.boxes,
        longest=arguments.max_new_tokens,
    )


def warn(data: PaperData) -> None:
    """Names what is not asked, on stderr."""
    for line in data.bad[:_SHOWN]:
        _say(f"left out: {line.problem}")
    if len(data.bad) > _SHOWN:
        _say(f"left out: {len(data.bad)} rows in all; the folder of results names each")
    for name, count in data.others.items():
        _say(f"{name}: {count} rows are no part of it, such as videos")
    if data.missing:
        _say(f"not found, and in no table: {', '.join(data.missing)}")


def report(arguments: argparse.Namespace, data: PaperData, store: Store, point: str) -> None:
    """Judges what has to be judged, prints the paper's table, and writes it."""
    records = [record for index, record in sorted(store.records().items()) if index < len(data)]
    judge = _judge(arguments)
    with output.waiting("Resampling"):
        scores = _scores(arguments, data, records, judge, point)
        notes = _notes(data, records, judge, scores)
        written = _write(arguments.out, scores, data, records, notes)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # one column for each benchmark
    console.print(scores.table().rich())
    for line in notes:
        console.print(output.printable(line), markup=False)
    for path in written:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _judge(arguments: argparse.Namespace) -> Judge | None:
    if arguments.judge is None:
        return None
    from sgl_engine.evaluation.paper.judge import Judge

    model, _, url = arguments.judge.partition("@")
    if not model or not url:
        raise ConfigError(
            f"--judge {arguments.judge} names no model and server.",
            remedy="Write it as gpt-4@https://api.openai.com/v1.",
        )
    key = os.environ.get(JUDGE_KEY, "").strip()  # secrets that are mounted as files end in a line feed
    return Judge(OpenAIModel(url, model, api_key=key), arguments.out)


def _scores(
    arguments: argparse.Namespace,
    data: PaperData,
    records: list[BenchRecord],
    judge: Judge | None,
    point: str,
) -> PaperScores:
    from sgl_engine.evaluation.metrics import JUDGED
    from sgl_engine.evaluation.paper.benchmarks import BENCHMARKS
    from sgl_engine.evaluation.paper.scores import BenchmarkScore, PaperScores, systems_of
    from sgl_engine.evaluation.records import Scored

    rows = Scored.of(records)
    if not rows:
        said = next((each.error for each in records if each.error), "none was run")
        raise ConfigError(
            f"No question has an answer; the first error: {said}",
            remedy="Mend what it names; the same command then goes on.",
        )
    rankers = list(rows[0].outcome.pruned)
    systems = systems_of(arguments.retention, rankers, cascade_at=point, threshold=arguments.threshold)
    if judge is not None:
        judged = [each for each in rows if each.row.metric == JUDGED]
        judge.judge((each.row, system(each.outcome)[0]) for each in judged for system in systems.values())
    asked = [row for row, _ in data.rows]
    scorings = [
        BenchmarkScore.of(
            benchmark,
            [row for row in asked if row.kind == name],
            [each for each in rows if each.row.kind == name],
            arguments.bootstrap,
        )
        for name, benchmark in BENCHMARKS.items()
        if any(each.row.kind == name for each in rows)
    ]
    return PaperScores(
        scorings,
        systems,
        lambda row, answer: judge.value(row, answer) if judge and row.metric == JUDGED else answer.value,
    )


def _notes(
    data: PaperData, records: list[BenchRecord], judge: Judge | None, scores: PaperScores
) -> list[str]:
    failed = [record for record in records if record.error is not None]
    lines = [*scores.notes()]
    if data.missing:
        lines.append(f"Not found: {', '.join(data.missing)}.")
    if failed:
        lines.append(f"Questions that failed, and are in no score: {len(failed)}.")
        lines += [f"- {each.row.id}: {each.error}" for each in failed[:_SHOWN]]
    if data.bad:
        lines.append(f"Rows that cannot be used: {len(data.bad)}.")
        lines += [f"- {each.problem}" for each in data.bad[:_SHOWN]]
    if judge is not None and judge.failed:
        lines.append(f"Answers that {judge.model.name} has not judged: {len(judge.failed)}.")
        lines += [f"- {name}: {problem}" for name, problem in list(judge.failed.items())[:_SHOWN]]
    return lines


def _write(
    folder: Path, scores: PaperScores, data: PaperData, records: list[BenchRecord], notes: list[str]
) -> list[Path]:
    found = {
        "data": data.identity,
        "systems": scores.json(),
        "missing": list(data.missing),
        "no_part": dict(data.others),
        "bad_rows": [each.problem for each in data.bad],
        "failed": {each.row.id: each.error for each in records if each.error is not None},
    }
    listed = "\n".join(line if line.startswith("-") else f"\n{line}" for line in notes)
    texts = {
        "paper.md": f"{scores.table().markdown()}\n{listed}\n\nData: {data.identity}.\n",
        "paper.json": json.dumps(found, indent=2, ensure_ascii=False) + "\n",
    }
    try:
        for name, text in texts.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}).", remedy="Name another folder."
        ) from error
    return [folder / name for name in texts]


def _say(text: str) -> None:
    print("sgl:", text, file=sys.stderr)
