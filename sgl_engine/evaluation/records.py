"""What is kept of one row: every system's answer, its worth and its cost; one line of JSON each."""

from __future__ import annotations

from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

Json: TypeAlias = Any
"""What ``json`` takes: None, bool, int, float, str, lists and dicts of these."""

RIGHT: float = 0.5
"""An answer counts as right from this value on, where right or wrong is asked of a graded metric."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class BenchAnswer(_Frozen):
    """One system's answer to one question.

    Attributes:
        text: The answer.
        value: By the row's metric, in [0, 1], higher = better.
        tokens: Generated, the end-of-sequence token included.
        tflops: Of this model's whole pass, vision tower included; 1e12 floating-point operations.
        ms: Milliseconds, reading the prompt included; None where the pass ran beside others.
        retention: Visual tokens seen, averaged over the model's layers, in (0, 1].
    """

    text: str
    value: float
    tokens: int
    tflops: float
    ms: float | None = None
    retention: float = 1.0

    @property
    def right(self) -> bool:
        """Whether the value reaches ``RIGHT``."""
        return self.value >= RIGHT


class BenchOutcome(_Frozen):
    """What all systems made of one row.

    Attributes:
        small: The small model alone: no map, no score.
        large: The large model alone, unpruned.
        score: How sure the small model is, in [0, 1].
        parts: What scores are made of (``Confidence.parts``).
        small_pass_tflops: The small model's part of a run of the engine: answer, map and score.
        small_pass_ms: Milliseconds of that part.
        guided: The large model's part of a run of the engine that escalates: operating point -> answer.
        pruned: The large model's answers under each ranker: ranker -> operating point -> answer; without a
            time, because they ran side by side.
        study: What ``studies.STUDIES`` add: name -> anything JSON-safe.
        compared: Whether rankers and studies took part; without them ``pruned`` is empty.
    """

    small: BenchAnswer
    large: BenchAnswer
    score: float
    parts: dict[str, float]
    small_pass_tflops: float
    small_pass_ms: float
    guided: dict[str, BenchAnswer]
    pruned: dict[str, dict[str, BenchAnswer]]
    study: dict[str, Json] = {}
    compared: bool = True


class DataRow(_Frozen):
    """Which row a record is about.

    Attributes:
        index: Its place in the data, from 0.
        id: Its name there.
        kind: What is asked; results are broken down by it.
        metric: Name in ``metrics.METRICS``.
        question: As it was asked.
        answers: What counts as right.
        part: Which part of a benchmark it belongs to, where scores of parts are added up.
        group: Rows of one group are scored together; "" is on its own.
        max_new_tokens: Longest answer to it; None is that of the run.
    """

    index: int
    id: str
    kind: str
    metric: str
    question: str
    answers: tuple[str, ...]
    part: str = ""
    group: str = ""
    max_new_tokens: int | None = None


class BenchRecord(_Frozen):
    """A row and its outcome, or why there is none.

    Attributes:
        row: What was asked.
        outcome: None where the row failed.
        error: What was wrong with it; None where nothing was.
    """

    row: DataRow
    outcome: BenchOutcome | None = None
    error: str | None = None


class Scored(_Frozen):
    """A record that has an outcome: what statistics are made of."""

    row: DataRow
    outcome: BenchOutcome

    @classmethod
    def of(cls, records: list[BenchRecord]) -> list[Scored]:
        """Picks the records that did not fail, in the order of the data."""
        found = [cls(row=each.row, outcome=each.outcome) for each in records if each.outcome is not None]
        return sorted(found, key=lambda scored: scored.row.index)
