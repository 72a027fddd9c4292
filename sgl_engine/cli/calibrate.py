"""``sgl calibrate``: an exit whose risk is bounded, on the caller's own pictures and pair."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from rich.console import Console
from rich.progress import track

from sgl_engine import PRESETS, ConfigError, EngineConfig, ExitConfig, GenerationConfig, PruningConfig
from sgl_engine.cli import options, output
from sgl_engine.exit import Agreement, Risk
from sgl_engine.prompt import at_home

if TYPE_CHECKING:
    from sgl_engine.calibration.build import Promise
    from sgl_engine.calibration.collection import Collector
    from sgl_engine.calibration.records import CalibrationRecord, RecordsHeader
    from sgl_engine.evaluation.dataset import Data

HELP = "bound what an early exit may lose"
DESCRIPTION = (
    "Asks both models every question of --data, and finds from which score on the small answer may be kept "
    "so that the risk stays within its target; with --retention auto, also how much of the picture the large "
    "model is to be shown. Writes a file for ExitConfig(calibration=...) and for --calibration. With "
    "--check, tells whether such a file still holds on new data: exit code 0 if it does, 3 if not."
)
DRIFTED: Final = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help='one {"image": ..., "question": ..., "answers": [...]} a line, answers optional; or '
        f'"{options.GENERATED}": questions about held-out pages of the bundled pair',
    )
    parser.add_argument(
        "--task",
        choices=("answer", "decision"),
        default="answer",
        help="what is calibrated: generated answers, or decisions (yes or no, choices, scores), each type by "
        f"itself, so far on --data {options.GENERATED} alone (default: %(default)s)",
    )
    parser.add_argument("--questions", metavar="N", type=options.count, help="at most so many (default: all)")
    parser.add_argument("--start", metavar="SEED", type=int, default=0, help="first generated question")
    parser.add_argument(
        "--out",
        metavar="JSON",
        type=options.path,
        default=Path("calibration.json"),
        help="the file (default: %(default)s)",
    )
    parser.add_argument(
        "--records",
        metavar="JSONL",
        type=options.path,
        help="what was asked already; a run that was cut short goes on (default: beside --out)",
    )
    parser.add_argument(
        "--check", metavar="JSON", type=options.path, help="calibration to be checked on --data"
    )
    parser.add_argument("--report", metavar="DIR", type=options.path, help="also write a page with figures")
    _add_promise(parser)
    _add_requests(parser)
    options.add_models(parser)
    options.add_pruning(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback when the engine fails")


def _add_promise(parser: argparse.ArgumentParser) -> None:
    promise = parser.add_argument_group("what is promised")
    promise.add_argument(
        "--risk",
        choices=get_args(Risk),
        default="disagreement",
        help="what a final small answer may do: differ from the large one's (needs no answers), be wrong "
        "where the large one's is right, or be wrong (default: %(default)s)",
    )
    promise.add_argument(
        "--target",
        metavar="R",
        type=float,
        nargs="+",
        default=[0.02, 0.05],
        help="share of all questions at most (default: 0.02 0.05)",
    )
    promise.add_argument(
        "--share",
        metavar="S",
        type=float,
        nargs="+",
        default=[],
        help="also: share of all questions that may go to the large model at most (such as 0.3)",
    )
    promise.add_argument(
        "--confidence",
        metavar="C",
        type=float,
        default=0.9,
        help="with which the risk stays within the target (default: %(default)s)",
    )
    _add_fitting(promise)


def _add_fitting(promise: argparse._ArgumentGroup) -> None:
    promise.add_argument(
        "--method",
        choices=("isotonic", "logistic"),
        default="isotonic",
        help="how probabilities are made: of the score, or of all that the small pass measures "
        "(default: %(default)s)",
    )
    promise.add_argument(
        "--agreement",
        choices=get_args(Agreement),
        default="text",
        help="answers differ when their text does, but for case, space and a full stop, or when the row's "
        "metric says so (default: %(default)s)",
    )
    promise.add_argument("--seed", type=int, default=0, help="of the split into halves (default: 0)")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    requests = parser.add_argument_group("what requests are like, here and later")
    requests.add_argument("--max-new-tokens", metavar="N", type=options.count, help="longest answer")
    requests.add_argument("--system", metavar="TEXT", help="system prompt (default: none)")
    requests.add_argument("--scorer", metavar="NAME", help="the small model's score (default: the engine's)")
    requests.add_argument(
        "--no-large-alone",
        action="store_true",
        help="do not also time the large model alone: faster, but the page cannot say what is lost",
    )


def run(arguments: argparse.Namespace) -> int:
    """Collect, then calibrate or check; returns the exit code."""
    from sgl_engine.calibration.build import Promise
    from sgl_engine.calibration.collection import Collector
    from sgl_engine.evaluation.optional import check_extra
    from sgl_engine.exit import load_calibration

    if arguments.task == "decision":
        return _decisions(arguments)
    check_extra("scipy.stats", "sklearn.isotonic", *(["matplotlib.figure"] if arguments.report else []))
    promise = Promise(
        targets=tuple(arguments.target),
        shares=tuple(arguments.share),
        confidence_level=arguments.confidence,
        risk=arguments.risk,
        agreement=arguments.agreement,
        method=arguments.method,
        seed=arguments.seed,
    )
    checked = None if arguments.check is None else load_calibration(arguments.check)
    rungs = _rungs(arguments, checked)
    data = _data(arguments)
    config = _config(arguments) if checked is None else _as_calibrated(checked)
    with output.waiting("Loading the models"):
        engine = options.load_engine(arguments, config)
    collector = Collector(
        engine,
        arguments.system,
        alone=not (checked or arguments.no_large_alone),
        on_bad_line=lambda line: _say(
            f"Line {line.number} of the records is none, and its row is asked again: {line.problem}."
        ),
        rungs=rungs,
    )
    if checked is not None:
        return _check(arguments, checked, collector, data)
    records, failed = _collect(arguments, collector, data)
    _calibrate(arguments, promise, collector.header(), records, data, failed)
    return 0


def _decisions(arguments: argparse.Namespace) -> int:
    """Calibrates decisions of the bundled pair, type by type."""
    from sgl_engine.calibration.decisions import calibrate_decisions, collect_boxes, collect_decisions
    from sgl_engine.decisions import SCORED_TYPES
    from sgl_engine.demo.decisions import DEMO_DECISIONS, generated_decisions
    from sgl_engine.evaluation.optional import check_extra

    check_extra("scipy.stats", "sklearn.isotonic")
    if arguments.data != options.GENERATED or arguments.check is not None:
        raise ConfigError(
            f"Decisions are calibrated on --data {options.GENERATED} alone, and not checked.",
            remedy="For data of your own, call collect_decisions of sgl_engine.calibration.decisions.",
        )
    with output.waiting("Loading the models"):
        engine = options.load_engine(arguments, _config(arguments))
    count = arguments.questions or 400
    records = {}
    for kind in SCORED_TYPES:
        cases = generated_decisions(kind, count, start=arguments.start)
        shown = track(cases, description=kind, total=count, console=Console(stderr=True))
        records[kind] = collect_decisions(engine, shown, DEMO_DECISIONS)
    cases = generated_decisions("box", count, start=arguments.start)
    shown = track(cases, description="box", total=count, console=Console(stderr=True))
    made = calibrate_decisions(
        engine,
        records,
        DEMO_DECISIONS,
        targets=arguments.target,
        confidence_level=arguments.confidence,
        boxes=collect_boxes(engine, shown, DEMO_DECISIONS),
    )
    made.save(arguments.out)
    print(output.printable(made.describe()))
    print(f"wrote {arguments.out} (calibration {made.id})")
    return 0


def _data(arguments: argparse.Namespace) -> Data:
    from sgl_engine.evaluation.dataset import HeldOut, JsonLines

    if arguments.data == options.GENERATED:
        return HeldOut(arguments.questions or 2000, arguments.start)
    data = JsonLines.read(at_home(arguments.data), arguments.questions, answers="optional")
    for line in data.bad[:5]:
        _say(f"Line {line.number} of {arguments.data} is left out: {line.problem}.")
    if len(data.bad) > 5:
        _say(f"{len(data.bad) - 5} more lines are left out.")
    return data


def _rungs(arguments: argparse.Namespace, checked: Any) -> dict[str, PruningConfig]:
    """What the calibration may choose among, the cheapest first; nothing where --retention says one point."""
    from sgl_engine.calibration.ways import LADDER

    if checked is not None:
        return {rung.name: rung.pruning for rung in checked.rungs}
    if arguments.retention != "auto":
        return {}
    how = {"tiles": arguments.tiles, "neutral": arguments.neutral}
    return {name: PruningConfig(**{**point.model_dump(), **how}) for name, point in LADDER.items()}


def _config(arguments: argparse.Namespace) -> EngineConfig:
    generation = GenerationConfig()
    if arguments.max_new_tokens is not None:
        generation = GenerationConfig(max_new_tokens=arguments.max_new_tokens)
    pruning = options.pruning_config(arguments)
    return EngineConfig(
        pruning=PRESETS["100%"] if pruning.auto else pruning,  # there is no calibration yet
        exit=ExitConfig(scorer=arguments.scorer),
        generation=generation,
    )


def _as_calibrated(calibration: Any) -> EngineConfig:
    """The settings of a calibration: nothing else could be compared with it."""
    binding = calibration.binding
    return EngineConfig(
        pruning=PRESETS["100%"] if calibration.rungs else binding.pruning,
        exit=ExitConfig(
            scorer=binding.scorer,
            consistency_keep_ratio=binding.consistency_keep_ratio,
            empty_answers=binding.empty_answers,
        ),
        generation=calibration.conditions.generation,
    )


def _collect(
    arguments: argparse.Namespace, collector: Collector, data: Data
) -> tuple[list[CalibrationRecord], int]:
    """The records of the data, and how many rows have none."""
    from sgl_engine.calibration.records import CalibrationRecord

    # Beside the file that they are for; a check must not mix with what the calibration was made from.
    beside, kind = (arguments.out, "records") if arguments.check is None else (arguments.check, "check")
    path = arguments.records or beside.with_name(f"{beside.stem}.{kind}.jsonl")
    console = Console(stderr=True)
    bar = track(
        collector.collect(data, path),
        description="questions",
        total=len(data),
        console=console,
        disable=not console.is_terminal,
    )
    records: dict[str, CalibrationRecord] = {}
    failures: dict[str, str] = {}
    for outcome in bar:
        if isinstance(outcome, CalibrationRecord):
            records[outcome.key] = outcome
        elif outcome.key not in failures:
            failures[outcome.key] = outcome.error
            _say(f"{outcome.key} cannot be answered: {outcome.error}.")
    _say(f"{len(records)} records in {path}, {len(failures)} rows without one.")
    return list(records.values()), len(failures)


def _calibrate(
    arguments: argparse.Namespace,
    promise: Promise,
    header: RecordsHeader,
    records: Sequence[CalibrationRecord],
    data: Data,
    failed: int,
) -> None:
    from sgl_engine.calibration.build import calibrate
    from sgl_engine.calibration.collection import observed_conditions

    calibration = calibrate(
        records,
        promise,
        binding=header.binding,
        conditions=observed_conditions(header, records),
        data=data.name,
        failed=failed + len(data.bad),
        rungs=header.rungs,
    )
    calibration.save(arguments.out)
    print(output.printable(calibration.describe()))
    print(f"wrote {arguments.out} (calibration {calibration.id})")
    if arguments.report is not None:
        from sgl_engine.calibration.page import write_page

        print(f"wrote {write_page(calibration, records, arguments.report)}")


def _check(arguments: argparse.Namespace, checked: Any, collector: Collector, data: Data) -> int:
    from sgl_engine.calibration.drift import check_drift

    header = collector.header()
    differences = checked.differences(header.binding)
    if header.conditions.system != checked.conditions.system:
        differences.append("the system prompt is another one")
    if differences:
        raise ConfigError(
            f"The calibration {arguments.check} was made for something else: {'; '.join(differences)}.",
            remedy="Check it with the pair and the system prompt that it was made with.",
        )
    records, _ = _collect(arguments, collector, data)
    drift = check_drift(checked, records)
    print(drift.describe())
    return 0 if drift.holds else DRIFTED


def _say(message: str) -> None:
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(output.printable(message))
