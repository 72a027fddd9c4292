"""The deployments: each model in processes of its own, in which its half of the road is taken."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
import torch
from PIL import Image
from ray import serve

from sgl_engine import AnswerScores, EngineConfig, Request, Response, SGLEngine
from sgl_engine.cascade import (
    Begun,
    Road,
    begin_answer,
    begin_scores,
    escalate_answer,
    escalate_scores,
    keep_answer,
    keep_scores,
    load_pictures,
)
from sgl_engine.chat.tool_stream import Delta
from sgl_engine.cluster.gateway import Gateway, api_key
from sgl_engine.cluster.models import Size, engine_config, load, sketch
from sgl_engine.cluster.parcels import BEGUN, Failed, Half, Handed, Parcel, unpack
from sgl_engine.cluster.scaling import scale
from sgl_engine.cluster.settings import ClusterSettings, read_settings
from sgl_engine.finished import Pair, ScoringTurn, SmallTurn, Wish
from sgl_engine.report.clock import Clock
from sgl_engine.server import ServerSettings
from sgl_engine.serving.job import finish
from sgl_engine.serving.scheduler import drive


class HalfEngine(SGLEngine):
    """An engine on one model with weights, and one without them."""

    def configured(self, config: EngineConfig | None) -> HalfEngine:
        """This engine with a request's own settings; None are its own."""
        return self if config is None else self.with_config(config)  # type: ignore[return-value]  # a copy

    def begin(self, request: Request, answers: tuple[str, ...] | None) -> Iterator[Any]:
        """Takes a request as far as the small model can: yields ``BEGUN``, then the ``Half``."""
        [ticket] = self._admit([request])
        with ticket:
            yield BEGUN
            road = _small_half(self._pair, ticket.request, answers)
            yield finish(drive(self._scheduler, ticket, road))

    def go_on(
        self, request: Request, handed: Handed, answers: tuple[str, ...] | None
    ) -> Iterator[str | Delta | Response | AnswerScores]:
        """Takes a request on from the small model's turn: yields ``BEGUN``, deltas, then the result."""
        [ticket] = self._admit([request])
        with ticket:
            yield BEGUN
            road = _large_half(self._pair, ticket.request, handed, answers)
            events: Generator[Any, None, Any] = drive(self._scheduler, ticket, road)
            yield (yield from events)


def _small_half(pair: Pair, request: Request, answers: tuple[str, ...] | None) -> Road[Half]:
    clock = Clock()
    if answers is not None:
        wish, run = yield from begin_scores(pair, request, answers, clock)
        scores, decision = keep_scores(pair, run, clock), run.turn.decision
        if decision.exit:
            return Half(decision, scores, (), None)
        handed = hand_over(wish, run.turn, clock.stage_ms())
        return Half(decision, scores if _keeps(pair) else None, (), handed)
    begun = yield from begin_answer(pair, request, clock)
    turn, decision = begun.run.turn, begun.run.turn.decision
    if decision.exit:
        response, deltas = _kept(pair, begun, clock)
        return Half(decision, response, deltas, None)
    handed = hand_over(begun.run.wish, turn, clock.stage_ms())
    if not _keeps(pair):
        return Half(decision, None, (), handed)
    response, deltas = _kept(pair, begun, clock)
    return Half(decision, response, deltas, handed)


def _keeps(pair: Pair) -> bool:
    return pair.config.on_large_error == "keep"


def _kept(pair: Pair, begun: Begun, clock: Clock) -> tuple[Response, tuple[Delta, ...]]:
    """The small answer as if it were kept: its pieces come at once, as it is whole."""
    rest: Generator[Any, Any, Response] = keep_answer(pair, begun, clock)
    deltas: list[Delta] = []
    while True:
        try:
            deltas.append(next(rest))
        except StopIteration as end:
            return end.value, tuple(deltas)


def _large_half(
    pair: Pair, request: Request, handed: Handed, answers: tuple[str, ...] | None
) -> Road[Response | AnswerScores]:
    clock = Clock(handed.stage_ms)
    if answers is not None:
        request = replace(request, max_reasoning_tokens=0)  # as in the other half
    wish, turn = _taken_over(handed, load_pictures(pair, request)), handed.turn
    if isinstance(turn, SmallTurn):
        return (yield from escalate_answer(pair, wish, turn, clock))
    assert isinstance(turn, ScoringTurn)
    assert answers is not None, "scores are of given answers"
    return (yield from escalate_scores(pair, wish, answers, turn, clock))


def hand_over(wish: Wish, turn: SmallTurn | ScoringTurn, stage_ms: Mapping[str, float]) -> Handed:
    """What of a turn the large model's half looks at: of an answer its tokens, and none of their logits."""
    if isinstance(turn, SmallTurn):
        said = turn.generation.answer
        none = torch.empty(0)
        ids = said.token_ids.clone()  # what a part is a view of would go with it
        bare = replace(said, token_ids=ids, logprobs=none, entropies=none, likeliest=(), reasoning="")
        turn = replace(turn, generation=bare)
    decoding = replace(wish.decoding, deadline=None, cancel=None)
    stages = {name: ms for name, ms in stage_ms.items() if name not in {"queue", "total"}}
    return Handed(turn, decoding, wish.max_new_tokens, stages)


