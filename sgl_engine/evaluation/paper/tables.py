"""Rows of a benchmark's files: parquet, what ``save_to_disk`` writes, JSON, and VLMEvalKit's TSV.

Pictures stay where they are until a row is asked about: in a column of parquet or Arrow as bytes, in a TSV in
base64, in JSON as a path or in base64. Parquet and Arrow need pyarrow (the extra ``benchmarks``).
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sgl_engine import ConfigError, ImageSource
from sgl_engine.evaluation.columns import (
    ParquetRows,
    RawRow,
    json_row,
    picture_columns,
    pictures_of,
    sources_of,
)
from sgl_engine.evaluation.json_lines import read_json_lines
from sgl_engine.evaluation.optional import extra

ENDINGS = (".parquet", ".arrow", ".jsonl", ".json", ".tsv")
"""What files of rows are called."""
_REFERENCE_CHARACTERS = 64
"""In VLMEvalKit's files, a picture of at most so many characters is the index of the row that holds it."""


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
    return iter(ParquetRows(path))


def _arrow(path: Path) -> Iterator[RawRow]:
    pyarrow = extra("pyarrow", "benchmarks")
    mapped = pyarrow.memory_map(str(path))
    try:
        table = extra("pyarrow.ipc", "benchmarks").open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        table = extra("pyarrow.ipc", "benchmarks").open_file(mapped).read_all()
    pictures = picture_columns(table.schema)
    others = [name for name in table.schema.names if name not in pictures]
    shown = table.select(pictures)  # stays on the disk until it is read
    for number, values in enumerate(table.select(others).to_pylist()):

        def read(number: int = number) -> tuple[ImageSource, ...]:
            return pictures_of(shown.slice(number, 1).to_pylist()[0], path.parent)

        yield RawRow(f"{path.name} row {number + 1}", values, read)


def _json(path: Path) -> Iterator[RawRow]:
    if path.suffix == ".jsonl":
        good, bad = read_json_lines(path.read_bytes(), lambda line: line)
    else:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(parsed, Mapping):  # {"data": [...]}, as DocVQA is published
            parsed = next((each for each in parsed.values() if isinstance(each, list)), [])
        good, bad = list(enumerate(parsed, start=1)), []
    for number, values in good:
        yield json_row(f"{path.name} row {number}", values, path.parent)
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
        return sources_of(listed, path.parent)

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
