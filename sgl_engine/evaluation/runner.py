"""Rows through every system, one after the other; each is recorded when it is done, and never twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sgl_engine import ConfigError, SGLEngine
from sgl_engine.evaluation.dataset import Data
from sgl_engine.evaluation.records import BenchRecord
from sgl_engine.evaluation.store import BenchModel, Manifest, Store
from sgl_engine.evaluation.studies import STUDIES
from sgl_engine.evaluation.systems import Systems, measure
from sgl_engine.report import engine_version


def manifest(engine: SGLEngine, data: Data, systems: Systems) -> Manifest:
    """Describes what a run's records depend on: not the number of rows, nor how many passes run at once."""
    exit_config = engine.config.exit
    return Manifest(
        engine_version=engine_version(),
        small=BenchModel.of(engine.small),
        large=BenchModel.of(engine.large),
        data=data.identity,
        settings={
            "points": {name: point.model_dump() for name, point in systems.points.items()},
            "rankers": list(systems.rankers),
            "studies": list(STUDIES),
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
        """Lists rows without an outcome, in order; rows that failed are tried again."""
        known = self.store.records()
        return [row for row in range(len(self.data)) if row not in known or known[row].error is not None]

    def run(self) -> Iterator[BenchRecord]:
        """Measures what is pending; yields each record once it is kept. A bad row never ends the run."""
        pending = self.pending()
        if pending:
            self._warm_up(pending[0])
        for index in pending:
            record = self._attempt(index)
            self.store.append(record)
            yield record

    def _warm_up(self, index: int) -> None:
        """Measures a row and forgets it: first passes take longer, and settings that cannot work show here.

        Raises:
            ConfigError: They cannot: every row would fail alike.
        """
        try:
            measure(self.engine, self.data[index], self.systems)
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001, S110 - recorded when the row's turn comes
            pass

    def _attempt(self, index: int) -> BenchRecord:
        sample = self.data[index]
        try:
            return BenchRecord(row=sample.row, outcome=measure(self.engine, sample, self.systems))
        except Exception as error:  # noqa: BLE001 - whatever a model or a library throws, the next row goes on
            return BenchRecord(row=sample.row, error=f"{type(error).__name__}: {error}")
