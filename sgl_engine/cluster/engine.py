"""The gateway's engine: it has no weights, and sends each half of the road to the deployment of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sgl_engine import VLM, AnswerScores, EngineConfig, Request, Response, SGLEngine
from sgl_engine.cluster.link import Link
from sgl_engine.cluster.parcels import Half, Put, left_s, pack, with_sources
from sgl_engine.cluster.settings import check_engine
from sgl_engine.hosted.station import ask, describe_failure
from sgl_engine.passes.scored_texts import check_answers
from sgl_engine.prompt.images import read_source
from sgl_engine.prompt.texts import check_fields
from sgl_engine.report.clock import Clock
from sgl_engine.report.spans import watched
from sgl_engine.request import check_wanted
from sgl_engine.serving.scheduler import Ticket

if TYPE_CHECKING:
    from sgl_engine.cascade import Road


@dataclass(frozen=True, eq=False)
class Links:
    """The way to both deployments.

    Attributes:
        small: To the small model's.
        large: To the large model's.
        put: Keeps a picture for them; returns a reference.
    """

    small: Link
    large: Link
    put: Put


@dataclass(frozen=True, eq=False)
class Party:
    """What the cluster's road knows, as ``finished.Pair`` is what the road of one process knows.

    Attributes:
        small: The small model, without weights.
        large: The large model, without weights.
        config: The engine's settings.
        sent: The same where a deployment does not have them; None where it does.
        links: The way to both.
    """

    small: VLM
    large: VLM
    config: EngineConfig
    sent: EngineConfig | None
    links: Links

    @property
    def local(self) -> VLM:
        """The large model, of which spans only tell that it is no other provider's."""
        return self.large


class ClusterEngine(SGLEngine):
    """An engine whose models run in deployments of their own; everything that it answers is theirs.

    Args:
        small: The small model, without weights.
        large: The large model, without weights.
        config: The settings that the deployments were started with.
        links: The way to them.
    """

    def __init__(self, small: VLM, large: VLM, config: EngineConfig, links: Links) -> None:
        super().__init__(small, large, config)
        self._deployed, self._links = config, links

    def with_config(self, config: EngineConfig) -> SGLEngine:
        """As of any engine; calibrations are refused."""
        check_engine(config)
        return super().with_config(config)

    def load(self) -> Mapping[str, int]:
        """As of any engine: "running" and "waiting" count calls of the deployments, by this gateway."""
        small, large = self._links.small.load(), self._links.large.load()
        return {
            "under_way": super().load()["under_way"],
            "running": small[0] + large[0],
            "waiting_small": small[1],
            "waiting_large": large[1],
        }

    @property
    def _party(self) -> Party:
        sent = None if self.config == self._deployed else self.config
        return Party(self.small, self.large, self.config, sent, self._links)

    def _answer(self, ticket: Ticket) -> Road[Response]:
        return answer(self._party, ticket.request, Clock())

    def _scored(self, answers: Sequence[str], ticket: Ticket) -> Road[AnswerScores]:
        return score(self._party, ticket.request, answers, Clock())


@watched
def answer(party: Party, request: Request, clock: Clock) -> Road[Response]:
    """The road of an answer, as ``cascade.answer``: its halves are taken elsewhere."""
    response: Response = yield from _both_halves(party, request, None, clock)
    return response


@watched
def score(party: Party, request: Request, answers: Sequence[str], clock: Clock) -> Road[AnswerScores]:
    """The road of scores, as ``cascade.score``."""
    scores: AnswerScores = yield from _both_halves(party, request, tuple(check_answers(answers)), clock)
    return scores


def _both_halves(party: Party, request: Request, answers: tuple[str, ...] | None, clock: Clock) -> Road[Any]:
    check_fields(request)
    limits, links = party.config.limits, party.links
    wanted = partial(check_wanted, request, "while its images were loaded")
    # One reference for each picture: neither model's machine is sent it twice.
    here = with_sources(request, lambda source: read_source(source, limits, wanted))
    parcel = pack(here, links.put, config=party.sent, answers=answers)
    job = yield links.small.work(request, "begin", parcel)
    assert job is not None, "the driver answers work with a job"
    half: Half = job.result()
    yield half.decision
    if half.handed is None:
        yield from half.deltas
        return _timed(half.result, clock)
    keeps = party.config.on_large_error == "keep"
    try:
        parcel = replace(parcel, left_s=left_s(request))  # the first half took some of it
        work = links.large.work(request, "go_on", parcel, half.handed)
        result = yield from ask(work, hold_back=keeps)
    except Exception as error:
        failure = describe_failure(error)
        if failure is None or not keeps:
            raise
        yield from half.deltas
        return _timed(half.result, clock, large_error=failure, escalated=True)
    return _timed(result, clock)


def _timed(result: Any, clock: Clock, **changes: Any) -> Any:
    """A result whose report counts the time of all machines: what is no stage of theirs was waiting."""
    report = result.report
    stages = {name: ms for name, ms in report.stage_ms.items() if name not in {"queue", "total"}}
    total = clock.stage_ms()["total"]
    stages |= {"queue": max(0.0, total - sum(stages.values())), "total": total}
    return replace(result, report=report.model_copy(update={"stage_ms": stages, **changes}))
