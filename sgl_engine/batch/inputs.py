"""What a batch reads: JSON lines, a parquet file, or a folder of pictures; rows by number, one at a time.

An input holds where its rows lie, and none of them: 100,000 rows with their pictures need not fit in memory.
It can be pickled, and opens its files again in another process.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Final, Protocol

from sgl_engine.errors import ConfigError
from sgl_engine.evaluation.columns import ParquetRows, RawRow, json_row
from sgl_engine.evaluation.json_lines import BadLine, is_utf16, read_json_line
from sgl_engine.prompt import pictures_in

MAX_LINE_BYTES: Final = 64 * 2**20
"""Longest line that is read, as long as the longest body that the server takes by default."""
_BLOCK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_REMEDY = "Name a .jsonl or .parquet file, or a folder of pictures."


class Rows(Protocol):
    """Rows by number, from 0."""

    @property
    def identity(self) -> str:
        """Equal where the rows are."""

    def __len__(self) -> int:
        """Counts them."""

    def __getitem__(self, index: int, /) -> RawRow:
        """Reads one; what is wrong with it is its ``problem``, or raised by its ``pictures``."""


def open_rows(path: Path) -> Rows:
    """Looks through an input.

    Raises:
        ConfigError: There is none, it is of no known kind, or it holds no row.
    """
    kind: Callable[[Path], Rows] | None = FolderRows if path.is_dir() else _KINDS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path} is no file of rows and no folder.", remedy=_REMEDY)
    try:
        rows = kind(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}).", remedy=_REMEDY) from error
    except ValueError as error:  # pyarrow's errors are such
        raise ConfigError(
            f"{path} cannot be read ({str(error).partition(chr(10))[0]}).", remedy=_REMEDY
        ) from error
    if not len(rows):
        raise ConfigError(f"{path} holds no row.", remedy=_REMEDY)
    return rows


class LineRows:
    """A file of one JSON object a line. Blank lines are no rows; a line that cannot be read is a bad one.

    Attributes:
        identity: Digest of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places, digest = (array("q"), array("q"), array("q")), sha256()
        number, at, blank = 1, 0, True
        with path.open("rb") as file:
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(0)
            for piece in iter(partial(file.readline, _BLOCK_BYTES), b""):
                if not at and is_utf16(piece):
                    raise ConfigError(f"{path} is UTF-16.", remedy="Save it as UTF-8.")
                digest.update(piece)
                at, blank = at + len(piece), blank and not piece.strip(b" \t\r\n" + _BOM)
                if piece.endswith(b"\n"):
                    self._add(start, at, number, blank)
                    number, start, blank = number + 1, at, True
        self._add(start, at, number, blank)
        self.identity = digest.hexdigest()

    def _add(self, start: int, end: int, number: int, blank: bool) -> None:  # noqa: FBT001  # of this class
        if not blank and end > start:
            for column, value in zip(self._places, (start, end - start, number), strict=True):
                column.append(value)

    def __len__(self) -> int:
        """Counts the lines that are not blank."""
        return len(self._places[0])

    def __getitem__(self, index: int) -> RawRow:
        """Reads one line."""
        start, length, number = (column[index] for column in self._places)
        name = f"{self._path.name} line {number}"
        if length > MAX_LINE_BYTES:
            problem = f"a line of {length:,} bytes; {MAX_LINE_BYTES:,} are allowed"
            return RawRow(name, {}, tuple, problem)
        with self._path.open("rb") as file:
            file.seek(start)
            line = file.read(length)
        row = read_json_line(line, lambda values: json_row(name, values, self._path.parent), number)
        return RawRow(name, {}, tuple, row.problem) if isinstance(row, BadLine) else row


class TableRows:
    """A parquet file.

    Attributes:
        identity: Digest of the file.
    """

    def __init__(self, path: Path) -> None:
        self._rows = ParquetRows(path)
        with path.open("rb") as file:
            self.identity = file_digest(file, "sha256").hexdigest()

    def __len__(self) -> int:
        """Counts the rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> RawRow:
        """Reads one row; its pictures stay in the file."""
        row: RawRow = self._rows[index]
        return row


@dataclass(frozen=True, eq=False)
class _OnDisk:
    """Gives a picture that lies in a folder; a function inside another could not be pickled."""

    path: Path

    def __call__(self) -> tuple[Path]:
        return (self.path,)


class FolderRows:
    """Every picture of a folder and of those below it, in the order of their paths; its path is its id.

    Attributes:
        identity: Digest of the paths and sizes; the pictures themselves are not read for it.
    """

    def __init__(self, path: Path) -> None:
        found, failures = pictures_in(path)
        if failures:
            raise failures[0]
        self._folder = path
        self._names: Sequence[str] = [each.relative_to(path).as_posix() for each in found]
        sizes = [each.stat().st_size for each in found]
        described = json.dumps(list(zip(self._names, sizes, strict=True)))
        self.identity = sha256(described.encode()).hexdigest()

    def __len__(self) -> int:
        """Counts the pictures."""
        return len(self._names)

    def __getitem__(self, index: int) -> RawRow:
        """Names one; it is read when it is asked about."""
        name = self._names[index]
        return RawRow(name, {"id": name}, _OnDisk(self._folder / name))


_KINDS: Final[dict[str, Callable[[Path], Rows]]] = {
    ".jsonl": LineRows,
    ".ndjson": LineRows,
    ".parquet": TableRows,
}
