"""Rows of a benchmark's files: parquet, what ``save_to_disk`` writes, JSON, and VLMEvalKit's TSV.

Pictures stay where they are until a row is asked about: in a column of parquet or Arrow as bytes, in a TSV in
base64, in JSON as a path or in base64. Parquet and Arrow need pyarrow (the extra ``benchmarks``).
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from sgl_engine import ConfigError, ImageSource
from sgl_engine.evaluation.json_lines import read_json_lines
from sgl_engine.evaluation.optional import extra

ENDINGS = (".parquet", ".arrow", ".jsonl", ".json", ".tsv")
"""What files of rows are called."""
_PICTURES = ("image", "images", "image_path", "decoded_image")
_REFERENCE_CHARACTERS = 64
"""In VLMEvalKit's files, a picture of at most so many characters is the index of the row that holds it."""

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


def read_rows(path: Path, split: str = "") -> list[RawRow]:
    """Reads all rows of a file, or of all files in a folder, in the order of their names.

    Args:
        path: The file or folder.
        split: Where some files of the folder are named after it, or lie in a folder of that name, only these.

    Raises:
        ConfigError: There is no such file, it cannot be read, or a library for it is missing.
    """
    files = _files(path)
    if split and (of_split := [file for file in files if _is_of(split, file, path)]):
        files = of_split
    if not files:
        raise ConfigError(
            f"{path} has no file that ends in {', '.join(ENDINGS)}.",
            remedy="Name a file of the benchmark, or the folder that its files lie in.",
        )
    rows: list[RawRow] = []
    for file in files:
        try:
            rows += _READERS[file.suffix](file)
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are such
            raise ConfigError(
                f"{file} cannot be read ({str(error).partition(chr(10))[0]}).", remedy="Fetch it again."
            ) from error
    return rows


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in _READERS else []
    # state.json and the like describe what lies beside them.
    described = {"dataset_info.json", "state.json", "dataset_dict.json"}
    found = sorted(each for each in path.rglob("*") if each.suffix in _READERS and each.name not in described)
    return [each for each in found if not any(part.startswith(".") for part in each.relative_to(path).parts)]


def _is_of(split: str, file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts if file != folder else ()
    return any(part == split or re.match(rf"{re.escape(split)}\W", part) for part in parts)


def _parquet(path: Path) -> Iterator[RawRow]:
    file = extra("pyarrow.parquet", "benchmarks").ParquetFile(path, memory_map=True)
    pictures = _picture_columns(file.schema_arrow)
    others = [name for name in file.schema_arrow.names if name not in pictures]
    group_of = lru_cache(maxsize=1)(partial(file.read_row_group, columns=pictures))
    number = 0
    for group in range(file.num_row_groups):
        for place, values in enumerate(file.read_row_group(group, columns=others).to_pylist()):
            number += 1

            def read(group: int = group, place: int = place) -> tuple[ImageSource, ...]:
                return _of_columns(group_of(group).slice(place, 1).to_pylist()[0], path.parent)

            yield RawRow(f"{path.name} row {number}", values, read)


def _arrow(path: Path) -> Iterator[RawRow]:
    pyarrow = extra("pyarrow", "benchmarks")
    mapped = pyarrow.memory_map(str(path))
    try:
        table = extra("pyarrow.ipc", "benchmarks").open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        table = extra("pyarrow.ipc", "benchmarks").open_file(mapped).read_all()
    pictures = _picture_columns(table.schema)
    others = [name for name in table.schema.names if name not in pictures]
    shown = table.select(pictures)  # stays on the disk until it is read
    for number, values in enumerate(table.select(others).to_pylist()):

        def read(number: int = number) -> tuple[ImageSource, ...]:
            return _of_columns(shown.slice(number, 1).to_pylist()[0], path.parent)

        yield RawRow(f"{path.name} row {number + 1}", values, read)


def _picture_columns(schema: Any) -> list[str]:
    """Columns that hold bytes, alone, in a struct beside a path, or in lists of these."""

    def holds_bytes(kind: Any) -> bool:
        if hasattr(kind, "value_type"):
            return holds_bytes(kind.value_type)
        named = {kind.field(at).name for at in range(getattr(kind, "num_fields", 0))}
        return "bytes" in named or "binary" in str(kind)

    return [field.name for field in schema if field.name in _PICTURES or holds_bytes(field.type)]


def _of_columns(values: Mapping[str, Any], folder: Path) -> tuple[ImageSource, ...]:
    known = (values[name] for name in (*_PICTURES, *values) if values.get(name))
    return _pictures(next(known, None), folder)


def _pictures(value: Any, folder: Path) -> tuple[ImageSource, ...]:
    """Makes sources of what a column says: bytes, a struct of bytes and path, text, or a list of these."""
    if value is None or value == "":
        return ()
    if isinstance(value, list | tuple):
        return tuple(source for each in value for source in _pictures(each, folder))
    if isinstance(value, Mapping):
        return _pictures(value.get("bytes") or value.get("path"), folder)
    if isinstance(value, str):
        return (_from_text(value, folder),)
    if not isinstance(value, bytes):
        raise ValueError(f"a picture is {type(value).__name__}, neither bytes nor text")  # noqa: TRY004  # bad data
    return (value,)


def _from_text(value: str, folder: Path) -> ImageSource:
    if value.startswith(("https:", "http:", "data:")):
        return value
    if len(value) <= 1024 and (path := folder / Path(value).expanduser()).is_file():
        return path
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError(f"there is no picture {value[:60]!r}") from None


def _json(path: Path) -> Iterator[RawRow]:
    if path.suffix == ".jsonl":
        good, bad = read_json_lines(path.read_bytes(), lambda line: line)
    else:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(parsed, Mapping):  # {"data": [...]}, as DocVQA is published
            parsed = next((each for each in parsed.values() if isinstance(each, list)), [])
        good, bad = list(enumerate(parsed, start=1)), []
    for number, values in good:
        name = f"{path.name} row {number}"
        if not isinstance(values, Mapping):
            yield RawRow(name, {}, tuple, f"{type(values).__name__}, and no object")
            continue
        shown = {column: values[column] for column in _PICTURES if column in values}
        others = {column: value for column, value in values.items() if column not in _PICTURES}
        yield RawRow(name, others, partial(_of_columns, shown, path.parent))
    yield from (RawRow(f"{path.name} row {line.number}", {}, tuple, line.problem) for line in bad)


def _tsv(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    lines = list(
        csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), delimiter="\t")
    )
    by_index = {line.get("index") or "": line.get("image") or "" for line in lines}

    def read(line: Mapping[str, str]) -> tuple[ImageSource, ...]:
        held = line.get("image") or ""
        if held and len(held) <= _REFERENCE_CHARACTERS:
            held = by_index.get(held, "")
            if not held:
                raise ValueError(f"there is no row {line['image']!r}, whose picture it names")
        value = held or line.get("image_path") or ""
        listed = json.loads(value.replace("'", '"')) if value.startswith("[") else value
        return _pictures(listed, path.parent)

    for number, line in enumerate(lines, start=1):
        values: dict[str, Any] = {
            name: value for name, value in line.items() if name not in {"image", "images"}
        }
        yield RawRow(f"{path.name} row {number}", values, partial(read, line))


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = dict(
    zip(ENDINGS, (_parquet, _arrow, _json, _json, _tsv), strict=True)
)


def only_picture(sources: Sequence[ImageSource]) -> ImageSource:
    """Returns the one picture of a row.

    Raises:
        ValueError: There is none, or there are several.
    """
    if len(sources) != 1:
        raise ValueError(f"it has {len(sources)} pictures, and not one")
    return sources[0]
