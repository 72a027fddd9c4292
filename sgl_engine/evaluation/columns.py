"""Rows of tables, and their pictures: in a column as bytes, as a path, as a URL, or in base64.

Parquet files are read by row number; they need pyarrow (the extra ``benchmarks``).
"""

from __future__ import annotations

import base64
import os.path
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

from sgl_engine import ImageSource
from sgl_engine.evaluation.optional import extra

PICTURE_COLUMNS = ("image", "images", "picture", "pictures", "image_path", "decoded_image")
"""Columns that hold pictures, whatever their type; the first that is there and not empty counts."""
_LONGEST_PATH = 1024

Pictures: TypeAlias = Callable[[], tuple[ImageSource, ...]]


@dataclass(frozen=True, eq=False)
class RawRow:
    """A row as its file holds it.

    Attributes:
        name: File and number, from 1.
        values: Column -> value, pictures left out.
        pictures: Reads its pictures, which may be none; ``ValueError`` where they are no pictures.
        problem: Why it is no row; None where it is one.
    """

    name: str
    values: Mapping[str, Any]
    pictures: Pictures
    problem: str | None = None


class ParquetRows(Sequence[RawRow]):
    """The rows of a parquet file, by number; pictures stay in the file until they are read.

    One row group is held at a time, and of its pictures those that are asked for.

    Args:
        path: The file.

    Raises:
        ConfigError: pyarrow is not installed.
        OSError: The file cannot be read.
        ValueError: It is no parquet file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = extra("pyarrow.parquet", "benchmarks").ParquetFile(path, memory_map=True)
        schema, groups = self._file.schema_arrow, self._file.metadata
        pictures = picture_columns(schema)
        others = [name for name in schema.names if name not in pictures]
        sizes = (groups.row_group(group).num_rows for group in range(groups.num_row_groups))
        self._starts: list[int] = list(accumulate(sizes, initial=0))
        self._pictures = lru_cache(maxsize=1)(partial(self._file.read_row_group, columns=pictures))
        self._others = lru_cache(maxsize=1)(
            lambda group: self._file.read_row_group(group, columns=others).to_pylist()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file itself."""
        return (ParquetRows, (self._path,))

    def __len__(self) -> int:
        """Counts the rows."""
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        """One row, by its number from 0."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        place = index - self._starts[group]

        def read() -> tuple[ImageSource, ...]:
            return pictures_of(self._pictures(group).slice(place, 1).to_pylist()[0], self._path.parent)

        return RawRow(f"{self._path.name} row {index + 1}", self._others(group)[place], read)


def picture_columns(schema: Any) -> list[str]:
    """Columns that hold bytes, alone, in a struct beside a path, or in lists of these."""

    def holds_bytes(kind: Any) -> bool:
        if hasattr(kind, "value_type"):
            return holds_bytes(kind.value_type)
        named = {kind.field(at).name for at in range(getattr(kind, "num_fields", 0))}
        return "bytes" in named or "binary" in str(kind)

    return [field.name for field in schema if field.name in PICTURE_COLUMNS or holds_bytes(field.type)]


def json_row(name: str, values: Any, folder: Path) -> RawRow:
    """The row that a JSON object is; paths of pictures begin at ``folder``."""
    if not isinstance(values, Mapping):
        return RawRow(name, {}, tuple, f"{type(values).__name__}, and no object")
    shown = {column: values[column] for column in PICTURE_COLUMNS if column in values}
    others = {column: value for column, value in values.items() if column not in PICTURE_COLUMNS}
    return RawRow(name, others, partial(pictures_of, shown, folder))


def pictures_of(values: Mapping[str, Any], folder: Path) -> tuple[ImageSource, ...]:
    """The pictures of a row, by its columns that hold some.

    Raises:
        ValueError: They are no pictures.
    """
    known = (values[name] for name in (*PICTURE_COLUMNS, *values) if values.get(name))
    return sources_of(next(known, None), folder)


def sources_of(value: Any, folder: Path) -> tuple[ImageSource, ...]:
    """Makes sources of what a column says: bytes, a struct of bytes and path, text, or a list of these.

    Raises:
        ValueError: It says something else.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, list | tuple):
        return tuple(source for each in value for source in sources_of(each, folder))
    if isinstance(value, Mapping):
        return sources_of(value.get("bytes") or value.get("path"), folder)
    if isinstance(value, str):
        return (_from_text(value, folder),)
    if not isinstance(value, bytes):
        raise ValueError(f"a picture is {type(value).__name__}, neither bytes nor text")  # noqa: TRY004  # bad data
    return (value,)


def _from_text(value: str, folder: Path) -> ImageSource:
    if value.startswith(("https:", "http:", "data:")):
        return value
    if len(value) <= _LONGEST_PATH and os.path.isfile(path := folder / os.path.expanduser(value)):  # noqa: PTH111, PTH113  # these raise nothing, whatever the text
        return path
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError(f"there is no picture {value[:60]!r}") from None
