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
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from sgl_engine.evaluation.records import Json

_Row = TypeVar("_Row")
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
        try:
            good.append((number, parse(json.loads(line.decode()))))
        except RecursionError:
            bad.append(BadLine(number, "no JSON that can be read (it is nested too deeply)"))
        except ValueError as error:
            bad.append(BadLine(number, _explain(error, line)))
    return good, bad


def mend_end(path: Path) -> None:
    """Makes a file fit for more lines: ends the last one, or removes it where it was cut off.

    Raises:
        OSError: The file cannot be read or written.
    """
    content = path.read_bytes()
    whole, ended, last = content.rpartition(b"\n")
    if not last or content.startswith(_UTF16):
        return
    try:
        json.loads(last.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        os.truncate(path, len(whole) + len(ended))
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    if content.startswith(_UTF16):  # as PowerShell writes text
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
