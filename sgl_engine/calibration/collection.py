"""Every question through both models, one line of records each; what is there already is not asked again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sgl_engine import (
    PRESETS,
    VLM,
    ConfigError,
    ImagePart,
    Message,
    PruningConfig,
    Request,
    Response,
    SGLEngine,
    pruning_preset,
)
from sgl_engine.calibration.records import (
    CalibrationRecord,
    Failure,
    RecordsHeader,
    RungOutcome,
    picture_pieces,
    read_records,
)
from sgl_engine.chat import ParsedAnswer
from sgl_engine.decoding import AnswerTask, agree, resolve
from sgl_engine.evaluation.dataset import Data, DataSample
from sgl_engine.evaluation.json_lines import BadLine, mend_end
from sgl_engine.evaluation.metrics import FEWEST_VQA_ANSWERS, METRICS
from sgl_engine.evaluation.records import RIGHT, DataRow
from sgl_engine.evaluation.systems import Once
from sgl_engine.exit import Conditions, bind, digest, system_hash
from sgl_engine.passes import SmallPassResult, run_large_pass
from sgl_engine.pruning import keep_everything
from sgl_engine.report import consistency_flops

if TYPE_CHECKING:
    from sgl_engine.decoding import Generation


class Asking:
    """Asks both models every question: no reuse, no other calibration; at several operating points."""

    def __init__(self, engine: SGLEngine, rungs: Mapping[str, PruningConfig]) -> None:
        leaving = engine.config.exit.uncalibrated().model_copy(
            update={"escalate": "always", "consistency": "always"}  # which parts count is found out later
        )
        config = engine.config.model_copy(update={"exit": leaving}).without_reuse()
        if rungs:
            config = config.model_copy(update={"pruning": PRESETS["100%"]})
        self._engine, self._config, self._rungs = engine, config, rungs
        self.small: SmallPassResult | None = None

    def both(self, request: Request) -> tuple[Response, dict[str, Response]]:
        """Asks the small model once, and the large one at every operating point.

        Returns:
            The response at the engine's own point, and those at the rungs, by name; what came of the small
            pass is in ``small`` until the next question.
        """
        engine, once = self._engine, Once(self._engine.small_pass)
        with SGLEngine(engine.small, engine.large, self._config, small_pass=once) as asked:
            response = asked.run(request)
            self.small = once.result
            points = {
                name: asked.with_config(self._config.model_copy(update={"pruning": pruning}))
                for name, pruning in self._rungs.items()
            }
            return response, {name: point.run(request) for name, point in points.items()}


@dataclass(frozen=True)
class Collector:
    """Asks both models.

    Attributes:
        engine: The pair; its exit configuration only says how to score.
        system: System prompt of every request; None is none.
        alone: Also run the large model alone, unpruned: what the cascade is an alternative to. Nothing of it
            enters the guarantee; without it, its accuracy and time are unknown.
        on_bad_line: Told of lines of the file of records that are none; their rows are asked again.
        rungs: Operating points at which the large model is asked besides, by name, the cheapest first
            (``ways.LADDER``). Where there are any, the engine itself shows it everything.
    """

    engine: SGLEngine
    system: str | None = None
    alone: bool = True
    on_bad_line: Callable[[BadLine], None] = lambda _: None
    rungs: Mapping[str, PruningConfig] = field(default_factory=dict)

    def collect(self, data: Data, path: Path) -> Iterator[CalibrationRecord | Failure]:
        """Yields the outcome of every row, in order: the one in the file, or a new one, which is appended.

        A row that cannot be answered is a Failure, never an exception; it is tried again at the next run.

        Args:
            data: What is asked.
            path: File of records; made where it does not exist.

        Raises:
            ConfigError: The file is of another pair, other settings or other requests, or cannot be written.
        """
        known, asking = self._open(path), Asking(self.engine, self.rungs)
        try:
            with path.open("a", encoding="utf-8") as lines:
                for index in range(len(data)):
                    sample = data[index]
                    key = _key(sample)
                    if key not in known:
                        known[key] = self._outcome(asking, sample)
                        lines.write(known[key].model_dump_json() + "\n")
                        lines.flush()
                    yield known[key]
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror or error}).", remedy="Make room, or name another."
            ) from error

    def header(self) -> RecordsHeader:
        """Describes what the records are tied to."""
        engine = self.engine
        conditions = Conditions(generation=engine.config.generation, system=system_hash(self.system))
        config = engine.config
        if self.rungs:  # what an engine says to which a calibration of these records belongs
            config = config.model_copy(update={"pruning": pruning_preset("auto")})
        binding = bind(engine.small, engine.large, config)
        return RecordsHeader(binding=binding, conditions=conditions, rungs=dict(self.rungs))

    def _open(self, path: Path) -> dict[str, CalibrationRecord | Failure]:
        """Reads what is known already, by key, or begins the file.

        Raises:
            ConfigError: The file is of something else, or cannot be written.
        """
        header = self.header()
        if not path.exists() or not path.stat().st_size:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(header.model_dump_json() + "\n", encoding="utf-8")
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be written ({error.strerror or error}).", remedy="Name another file."
                ) from error
            return {}
        _mend(path)
        found = read_records(path)
        differences = found.header.binding.differences(header.binding)
        differences += found.header.binding.lengths_differ(header.binding)
        if found.header.conditions != header.conditions:
            differences.append("the generation settings or the system prompt are others")
        if list(found.header.rungs.items()) != list(header.rungs.items()):
            differences.append(f"it has the rungs {', '.join(found.header.rungs) or 'none'}")
        if differences:
            raise ConfigError(
                f"The records in {path} are of something else: {'; '.join(differences)}.",
                remedy="Name a new file with --records, or use the settings of the old one.",
            )
        for line in found.bad:
            self.on_bad_line(line)
        return {record.key: record for record in found.records}

    def _outcome(self, asking: Asking, sample: DataSample) -> CalibrationRecord | Failure:
        try:
            return self._record(asking, sample)
        except Exception as error:  # noqa: BLE001 - one bad row never ends the run
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return Failure(key=_key(sample), error=reason)

    def _record(self, asking: Asking, sample: DataSample) -> CalibrationRecord:
        request = _request(sample, self.system)
        response, rungs = asking.both(request)
        report, row = response.report, sample.row
        alone, alone_ms = self._alone(request) if self.alone else (None, None)
        assert report.small_answer is not None
        if not math.isfinite(report.score):
            raise ValueError(f"the small answer's score is {report.score}")
        return CalibrationRecord(
            key=_key(sample),
            kind=row.kind,
            picture=_picture(sample),
            images=len(sample.images),
            score=report.score,
            parts={name: part for name, part in report.score_parts.items() if math.isfinite(part)},
            answer_tokens=report.small_output_tokens - report.small_reasoning_tokens,  # as is judged by
            small_answer=report.small_answer,
            large_answer=response.text,
            agreed=bool(report.large_agreed),
            agreed_by_metric=agree_by_metric(row.metric, report.small_answer, response.text),
            small_right=_right(row, report.small_answer),
            large_right=_right(row, response.text),
            alone_right=None if alone is None else _right(row, alone.text),
            small_tflops=report.small_tflops,
            large_tflops=report.large_tflops,
            alone_tflops=report.large_alone_tflops,
            small_ms=_model_ms(response, "_small"),
            large_ms=_model_ms(response, "_large"),
            alone_ms=alone_ms,
            consistency_tflops=_consistency_flops(self.engine.small, asking.small) / 1e12,
            consistency_ms=report.stage_ms.get("consistency_small", 0.0),
            seen={} if response.importance is None else response.importance.describe(),
            rungs={name: _rung(row, each, response) for name, each in rungs.items()},
        )

    def _alone(self, request: Request) -> tuple[Generation, float]:
        """Asks the large model alone; returns its answer, and the milliseconds that it took."""
        large, config, started = self.engine.large, self.engine.config, time.perf_counter()
        prompt = large.encode(request, config.limits, pictures=config.large_pictures)
        task = AnswerTask(prompt, *resolve(request, config.generation))
        result = run_large_pass(large, task, keep_everything(prompt))
        return result.generation, 1e3 * (time.perf_counter() - started)


def _rung(row: DataRow, response: Response, whole: Response) -> RungOutcome:
    """What the large model says at a rung, beside what it says when it is shown everything."""
    return RungOutcome(
        answer=response.text,
        agreed=agree(_parsed(response), _parsed(whole)),
        agreed_by_metric=agree_by_metric(row.metric, response.text, whole.text),
        right=_right(row, response.text),
        tflops=response.report.large_tflops,
        ms=_model_ms(response, "_large"),
    )


def _parsed(response: Response) -> ParsedAnswer:
    return ParsedAnswer(response.text, response.tool_calls, response.invalid_tool_calls)


def _mend(path: Path) -> None:
    try:
        mend_end(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read or written ({error.strerror or error}).", remedy="Name another file."
        ) from error


def observed_conditions(header: RecordsHeader, records: Sequence[CalibrationRecord]) -> Conditions:
    """Completes the header's conditions with how many pictures the requests had."""
    images = [record.images for record in records] or [0]
    return header.conditions.model_copy(update={"min_images": min(images), "max_images": max(images)})


