"""``sgl decide``: typed questions about pictures, with probabilities."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from rich.console import Console
from rich.progress import track

from sgl_engine import (
    ConfigError,
    EngineConfig,
    ImagePart,
    IncompatiblePairError,
    ProcessorError,
    RequestError,
)
from sgl_engine.cli import options, output
from sgl_engine.cli.decide.pictures import Found, digest, find_pictures
from sgl_engine.cli.decide.questions import read_questions
from sgl_engine.cli.decide.rows import Row, RowFile
from sgl_engine.cli.decide.table import print_table
from sgl_engine.decisions import BoxWay, DecisionConfig, DecisionQuestion, LabelWay
from sgl_engine.demo import WEIGHTS

if TYPE_CHECKING:
    from sgl_engine import SGLEngine

HELP = "answer typed questions about pictures"
DESCRIPTION = (
    "Answers the questions of a file about every picture: yes or no, which, how much, where, with "
    "probabilities. Prints a table, or JSON lines; --out keeps the lines, and a run that was cut short goes "
    "on. Pictures that cannot be used are named, and the exit code is 2 then."
)
EXAMPLES = """examples:
  sgl decide receipt.png scans/ --questions questions.json --out rows.jsonl
  sgl decide https://example.com/street.jpg --questions questions.json --json

