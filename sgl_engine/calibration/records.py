"""What each question showed, and the risks that can be read off it. Pure, but for reading and writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict

from sgl_engine import ConfigError, PruningConfig
from sgl_engine.evaluation.json_lines import BadLine, read_json_lines
from sgl_engine.evaluation.records import Json
from sgl_engine.exit import Agreement, Binding, Conditions, Risk, observe

if TYPE_CHECKING:
    from PIL.Image import Image


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RungOutcome(_Line):
    """The large model's answer to a question at one operating point.

    Attributes:
        answer: What it says.
        agreed: Whether that is what the large model says when it is shown everything.
        agreed_by_metric: Whether it is by the row's metric, the other answer taken for the truth.
        right: Whether it is right; None without known answers.
        tflops: Cost of the large pass; 1e12 floating-point operations.
        ms: Time of the large model, encoding included.
    """

    answer: str
    agreed: bool
    agreed_by_metric: bool
    right: bool | None
    tflops: float
    ms: float


class CalibrationRecord(_Line):
    """One question, answered by both models.

    Attributes:
        key: Identifies the row of the data.
        kind: Of question.
        picture: Digest of the pictures: rows about the same ones stay in one half.
        images: Number of pictures.
        score: The small model's, by the scorer.
        parts: ``Confidence.parts``.
        answer_tokens: Tokens of the small answer, its end included.
        small_answer: The small model's.
        large_answer: The large model's as the cascade runs it: guided and pruned; shown everything where
            there are rungs.
        agreed: Whether they say the same (``RunReport.large_agreed``).
        agreed_by_metric: Whether they do by the row's metric, the large answer taken for the truth.
        small_right: Whether the small answer is right; None without known answers.
        large_right: Whether the large answer is.
        alone_right: Whether that of the large model alone, unpruned, is.
        small_tflops: Cost of the small pass; 1e12 floating-point operations.
        large_tflops: Cost of the guided large pass.
        alone_tflops: Cost of the large model alone.
        small_ms: Time of the small model, encoding included.
        consistency_tflops: Of its operations, those of the consistency pass.
        consistency_ms: Of its time, that of the consistency pass.
        large_ms: Time of the guided large model, encoding included, but for pictures that the small one was
            shown as well.
        alone_ms: Time of the large model alone; None where it was not run.
        seen: Where the small model looked (``ImportanceMap.describe``).
        rungs: What the large model says at each operating point that may be chosen, by name.
    """

    key: str
    kind: str
    picture: str
    images: int
    score: float
    parts: dict[str, float]
    answer_tokens: int
    small_answer: str
    large_answer: str
    agreed: bool
    agreed_by_metric: bool
    small_right: bool | None = None
    large_right: bool | None = None
    alone_right: bool | None = None
    small_tflops: float
    large_tflops: float
    alone_tflops: float
    small_ms: float
    large_ms: float
    alone_ms: float | None = None
    consistency_tflops: float = 0.0
    consistency_ms: float = 0.0
    seen: dict[str, float] = {}
    rungs: dict[str, RungOutcome] = {}

    def without_consistency(self) -> Self:
        """The same, had nobody read what the consistency pass measures: its costs are taken off."""
        tflops, ms = self.small_tflops - self.consistency_tflops, self.small_ms - self.consistency_ms
        return self.model_copy(
            update={
                "small_tflops": tflops,
                "small_ms": ms,
                "consistency_tflops": 0.0,
                "consistency_ms": 0.0,
            }
        )

    @property
    def observation(self) -> dict[str, float]:
        """What features are made of."""
        return observe(self.score, self.parts, self.answer_tokens, self.seen)


class Failure(_Line):
    """A row that could not be answered.

    Attributes:
        key: Identifies the row of the data.
        error: What went wrong, one line.
    """

    key: str
    error: str


class RecordsHeader(_Line):
    """First line of a file of records: what they were collected with.

    Attributes:
        binding: The pair and its settings.
        conditions: What the requests were like.
        rungs: Operating points that each question was asked at, by name, the cheapest first.
    """

    binding: Binding
    conditions: Conditions
    rungs: dict[str, PruningConfig] = {}


def is_harmful(record: CalibrationRecord, risk: Risk, agreement: Agreement = "text") -> bool:
    """Says whether keeping the small answer would have done the harm that ``risk`` counts.

    Raises:
        ConfigError: The risk needs known answers, and this record has none.
    """
    if risk == "disagreement":
        return _differs(record, agreement)
    if record.small_right is None or record.large_right is None:
        raise ConfigError(
            f"The risk {risk!r} needs known answers; the row {record.key} has none.",
            remedy='Add "answers" to every row, or use the risk "disagreement", which needs none.',
        )
    return not record.small_right and (risk == "error" or record.large_right)


def is_harmful_rung(record: CalibrationRecord, name: str, risk: Risk, agreement: Agreement = "text") -> bool:
    """Says whether the large model's answer at a rung does the harm that ``risk`` counts.

    Raises:
        ConfigError: The record lacks this rung, or the risk needs known answers that it does not have.
    """
    if name not in record.rungs:
        raise ConfigError(
            f"The row {record.key} was not asked at {name}; it was at {', '.join(record.rungs) or 'none'}.",
            remedy="Collect the records again with --retention auto, into a new file.",
        )
    rung = record.rungs[name]
    if risk == "disagreement":
        return _differs(rung, agreement)
    as_small = record.model_copy(update={"small_right": rung.right})
    return is_harmful(as_small, risk, agreement)


def _differs(answer: CalibrationRecord | RungOutcome, agreement: Agreement) -> bool:
    return not (answer.agreed if agreement == "text" else answer.agreed_by_metric)


@dataclass(frozen=True)
class RecordsFile:
    """What a file of records holds.

    Attributes:
        header: What they were collected with.
        records: A row that was tried again counts once, with its last outcome.
        failures: Rows without a record.
        bad: Lines that are neither.
    """

    header: RecordsHeader
    records: list[CalibrationRecord]
    failures: list[Failure]
    bad: list[BadLine]


def read_records(path: Path) -> RecordsFile:
    """Reads a file that a collection wrote.

    Raises:
        ConfigError: It cannot be read, or does not begin with a header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}).", remedy="Name a file of records."
        ) from error
    lines, bad = read_json_lines(content, _parse)
    headers = [(number, line) for number, line in lines if isinstance(line, RecordsHeader)]
    if not headers or headers[0][0] != 1:
        said = f" ({bad[0].problem})" if bad and bad[0].number == 1 else ""
        raise ConfigError(
            f"Line 1 of {path} is not a RecordsHeader{said}.",
            remedy="Collect the records again, into a new file.",
        )
    outcomes = {line.key: line for _, line in lines if not isinstance(line, RecordsHeader)}
    return RecordsFile(
        headers[0][1],
        [each for each in outcomes.values() if isinstance(each, CalibrationRecord)],
        [each for each in outcomes.values() if isinstance(each, Failure)],
        bad,
    )


