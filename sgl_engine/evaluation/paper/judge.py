"""MM-Vet's scores: a language model compares an answer with what is right (Yu et al., 2024, 3.3).

The prompt is the paper's, word for word: with another, scores could not be compared. Which model judges is
the user's choice, and none is asked unless one is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sgl_engine import HostedCall, HostedModel, Request, SGLError
from sgl_engine.evaluation.json_lines import mend_end, read_json_lines
from sgl_engine.evaluation.records import BenchAnswer, DataRow

TRIES = 3
"""How often an answer is judged until the judge says a number; warmer each time."""
_LONGEST = 128
FILE = "judged.jsonl"
_PROMPT = Path(__file__).with_name("mmvet_judge.txt")


def judging_prompt(question: str, right: str, said: str) -> str:
    """Writes what the judge is asked; it answers with a number from 0.0 to 1.0."""
    right = right.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{_PROMPT.read_text()}\n{question} | {right} | {said} |"


@dataclass(eq=False)
class Judge:
    """Judges answers, each once: what was judged is kept in a file.

    Attributes:
        model: Who judges.
        folder: Of the run; its file is ``FILE``.
        failed: Rows that it would not judge, with the reason.
    """

    model: HostedModel
    folder: Path
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known: dict[tuple[str, str, str], float] = {}
        if self._file.exists():
            mend_end(self._file)
            lines, _ = read_json_lines(self._file.read_bytes(), lambda line: line)
            for _, line in lines:
                self._known[line["judge"], line["question"], line["answer"]] = line["value"]

    @property
    def _file(self) -> Path:
        return self.folder / FILE

    def judge(self, answers: Iterable[tuple[DataRow, BenchAnswer]]) -> None:
        """Judges all that was not judged yet."""
        for row, answer in answers:
            key = self._key(row, answer)
            if key in self._known or row.id in self.failed:
                continue
            try:
                self._known[key] = self._ask(row, answer.text.strip())
            except SGLError as error:
                self.failed[row.id] = error.problem
                continue
            names = ("judge", "question", "answer", "value")
            line = dict(zip(names, (*key, self._known[key]), strict=True))
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def value(self, row: DataRow, answer: BenchAnswer) -> float:
        """Returns what the answer is worth, in [0, 1]; NaN where it was not judged."""
        return self._known.get(self._key(row, answer), math.nan)

    def _key(self, row: DataRow, answer: BenchAnswer) -> tuple[str, str, str]:
        return self.model.name, row.id, answer.text.strip()

    def _ask(self, row: DataRow, said: str) -> float:
        right, question = row.answers
        prompt = judging_prompt(question, right, said)
        heard = ""
        for attempt in range(TRIES):
            request = Request.ask(prompt, max_new_tokens=_LONGEST, temperature=0.5 * attempt)
            stream = self.model.stream(HostedCall(request, ()))
            while True:
                try:
                    next(stream)
                except StopIteration as end:
                    heard = end.value.text
                    break
            value = _number(heard)
            if value is not None:
                return value
        raise SGLError(
            f"The judge {self.model.name} said {heard[:60]!r}, which is no number from 0 to 1.",
            remedy="Name another judge.",
        )


def _number(text: str) -> float | None:
    try:
        value = float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None
    return value if 0.0 <= value <= 1.0 else None