def agree_by_metric(metric: str, small: str, large: str) -> bool:
    """Says whether two answers are the same by a metric, the large model's taken for the truth."""
    # The VQA score asks for what several people said: they all say what the large model says.
    return METRICS[metric](small, [large] * FEWEST_VQA_ANSWERS) >= RIGHT


def _request(sample: DataSample, system: str | None) -> Request:
    if not system:
        return Request.ask(sample.row.question, *sample.images)
    pictures = tuple(ImagePart(image) for image in sample.images)
    content: tuple[str | ImagePart, ...] = (*pictures, sample.row.question)
    return Request(messages=(Message("system", (system,)), Message("user", content)))


def _key(sample: DataSample) -> str:
    """Names the row with a digest of what is asked, so that a row that was corrected is asked again."""
    row = sample.row
    return f"{row.id}:{digest(row.question, *sample.names, row.metric, *row.answers)[:8]}"


def _picture(sample: DataSample) -> str:
    """Hashes the pictures; the question where there are none, as such rows have nothing in common."""
    pieces: list[bytes | str] = [] if sample.images else [sample.row.question]
    for image in sample.images:
        if isinstance(image, Image.Image):
            pieces += picture_pieces(image)
        elif isinstance(image, Path):
            pieces.append(image.read_bytes())
        else:
            pieces.append(image)
    return digest(*pieces)


def _right(row: DataRow, answer: str) -> bool | None:
    """Makes right or wrong of a graded metric: the exact binomial test counts, it does not average."""
    return METRICS[row.metric](answer, row.answers) >= RIGHT if row.answers else None


def _consistency_flops(vlm: VLM, small: SmallPassResult | None) -> int:
    if small is None or small.consistency_plan is None:
        return 0
    plan, tokens = small.consistency_plan, len(small.generation)
    return consistency_flops(vlm.shape.decoder, plan=plan, output_tokens=tokens)


def _model_ms(response: Response, model: str) -> float:
    return sum(ms for stage, ms in response.report.stage_ms.items() if stage.endswith(model))