def _parse(line: Json) -> RecordsHeader | CalibrationRecord | Failure:
    if not isinstance(line, dict):
        raise ValueError(f"a {type(line).__name__}, and no object")  # noqa: TRY004  # as for any other fault
    kind: type[RecordsHeader | CalibrationRecord | Failure] = CalibrationRecord
    if "binding" in line or "error" in line:
        kind = RecordsHeader if "binding" in line else Failure
    return kind.model_validate(line)


def halves(
    records: Sequence[CalibrationRecord], seed: int
) -> tuple[list[CalibrationRecord], list[CalibrationRecord]]:
    """Splits records at random: a half to fit on, one to certify on; questions about one picture together.

    Args:
        records: All of them; their order does not matter.
        seed: Of the split.
    """
    import numpy as np

    pictures = sorted({record.picture for record in records})
    order = np.random.default_rng(seed).permutation(len(pictures))
    fitting = {pictures[index] for index in order[: len(pictures) // 2]}
    ordered = sorted(records, key=lambda record: record.key)
    return (
        [record for record in ordered if record.picture in fitting],
        [record for record in ordered if record.picture not in fitting],
    )


def one_of_each_picture(records: Sequence[CalibrationRecord], seed: int) -> list[CalibrationRecord]:
    """Draws at most one question about each picture: the exact tests take what they count for independent.

    Questions about one picture are hard together, so that eight of them tell little more than one. A picture
    of which fewer are asked than of another is kept as much more seldom, so that all questions count alike:
    what is promised is about all of them.

    Args:
        records: Any; their order does not matter.
        seed: Of the draw.
    """
    import numpy as np

    of_picture: dict[str, list[CalibrationRecord]] = {}
    for record in sorted(records, key=lambda record: record.key):
        of_picture.setdefault(record.picture, []).append(record)
    draw = np.random.default_rng((seed, 1))
    most, chosen = max(map(len, of_picture.values()), default=1), []
    for name in sorted(of_picture):
        asked = of_picture[name]
        drawn, kept = asked[draw.integers(len(asked))], draw.random() * most < len(asked)
        chosen += [drawn] if kept else []
    return chosen


def picture_pieces(image: Image) -> tuple[str, bytes]:
    """What names a picture: its size and colours; palettes may differ where the numbers in them do not."""
    shown = image.convert("RGBA") if image.mode in ("P", "PA") else image
    return repr(shown.size), shown.tobytes()
