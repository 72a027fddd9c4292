"""The folder of a run: what was asked, a line for each row in the rows' order, and the reports.

Lines are only ever added, in order, and each is in the file whole before the next row's is written; so the
number of whole lines says where a run that was cut short goes on. Reports come before their rows: after a
kill there may be one too many, never one too few.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from io import FileIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sgl_engine.batch.forms import RowForm, Written
from sgl_engine.batch.job import WORDS, Job
from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.json_lines import BadLine, add_line, mend_end, read_json_line

if TYPE_CHECKING:
    from typing import Self

JOB: Final = "job.json"
ROWS: Final = "rows.jsonl"
REPORTS: Final = "reports.jsonl"
_OTHER = "Name another folder by --out"


class RunFolder:
    """What a run has written, and where more goes. A context manager: no other run may write meanwhile.

    Args:
        path: The folder; it is made where there is none.
        job: What is run; a folder of another job is refused.
        form: What the rows are.

    Attributes:
        done: Rows that are there.
        failed: How many of them have an error.
        path: The folder.

    Raises:
        ConfigError: On entering: the folder cannot be used, is in use, or is of something else.
    """

    def __init__(self, path: Path, job: Job, form: RowForm) -> None:
        self.path = path
        self.done = self.failed = 0
        self._job, self._form = job, form
        self._open = ExitStack()
        self._rows: RawIOBase
        self._reports: RawIOBase

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock(opened)
                self._check_job()
                self._read()
                self._rows = opened.enter_context(FileIO(self.path / ROWS, "ab"))
                self._reports = opened.enter_context(FileIO(self.path / REPORTS, "ab"))
            except OSError as error:
                raise self._unusable(error) from error
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, written: Written) -> None:
        """Adds the next row; when this returns, no kill can lose it.

        Raises:
            ConfigError: It cannot be written.
        """
        try:
            if written.report is not None:
                add_line(self._reports, written.report)
            add_line(self._rows, written.line)
        except OSError as error:
            raise self._unusable(error) from error
        self.done += 1
        self.failed += written.failed

    def _lock(self, opened: ExitStack) -> None:
        folder = os.open(self.path, os.O_RDONLY)
        opened.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another run is writing to {self.path}.", remedy=f"Wait for its end. {_OTHER} meanwhile."
            ) from None

    def _check_job(self) -> None:
        """Compares the folder's job with this one; writes it down where the folder is new."""
        file = self.path / JOB
        if file.exists():
            try:
                before = json.loads(file.read_bytes())
                changed = [word for name, word in WORDS.items() if before.get(name) != self._job.get(name)]
            except (ValueError, AttributeError, RecursionError) as error:
                raise ConfigError(f"{file} cannot be read ({error}).", remedy=f"{_OTHER}.") from error
            if changed:
                raise ConfigError(
                    f"{self.path} is of another run: {', '.join(changed)} changed.",
                    remedy=f"{_OTHER}, or go on with what the run began with.",
                )
            return
        if (self.path / ROWS).exists():
            raise ConfigError(f"{self.path} has {ROWS} and no {JOB}.", remedy=f"{_OTHER}.")
        new = self.path / f"{JOB}.new"
        new.write_text(json.dumps(dict(self._job), indent=1) + "\n")
        new.replace(file)

    def _read(self) -> None:
        """Counts the rows that are there, one by one, and takes away what was cut off behind them."""
        self._walk(ROWS, self._count)
        # Of a report, all that counts is whether its row is there.
        self._walk(REPORTS, lambda line: self._number_of_report(line) < self.done)

    def _walk(self, name: str, keep: Callable[[object], bool]) -> None:
        """Looks at each line; what begins with the first that is not kept is cut off."""
        path = self.path / name
        if not path.exists():
            return
        mend_end(path)
        at = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                kept = read_json_line(line, keep, number)
                if isinstance(kept, BadLine):
                    raise ConfigError(
                        f"Line {number} of {path} is none of this run ({kept.problem}).", remedy=f"{_OTHER}."
                    )
                if not kept:
                    break
                at += len(line)
        os.truncate(path, at)

    def _count(self, line: object) -> bool:
        try:
            number, failed = self._form.read(line)  # type: ignore[arg-type]  # what is none is told by this
        except (LookupError, TypeError) as error:
            raise ValueError(f"no {error}") from error
        if number != self.done:
            raise ValueError(f"row {number}, where row {self.done} belongs")
        if number >= int(self._job["rows"] or 0):
            raise ValueError(f"row {number} of {self._job['rows']}")
        self.done, self.failed = self.done + 1, self.failed + failed
        return True

    @staticmethod
    def _number_of_report(line: object) -> int:
        try:
            return int(str(line["id"]).rpartition("-")[2])  # type: ignore[index]  # the same
        except (LookupError, TypeError) as error:
            raise ValueError(f"no {error}") from error

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.path} cannot be used ({error.strerror or error}).", remedy=f"{_OTHER}.")