def _taken_over(handed: Handed, request: Request) -> Wish:
    """What is asked for, with the request as it arrived here."""
    decoding = replace(handed.decoding, deadline=request.deadline, cancel=request.cancel)
    return Wish(request, decoding, handed.max_new_tokens)


class ModelReplica:
    """A process that holds one of the models, and takes that model's half of the road.

    Args:
        settings: The cluster's.
        side: Which model.
    """

    def __init__(self, settings: ClusterSettings, side: Size) -> None:
        small = (load if side == "small" else sketch)(settings.small, "small")
        large = (load if side == "large" else sketch)(settings.large, "large")
        own = small if side == "small" else large
        # Weights that cannot run fail now, and not with the first request.
        with SGLEngine(own, own, EngineConfig().escalating("never")) as alone:
            alone.run(Request.ask("?", Image.new("RGB", (64, 64), "grey"), max_new_tokens=1))
        self._engine = HalfEngine(small, large, engine_config(settings))

    async def begin(self, parcel: Parcel) -> AsyncIterator[Any]:
        """The small model's half."""
        async for piece in self._run(parcel, lambda engine, request: engine.begin(request, parcel.answers)):
            yield piece

    async def go_on(self, parcel: Parcel, handed: Handed) -> AsyncIterator[Any]:
        """The large model's half."""
        async for piece in self._run(
            parcel, lambda engine, request: engine.go_on(request, handed, parcel.answers)
        ):
            yield piece

    async def _run(
        self, parcel: Parcel, take: Callable[[HalfEngine, Request], Iterator[Any]]
    ) -> AsyncIterator[Any]:
        cancel = threading.Event()
        references: list[Any] = [part.source for part in parcel.request.images]
        sources = dict(zip(references, await asyncio.gather(*references), strict=True))
        request = unpack(parcel, sources, cancel)
        steps = take(self._engine.configured(parcel.config), request)
        async for piece in _in_thread(steps, cancel):
            yield piece


_END = object()


async def _in_thread(steps: Iterator[Any], cancel: threading.Event) -> AsyncIterator[Any]:
    """What an iterator yields in a thread of its own; an error comes as ``Failed``, last.

    Args:
        steps: Runs until it has ended, or finds ``cancel`` set.
        cancel: Set once nobody reads on.
    """
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def tell(piece: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process ends, and nobody reads on
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def run() -> None:
        try:
            for piece in steps:
                tell(piece)
        except Exception as error:  # noqa: BLE001  # whatever it is, whoever asked has to know
            tell(Failed(error.with_traceback(None)))
        tell(_END)

    threading.Thread(target=run, name="sgl-half", daemon=True).start()
    try:
        while (piece := await pieces.get()) is not _END:
            yield piece
    finally:
        cancel.set()


def build_app(settings: ClusterSettings | Mapping[str, Any] | None = None) -> serve.Application:
    """Makes the application, for ``serve.run``, ``serve run sgl_engine.cluster:build_app`` and YAML.

    Args:
        settings: The cluster's, or the same as plain data; None is ``ClusterSettings()``.

    Raises:
        ConfigError: They are none.
    """
    settings = read_settings(settings or {})
    engine_config(settings)  # refuses what no replica would take
    small, large = (
        serve.deployment(
            name=side,
            max_ongoing_requests=replicas.slots,
            max_queued_requests=replicas.queue,
            ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
            **scale(replicas),
        )(ModelReplica).bind(settings, side)
        for side, replicas in (("small", settings.small_replicas), ("large", settings.large_replicas))
    )
    gateway = serve.deployment(
        name="gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=settings.engine.scheduler.max_queue + 64,  # the app itself says that it is full
        ray_actor_options={"num_cpus": settings.gateway_cpus},
    )(Gateway)
    return gateway.bind(settings, small, large)


def serve_cluster(
    settings: ClusterSettings, *, host: str = "127.0.0.1", port: int = 8000, address: str | None = None
) -> None:
    """Serves until a signal ends it.

    Args:
        settings: The cluster's.
        host: Where to listen.
        port: The same.
        address: Of a Ray cluster; None starts one on this machine, which ends with the call.

    Raises:
        ConfigError: Others could reach it, and it asks for no key.
        ModelError: A model's configuration or processor cannot be used.
    """
    ServerSettings(api_key=api_key(settings)).check_host(host)
    # What is wrong with a model's files is said here, and not in a replica's log.
    sketch(settings.small, "small")
    sketch(settings.large, "large")
    settings = settings.model_copy(update={"api_key": api_key(settings)})
    ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
    is_up, ended = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        ended.set()
        if not is_up.is_set():  # nothing is under way, and nobody waits for the event yet
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)  # Ray's own would print a stack, and abort
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(build_app(settings), name="sgl")
        is_up.set()
        ended.wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
