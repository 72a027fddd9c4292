"""What goes from machine to machine: a request, the small model's turn, and what comes of both.

Pictures lie in Ray's object store, put there once by the gateway; requests only refer to them. A deadline
goes as the seconds that are left, since clocks differ; what a function or an event is stays where it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from sgl_engine.config import EngineConfig
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Decoding, ImagePart, Request

if TYPE_CHECKING:
    from sgl_engine.chat.tool_stream import Delta
    from sgl_engine.exit.decision import ExitDecision
    from sgl_engine.finished import ScoringTurn, SmallTurn
    from sgl_engine.response import AnswerScores, Response

Put: TypeAlias = Callable[[Any], Any]
"""Keeps an object for the other machines; returns a reference to it."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """A request on its way.

    Attributes:
        request: Sources of its images are references; what is only meant here is left out.
        left_s: Seconds until its deadline.
        config: The engine's settings for it; None are those that the cluster was started with.
        answers: What is to be scored; None where an answer is to be written.
    """

    request: Request
    left_s: float | None
    config: EngineConfig | None = None
    answers: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Handed:
    """What the large model's half of the road is given of the small one's.

    Attributes:
        turn: The small model's.
        decoding: How the answer's tokens are chosen.
        max_new_tokens: How many.
        stage_ms: Milliseconds of the stages that are over.
    """

    turn: SmallTurn | ScoringTurn
    decoding: Decoding
    max_new_tokens: int
    stage_ms: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Half:
    """What the small model's half has come to.

    Attributes:
        decision: Whether its answer is kept.
        result: The answer, or the scores; None where the large model is to be asked, and nothing is kept if
            it fails.
        deltas: The answer's pieces.
        handed: What the large model is given; None where it is not asked.
    """

    decision: ExitDecision
    result: Response | AnswerScores | None
    deltas: tuple[Delta, ...]
    handed: Handed | None


@dataclass(frozen=True, eq=False)
class Failed:
    """An error on its way: Ray would wrap one that is raised."""

    error: Exception


BEGUN = "begun"
"""The first thing that a replica says, once it has let a request in."""


def pack(
    request: Request,
    put: Put,
    *,
    config: EngineConfig | None = None,
    answers: tuple[str, ...] | None = None,
) -> Parcel:
    """Packs a request whose pictures are here (``prompt.images.read_sources``).

    Raises:
        InvalidRequestError: It holds a function, which cannot be sent.
    """
    if request.may_escalate is not None:
        raise InvalidRequestError(
            "The request's may_escalate is a function of this process, and a cluster decides elsewhere.",
            remedy='Leave it out, or use EngineConfig.escalating("never").',
        )
    sent = with_sources(request, put)
    return Parcel(replace(sent, deadline=None, cancel=None, origin=None), left_s(request), config, answers)


def left_s(request: Request) -> float | None:
    """Seconds until the deadline, now; None without one."""
    return None if request.deadline is None else request.deadline - time.monotonic()


def unpack(parcel: Parcel, sources: Mapping[Any, Any], cancel: threading.Event) -> Request:
    """The request, as it is here.

    Args:
        parcel: What has come.
        sources: What its references refer to.
        cancel: Set once it is not wanted any more.
    """
    deadline = None if parcel.left_s is None else time.monotonic() + parcel.left_s
    request = with_sources(parcel.request, sources.__getitem__)
    return replace(request, deadline=deadline, cancel=cancel)


def with_sources(request: Request, change: Callable[[Any], Any]) -> Request:
    """A request whose images have other sources."""
    messages = tuple(
        replace(
            message,
            content=tuple(
                replace(part, source=change(part.source)) if isinstance(part, ImagePart) else part
                for part in message.content
            ),
        )
        for message in request.messages
    )
    return replace(request, messages=messages)