questions.json:
  {"legible": {"type": "yes_no", "instructions": "Is the text legible?"},
   "kind":    {"type": "choice", "instructions": "What is it?", "choices": ["receipt", "chart", "scene"]},
   "quality": {"type": "score", "instructions": "How good is it?", "levels": ["poor", "fair", "good"]},
   "total":   {"type": "box", "instructions": "the total"}}"""
SOME_FAILED: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "pictures",
        metavar="PICTURE",
        nargs="+",
        help="a file, a folder, a https: or data: URL, or - for bytes on standard input",
    )
    parser.add_argument(
        "--questions", metavar="JSON", type=options.path, required=True, help="file of questions (see below)"
    )
    parser.add_argument(
        "--out", metavar="JSONL", type=options.path, help="add a line for each picture; those there are kept"
    )
    parser.add_argument("--json", action="store_true", help="print the lines instead of a table")
    asking = parser.add_argument_group("how questions are put")
    asking.add_argument(
        "--form",
        choices=("instructed", "bare"),
        help="instructed lists what can be answered, for models that follow instructions; bare asks the "
        "question alone (default: bare for the bundled pair, else instructed)",
    )
    asking.add_argument(
        "--labels",
        choices=get_args(LabelWay),
        default=DecisionConfig().labels,
        help="how the labels of a choice are compared (default: %(default)s)",
    )
    asking.add_argument(
        "--permutations",
        metavar="N",
        type=_orders,
        default=1,
        help="orders in which the answers are listed; probabilities are averaged (default: %(default)s)",
    )
    asking.add_argument(
        "--boxes",
        choices=get_args(BoxWay),
        default=DecisionConfig().boxes,
        help="map: where the small model looked; generated: coordinates (default: %(default)s)",
    )
    options.add_engine(parser)


def run(arguments: argparse.Namespace) -> int | None:
    """Decide about every picture; returns the exit code.

    Raises:
        ConfigError: The questions, the rows or a setting cannot be used.
        ModelError: A model cannot be used.
    """
    questions, asked = read_questions(arguments.questions)
    config, calibration = _configured(arguments)
    form = arguments.form or ("bare" if arguments.small is None else "instructed")
    decisions = DecisionConfig(
        form=form,
        labels=arguments.labels,
        permutations=arguments.permutations,
        boxes=arguments.boxes,
        calibration=calibration,
        risk=arguments.risk,
    )
    file = RowFile(arguments.out)
    file.read()
    for line in file.bad:
        output.say(f"Line {line.number} of {arguments.out} is no row, and is left as it is: {line.problem}.")
    job = _Job(arguments, questions, config, decisions, _signature(arguments, asked, config, decisions))
    rows, known = job.run(find_pictures(arguments.pictures), file)
    if not arguments.json:
        print_table(rows, questions)
    failed = [row for row in rows if row.error is not None]
    told = f"{len(rows)} pictures: {len(rows) - len(failed)} decided, {len(failed)} that cannot be used"
    output.say(f"{told}; {known} were known from {arguments.out}." if known else f"{told}.")
    return SOME_FAILED if failed else None


def _configured(arguments: argparse.Namespace) -> tuple[EngineConfig, Path | None]:
    """The engine's configuration, and the calibration, which here is one of decisions.

    Raises:
        ConfigError: As ``options.engine_config``; or a share is named, which is of answers.
    """
    config = options.engine_config(arguments)
    if arguments.share is not None:
        raise ConfigError(
            f"--share {arguments.share:g} is of a calibration of answers, and decisions have none.",
            remedy="Give --risk, which a calibration of decisions certifies.",
        )
    bare = config.model_copy(update={"exit": config.exit.uncalibrated()})
    return bare, config.exit.calibration


@dataclass
class _Job:
    """All that is the same for every picture; loads the models once one has to be asked."""

    arguments: argparse.Namespace
    questions: Mapping[str, DecisionQuestion]
    config: EngineConfig
    decisions: DecisionConfig
    asked: str
    _engine: SGLEngine | None = None

    def run(self, pictures: Sequence[Found], file: RowFile) -> tuple[list[Row], int]:
        """Makes a row for every picture; returns them, and how many were known."""
        console, rows, known = Console(stderr=True), [], 0
        shown = track(
            pictures, description="pictures", console=console, disable=not console.is_terminal, transient=True
        )
        with file.adding() as add:
            for picture in shown:
                row, is_known = self._row(picture, file)
                known += is_known
                if not is_known:
                    add(row)
                if row.error is not None:
                    output.say(f"{picture.name} cannot be used ({row.error.type}): {row.error.message}")
                if self.arguments.json:
                    print(row.model_dump_json(), flush=True)
                rows.append(row)
        return rows, known

    def _row(self, picture: Found, file: RowFile) -> tuple[Row, bool]:
        """The row of one picture, and whether it was there already."""
        known_by = None
        try:
            source = picture.read(self.config.limits)
            known_by = digest(source)
            if (row := file.find(picture.name, known_by, self.asked)) is not None:
                return row, True
            return self._decide(picture, source, known_by), False
        except (RequestError, IncompatiblePairError, ProcessorError) as error:
            # The last two are about the picture: one that both models tile differently, or do not take.
            return Row.of_error(picture.name, known_by, self.asked, error), False

    def _decide(self, picture: Found, source: bytes | str, known_by: str | None) -> Row:
        from sgl_engine.decisions import decide
        from sgl_engine.prompt import load_image

        image = load_image(source, self.config.limits)  # before any weights are loaded for it
        if self._engine is None:
            with output.waiting("Loading the models"):
                self._engine = options.load_engine(self.arguments, self.config)
        found = decide(self._engine, ImagePart(image), self.questions, self.decisions)
        return Row.of_decisions(picture.name, known_by, self.asked, found)


def _signature(
    arguments: argparse.Namespace, asked: str, config: EngineConfig, decisions: DecisionConfig
) -> str:
    """Stands for the questions, the models and every setting on which answers depend."""
    from sgl_engine.decisions import DecisionCalibration
    from sgl_engine.planning.files import calibration_bytes, model_identity

    pair = (arguments.small or WEIGHTS / "small", arguments.large or WEIGHTS / "large")
    models = (*map(model_identity, pair), arguments.dtype)
    settings = (config.exit.model_dump_json(), config.pruning.model_dump_json(), decisions.model_dump_json())
    path = decisions.calibration
    calibration = b"" if path is None else calibration_bytes(DecisionCalibration, path)
    return sha256(repr((asked, models, settings, calibration)).encode()).hexdigest()[:16]


def _orders(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 24:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 to 24")
    return int(value)
