"""One run in several processes, each with models of its own: on few cores, more than threads bring."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from queue import Empty
from typing import Any, TypeAlias

from sgl_engine import SGLEngine, SGLError
from sgl_engine.evaluation.dataset import Data
from sgl_engine.evaluation.records import BenchRecord
from sgl_engine.evaluation.runner import measured
from sgl_engine.evaluation.systems import Systems

Begin: TypeAlias = Callable[[], tuple[SGLEngine, Data, Systems]]
"""Loads what a process needs; picklable."""
_LOOK_S = 5.0
"""Seconds after which it is looked whether a process that says nothing is still there."""


def measured_by(begin: Begin, rows: Sequence[int], processes: int) -> Iterator[BenchRecord]:
    """Measures rows in so many processes; yields each record as it comes, in no particular order.

    Raises:
        SGLError: A process could not begin, or ended before its work did.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    said: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(begin, rows[number::processes], said), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        for _ in rows:
            yield _next(said, workers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _next(said: Any, workers: Sequence[Any]) -> BenchRecord:
    while True:
        try:
            found = said.get(timeout=_LOOK_S)
        except Empty:
            if failed := [worker for worker in workers if worker.exitcode]:
                raise SGLError(
                    f"A process of the run ended with code {failed[0].exitcode}.",
                    remedy="Where memory was short, use fewer processes; what was done is kept.",
                ) from None
            continue
        if isinstance(found, Exception):
            raise found
        return BenchRecord.model_validate_json(found)


def _work(begin: Begin, rows: Sequence[int], said: Any) -> None:
    """A process: its rows, one after the other."""
    try:
        engine, data, systems = begin()
        for record in measured(engine, data, systems, rows):
            said.put(record.model_dump_json())
    except Exception as error:  # noqa: BLE001  # whatever it was, the run's own process says it
        said.put(error if isinstance(error, SGLError) else SGLError(f"{type(error).__name__}: {error}"))
    except KeyboardInterrupt:  # the run's own process says that, too
        pass
