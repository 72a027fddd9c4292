"""Rows through every system, one after the other; each is recorded when it is done, and never twice."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import Any, TypeAlias

from sgl_engine import ConfigError, SGLEngine, SGLError
from sgl_engine.evaluation.dataset import Data, DataSample
from sgl_engine.evaluation.records import BenchRecord
from sgl_engine.evaluation.store import BenchModel, Manifest, Store
from sgl_engine.evaluation.studies import STUDIES
from sgl_engine.evaluation.systems import Systems, measure
from sgl_engine.report import engine_version

Begin: TypeAlias = Callable[[], tuple[SGLEngine, Data, Systems]]
"""Loads what a process needs; picklable."""
_LOOK_S = 5.0
"""Seconds after which it is looked whether a process that says nothing is still there."""


def manifest(engine: SGLEngine, data: Data, systems: Systems) -> Manifest:
    """Describes what a run's records depend on: not how many rows, nor how many passes run at once."""
    exit_config = engine.config.exit
    return Manifest(
        engine_version=engine_version(),
        small=BenchModel.of(engine.small),
        large=BenchModel.of(engine.large),
        data=data.identity,
        settings={
            "points": {name: point.model_dump() for name, point in systems.points.items()},
            "rankers": list(systems.rankers),
            "studies": list(STUDIES) if systems.studies else [],
            "seed": systems.seed,
            "generation": engine.config.generation.model_dump(),
            "scorer": exit_config.scorer,
            "consistency_keep_ratio": exit_config.consistency_keep_ratio,
        },
    )


@dataclass(frozen=True)
class Runner:
    """A run, which may have begun before.

    Attributes:
        engine: Both models.
        data: What is asked.
        systems: Who answers.
        store: Where records go.
    """

    engine: SGLEngine
    data: Data
    systems: Systems
    store: Store

    def pending(self) -> list[int]:
        """Lists rows without a whole outcome, in order; rows that failed are tried again."""
        known = self.store.records()
        return [row for row in range(len(self.data)) if not self._is_whole(row, known.get(row))]

    def _is_whole(self, row: int, record: BenchRecord | None) -> bool:
        """Whether nothing is left to measure; a run that compares more rows than the last has more to."""
        if record is None or record.outcome is None:
            return False
        return record.outcome.compared or not self.systems.compares(row)

    def run(self) -> Iterator[BenchRecord]:
        """Measures what is pending; yields each record once it is kept. A bad row never ends the run."""
        yield from self.keep(measured(self.engine, self.data, self.systems, self.pending()))

    def keep(self, records: Iterable[BenchRecord]) -> Iterator[BenchRecord]:
        """Keeps records as they come, and passes them on."""
        for record in records:
            self.store.append(record)
            yield record


def measured(engine: SGLEngine, data: Data, systems: Systems, rows: Sequence[int]) -> Iterator[BenchRecord]:
    """Measures rows, one after the other."""
    if rows:
        _warm_up(engine, data[rows[0]], systems)
    for index in rows:
        yield _attempt(engine, data[index], systems)


def _warm_up(engine: SGLEngine, sample: DataSample, systems: Systems) -> None:
    """Measures a row and forgets it: first passes take longer, and settings that cannot work show here.

    Raises:
        ConfigError: They cannot: every row would fail alike.
    """
    try:
        measure(engine, sample, systems)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001, S110 - recorded when the row's turn comes
        pass


def _attempt(engine: SGLEngine, sample: DataSample, systems: Systems) -> BenchRecord:
    if sample.problem is not None:
        return BenchRecord(row=sample.row, error=sample.problem)
    try:
        return BenchRecord(row=sample.row, outcome=measure(engine, sample, systems))
    except Exception as error:  # noqa: BLE001 - whatever a model or a library throws, the next row goes on
        return BenchRecord(row=sample.row, error=f"{type(error).__name__}: {error}")


def measured_by(begin: Begin, rows: Sequence[int], processes: int) -> Iterator[BenchRecord]:
    """Measures rows in so many processes, each with models of its own; yields records as they come.

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
        remedy = "Run with --processes 1 to see where."
        told = SGLError(f"{type(error).__name__}: {error}", remedy=remedy)
        said.put(error if isinstance(error, SGLError) else told)
    except KeyboardInterrupt:  # the run's own process says that, too
        pass
