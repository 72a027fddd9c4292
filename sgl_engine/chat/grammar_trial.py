"""Grammars of a caller's schemas -> what is wrong with them, found out in a process that can be stopped."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from sgl_engine.chat.grammar_probe import PROGRAM, WAIT_FACTOR, grammar_problem
from sgl_engine.config import LimitsConfig
from sgl_engine.errors import EngineError

_LOOK_UP_S = 0.02  # how soon somebody who waits notices that nobody waits for the answer
_PLACES = threading.BoundedSemaphore(4)
_START_S = 120.0
_KNOWN_GRAMMARS = 4096
# An escape, a class, a count, or one character. Each alternative begins differently, so nothing is read
# twice but what follows a bracket that nobody closes.
_TOKEN = re.compile(
    r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?P<range>,(?P<most>\d*))?\}|.",
    re.DOTALL,
)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one of several grammars.

    Attributes:
        index: Which one.
        reason: What llguidance says; None where it took too long or too much memory to say anything.
    """

    index: int
    reason: str | None


class _Known:
    """What was found out before, by content; the least recently used is forgotten first."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, str | None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, grammar: str) -> bool:
        with self._lock:
            return _digest(grammar) in self._found

    def get(self, grammar: str) -> str | None:
        """The problem of a grammar; None where it has none, and where it is not known."""
        with self._lock:
            return self._found.get(_digest(grammar))

    def put(self, grammar: str, reason: str | None) -> None:
        """Keeps what was found out."""
        with self._lock:
            self._found[_digest(grammar)] = reason
            self._found.move_to_end(_digest(grammar))
            while len(self._found) > _KNOWN_GRAMMARS:
                self._found.popitem(last=False)


def _digest(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode("utf-8", "surrogatepass")).digest()


_KNOWN = _Known()


def first_problem(
    grammars: Sequence[str], limits: LimitsConfig, still_wanted: Callable[[], None]
) -> Problem | None:
    """The first grammar that cannot be compiled; None where all can.

    What is not known yet is tried out, in a process of its own unless ``limits.schema_process`` is off.

    Args:
        grammars: Grammars for llguidance.
        limits: How long that may take.
        still_wanted: Called now and then; what it raises ends the process.

    Raises:
        EngineError: No process can be started.
    """
    new = [grammar for grammar in dict.fromkeys(grammars) if grammar not in _KNOWN]
    failed: Problem | None = None
    if new and not limits.schema_process:
        for grammar in new:
            still_wanted()
            _KNOWN.put(grammar, grammar_problem(grammar))
    elif new:
        found = _try_out(new, limits.max_schema_s, still_wanted)
        for grammar, reason in zip(new, found, strict=False):
            _KNOWN.put(grammar, reason)
        if len(found) < len(new):
            # Not kept: on a machine that is less busy it may pass.
            failed = Problem(grammars.index(new[len(found)]), None)
    reasons = ((index, _KNOWN.get(grammar)) for index, grammar in enumerate(grammars))
    refused = (Problem(index, reason) for index, reason in reasons if reason is not None)
    return next(refused, failed)


def _try_out(grammars: Sequence[str], seconds: float, still_wanted: Callable[[], None]) -> list[str | None]:
    """The problems of as many grammars as could be tried."""
    job = json.dumps({"path": sys.path, "grammars": list(grammars), "seconds": seconds})
    # Files, because a pipe takes 64 KB and then waits for its reader.
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as answer, _place(still_wanted):
        told.write(job.encode())
        told.seek(0)
        with _process(told, answer) as process:
            ends = time.monotonic() + WAIT_FACTOR * seconds + _START_S  # for one that never begins
            while process.poll() is None and time.monotonic() < ends:
                still_wanted()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_UP_S)
        answer.seek(0)
        lines = answer.read().splitlines()
    if not lines:
        raise _no_process(f"it ended with {process.returncode}")
    return [json.loads(line) for line in lines[1:]]


@contextmanager
def _process(told: IO[bytes], answer: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the process on a job; it does not outlive the context."""
    try:
        # Isolated, so that no file of the current folder is taken for a module.
        process = subprocess.Popen(  # noqa: S603  # nothing of the caller's is in the command
            [sys.executable, "-I", "-c", PROGRAM], stdin=told, stdout=answer, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise _no_process(str(error)) from error
    with process:
        try:
            yield process
        finally:
            process.kill()


def _no_process(reason: str) -> EngineError:
    return EngineError(
        f"No process can be started to compile a schema in ({reason}).",
        remedy="Set LimitsConfig.schema_process=False where all schemas are your own.",
    )


@contextmanager
def _place(still_wanted: Callable[[], None]) -> Iterator[None]:
    """One of the few places for such processes."""
    while not _PLACES.acquire(timeout=_LOOK_UP_S):
        still_wanted()
    try:
        yield
    finally:
        _PLACES.release()


def written_out(pattern: str) -> int:
    """Characters and classes of ``pattern``, each counted as often as the counts around it allow at most.

    ``*`` and ``+``, and ``{3,}`` beyond the 3, count nothing more: they are loops, not copies.
    """
    totals, last = [0], 0  # of every open group, what stands before its last piece; and that piece
    for token in _TOKEN.finditer(pattern):
        if token["least"] is not None:
            last *= max(1, int(token["most"] or token["least"]))
        elif token[0] == "(":
            totals[-1] += last
            totals.append(0)
            last = 0
        elif token[0] == ")" and len(totals) > 1:
            last += totals.pop()
        elif token[0] not in "*+?|":
            totals[-1] += last
            last = 1
    return sum(totals) + last
