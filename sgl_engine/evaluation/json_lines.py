"""Files of one JSON object a line, as people and broken-off runs leave them: what can be read is read.

Only a line feed ends a line: U+2028, U+2029 and U+0085 may stand in a JSON string. Lines are told apart as
bytes, so that a file that was cut inside a character loses that line, and no other.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from sgl_engine.evaluation.records import Json

_Row = TypeVar("_Row")
_BLOCK_BYTES = 2**16
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used.

    Attributes:
        number: From 1.
        problem: What is wrong with it, in one line.
    """

    number: int
    problem: str


def read_json_lines(
    content: bytes, parse: Callable[[Json], _Row]
) -> tuple[list[tuple[int, _Row]], list[BadLine]]:
    """Reads all lines but blank ones; a byte order mark at the beginning is no part of the first.

    Args:
        content: The file's bytes.
        parse: What a line becomes; a ``ValueError`` (so pydantic's, too) says that it is none.

    Returns:
        The good lines with their numbers, and the bad ones.
    """
    good: list[tuple[int, _Row]] = []
    bad: list[BadLine] = []
    for number, line in _lines(content):
        row = read_json_line(line, parse, number)
        if isinstance(row, BadLine):
            bad.append(row)
        else:
            good.append((number, row))
    return good, bad


def read_json_line(line: bytes, parse: Callable[[Json], _Row], number: int) -> _Row | BadLine:
    """Reads one line, or says what is wrong with it; arguments as of ``read_json_lines``."""
    try:
        return parse(json.loads(line.decode()))
    except RecursionError:
        return BadLine(number, "no JSON that can be read (it is nested too deeply)")
    except ValueError as error:
        return BadLine(number, _explain(error, line))


def is_utf16(beginning: bytes) -> bool:
    """Whether a file that begins like this is UTF-16, as PowerShell writes text."""
    return beginning.startswith(_UTF16)


def mend_end(path: Path) -> None:
    """Makes a file fit for more lines: ends the last one, or removes it where it was cut off.

    Raises:
        OSError: The file cannot be read or written.
    """
    with path.open("rb") as file:
        start, last = _last_line(file)
        file.seek(0)
        if not last or is_utf16(file.read(2)):
            return
    try:
        json.loads(last.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        os.truncate(path, start)
    else:
        with path.open("ab") as more:
            more.write(b"\n")


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """Where what follows the last line feed begins, and what it is; a long file is not read whole."""
    start, last = file.seek(0, os.SEEK_END), b""
    while start:
        block = min(start, _BLOCK_BYTES)
        file.seek(start - block)
        _, ended, rest = file.read(block).rpartition(b"\n")
        start, last = start - len(rest), rest + last
        if ended:
            break
    return start, last


def add_line(file: RawIOBase, line: bytes) -> None:
    """Adds a line to a file that is opened without a buffer: when this returns, the file has all of it.

    Raises:
        OSError: It cannot be written, or not whole.
    """
    left = line + b"\n"
    while left:  # a disk that fills up takes a part
        left = left[file.write(left) or 0 :]


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    if is_utf16(content):
        content = content.decode("utf-16", errors="replace").encode(errors="replace")
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _explain(error: ValueError, line: bytes) -> str:
    """Says in one line what is wrong, without pydantic's frame."""
    if isinstance(error, UnicodeDecodeError):
        return f"no text in UTF-8 (byte {error.start + 1} of {len(line)})"
    if not isinstance(error, ValidationError):
        return f"no JSON ({error})"
    faults = [
        ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, "))))
        for each in error.errors(include_url=False)
    ]
    return "; ".join(faults)
