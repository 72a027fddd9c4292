"""Answers rows on many machines, by Ray Data: the small model sees all of them, the large one the rest.

    row numbers -> SmallStage: small pass, decision -> LargeStage: guided large pass, of escalated rows

Each stage is a pool of actors with an engine of its own, whose other model is a sketch, as in
``sgl_engine.cluster``: its shapes and processor are there, its weights are not. What crosses of an escalated
row are its pictures, as the small stage has read them, and what the small pass has found: answer, parts of
the score, map. The large stage takes the request along the same road with that in the small pass's place.
Rows are read where they are asked, so the input has to lie where every machine can read it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sgl_engine import VLM, ConfigError, EngineConfig, EngineError, Request, Response, SGLEngine
from sgl_engine.batch.forms import Json, RowForm, Written, check_row_error
from sgl_engine.batch.inputs import Rows
from sgl_engine.cluster.models import engine_config, load, sketch
from sgl_engine.cluster.settings import ClusterSettings
from sgl_engine.evaluation.optional import extra
from sgl_engine.passes import Asked, SmallPassResult, run_small

Columns = dict[str, Any]
"""Column -> values, as Ray Data gives and takes batches."""

_ACTOR_CPUS = 0.5  # so that two of each fit on two cores; torch takes what there is


@dataclass(frozen=True)
class Actors:
    """How many processes hold each model, and how many GPUs each of them has."""

    small: int = 1
    large: int = 1
    gpus: float = 0.0


@dataclass(frozen=True, eq=False)
class _Carried:
    """What an escalated row takes from one stage to the next.

    Attributes:
        head: Of the row.
        config: The configuration that the row wants.
        request: Its pictures loaded.
        small: What the small model has found.
    """

    head: Json
    config: EngineConfig
    request: Request
    small: SmallPassResult


class _Held:
    """A request's ``may_escalate``: keeps the small answer, and notes whether it would not have been kept."""

    def __init__(self) -> None:
        self.escalates = False
        self.found: tuple[Request, SmallPassResult] | None = None

    def __call__(self) -> bool:
        self.escalates = True
        return False

    def carried(self, head: Json, config: EngineConfig) -> _Carried:
        """All that the large stage needs; what belongs to this process alone is left out."""
        assert self.found is not None, "a row is decided on after its small pass"
        request, small = self.found
        return _Carried(head, config, replace(request, cancel=None, may_escalate=None, deadline=None), small)


class _Given:
    """A request's ``may_escalate``: brings what the small model has found."""

    def __init__(self, small: SmallPassResult) -> None:
        self.small = small

    def __call__(self) -> bool:
        return True


def _small_pass(vlm: VLM, asked: Sequence[Asked], **settings: Any) -> Sequence[SmallPassResult | Exception]:
    """Runs the small model, and leaves what it finds where the stage looks for it."""
    results = run_small(vlm, asked, **settings)
    for each, result in zip(asked, results, strict=True):
        if isinstance(each.request.may_escalate, _Held) and isinstance(result, SmallPassResult):
            each.request.may_escalate.found = each.request, result
    return results


def _given_pass(vlm: VLM, asked: Sequence[Asked], **_: Any) -> list[SmallPassResult | Exception]:
    """Takes the small pass's place: the small stage has run it."""
    del vlm
    given = [each.request.may_escalate for each in asked]
    return [each.small for each in given if isinstance(each, _Given)]


class SmallStage:
    """An actor with the small model: answers rows, or finds what the large model needs.

    Args:
        pair: The models, and the engine's settings.
        rows: All rows; it reads those whose numbers it is given.
        form: What they are.
    """

    def __init__(self, pair: ClusterSettings, rows: Rows, form: RowForm) -> None:
        small, large = load(pair.small, "small"), sketch(pair.large, "large")
        self._engine = SGLEngine(small, large, engine_config(pair), small_pass=_small_pass)
        self._rows, self._form = rows, form

    def __call__(self, batch: Columns) -> Columns:
        """Row numbers (``data``) -> lines and reports, or what is carried on."""
        return _columns([_end(self._form, *asked) for asked in [self._ask(int(n)) for n in batch["data"]]])

    def _ask(self, number: int) -> tuple[Json, EngineConfig, _Held, Future[Response] | Exception]:
        held, config = _Held(), self._engine.config
        row = self._rows[number]
        head = self._form.head(number, row)
        try:
            chosen, request = self._form.request(self._engine, head, row)
            return head, chosen.config, held, chosen.submit(replace(request, may_escalate=held))
        except Exception as error:  # noqa: BLE001  # whatever a row holds, the others go on
            return head, config, held, error


class LargeStage:
    """An actor with the large model: answers the rows that the small stage has not.

    Args:
        pair: The models, and the engine's settings.
        form: What the rows are.
    """

    def __init__(self, pair: ClusterSettings, form: RowForm) -> None:
        # A neutral question is asked where the large model's tokens are chosen.
        self._has_small = pair.engine.pruning.neutral
        small = (load if self._has_small else sketch)(pair.small, "small")
        large = load(pair.large, "large")
        self._engine = SGLEngine(small, large, engine_config(pair), small_pass=_given_pass)
        self._form = form

    def __call__(self, batch: Columns) -> Columns:
        """What is carried -> lines and reports; rows that have theirs pass through."""
        asked = {at: self._ask(pickle.loads(each)) for at, each in enumerate(batch["carried"]) if each}  # noqa: S301  # from the stage before
        ended = {at: _end(self._form, *each) for at, each in asked.items()}
        known = zip(*(batch[name] for name in _NAMES), strict=True)
        return _columns([ended.get(at) or tuple(row) for at, row in enumerate(known)])

    def _ask(self, carried: _Carried) -> tuple[Json, EngineConfig, None, Future[Response] | Exception]:
        try:
            engine = self._engine_for(carried.config)
            request = replace(carried.request, may_escalate=_Given(carried.small))
            return carried.head, carried.config, None, engine.submit(request)
        except Exception as error:  # noqa: BLE001  # the same
            return carried.head, carried.config, None, error

    def _engine_for(self, config: EngineConfig) -> SGLEngine:
        if config.pruning.neutral and not self._has_small:
            raise ConfigError(
                "The row wants a neutral question, for which the second stage needs the small model.",
                remedy="Give --neutral to the whole run.",
            )
        return self._engine.with_config(config)


_NAMES = ("line", "report", "failed", "escalated", "carried")


def _columns(rows: Sequence[tuple[Any, ...]]) -> Columns:
    return {name: [row[at] for row in rows] for at, name in enumerate(_NAMES)}


def _end(
    form: RowForm, head: Json, config: EngineConfig, held: _Held | None, outcome: Future[Response] | Exception
) -> tuple[Any, ...]:
    """Waits for one row: what is written about it, or what is carried on, by ``_NAMES``."""
    if isinstance(outcome, Future):
        try:
            response = outcome.result()
            is_carried = held is not None and held.escalates
            written = Written(b"") if is_carried else form.answered(head, response)
            carried = pickle.dumps(held.carried(head, config)) if held is not None and is_carried else b""
        except Exception as error:  # noqa: BLE001  # the same
            outcome = error
        else:
            return written.line, written.report or b"", False, written.escalated, carried
    written = form.failed(head, check_row_error(outcome, f"row {head['row']}"))
    return written.line, b"", True, False, b""


def answer_on_ray(
    pair: ClusterSettings, rows: Rows, form: RowForm, start: int, actors: Actors
) -> Iterator[Written]:
    """As ``answer_rows``, on the Ray cluster that there is, or on this machine.

    Args:
        pair: The models, and the engine's settings; what else it says is of servers.
        rows: What is asked.
        form: What the rows are.
        start: Rows before it are left out.
        actors: How many machines' worth of each model.

    Raises:
        ConfigError: Ray is not installed, or a calibration is named.
        EngineError: Ray, or an actor, cannot go on.
    """
    size = engine_config(pair).scheduler.max_batch_size
    with _data() as data:
        # Blocks that are there already: reading tasks would need a core of their own.
        starts = range(start, len(rows), size)
        numbers = data.from_numpy([np.arange(at, min(at + size, len(rows))) for at in starts])
        shared: Mapping[str, Any] = {
            "batch_size": size,
            "num_cpus": _ACTOR_CPUS,
            "num_gpus": actors.gpus,
        }
        small = numbers.map_batches(
            SmallStage,
            fn_constructor_args=(pair, rows, form),
            compute=data.ActorPoolStrategy(size=actors.small),
            **shared,
        )
        large = small.map_batches(
            LargeStage,
            fn_constructor_args=(pair, form),
            compute=data.ActorPoolStrategy(size=actors.large),
            **shared,
        )
        for row in large.iter_rows():
            yield Written(row["line"], row["report"] or None, row["failed"], row["escalated"])


@contextmanager
def _data() -> Iterator[Any]:
    """Ray Data, told to keep the order of rows, which it need not otherwise."""
    try:
        ray, data = extra("ray", "cluster"), extra("ray.data", "cluster")
    except ConfigError as error:
        raise ConfigError(error.problem, remedy='pip install "langchain-sgl[cluster]"') from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    context = data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield data
    except ray.exceptions.RayError as error:
        said = str(error).strip().rpartition("\n")[2]
        raise EngineError(
            f"Ray cannot go on ({said}).", remedy="Its logs say more; the same command goes on from here."
        ) from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
