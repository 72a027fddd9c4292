"""A hosted model's station on the road: asked, its answer passed on, its failures told apart."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_engine.chat.tool_stream import Delta
from sgl_engine.config import Price
from sgl_engine.errors import ConfigError, EngineClosedError, RequestError, SGLError
from sgl_engine.hosted.model import HostedAnswer, HostedCall, HostedModel
from sgl_engine.request import check_wanted
from sgl_engine.serving.job import Job, StepResults, Work


@dataclass(frozen=True, eq=False)
class HostedPass:
    """A hosted model's turn.

    Attributes:
        answer: What it answered.
        stage_ms: Milliseconds up to the first piece of the answer, and from there on.
    """

    answer: HostedAnswer
    stage_ms: dict[str, float]


def hosted_work(model: HostedModel, call: HostedCall) -> Work:
    """Makes work of a question to a hosted model; its outcome is a ``HostedPass``."""

    def run(given: Sequence[Any]) -> StepResults:
        [asked] = given
        began = first = time.perf_counter()
        pieces = model.stream(asked)
        try:
            while True:
                piece = next(pieces)
                first = time.perf_counter() if first == began else first
                yield [(0, piece)]
                # Whoever waits for pieces looks up only where none come: of a fast answer, each is looked at.
                check_wanted(asked.request, f"while {model.name} answered")
        except StopIteration as end:
            answer: HostedAnswer = end.value
        finally:
            pieces.close()
        now = time.perf_counter()
        waited = (first if first != began else now) - began
        yield [(0, HostedPass(answer, {"wait": 1e3 * waited, "generate": 1e3 * (now - began - waited)}))]

    return Work("hosted", call, run, None, 0, is_remote=True)


def ask(work: Work, *, hold_back: bool) -> Generator[Work | Delta, Job | None, Any]:
    """Hands work of another machine over, and yields the answer's pieces; returns the outcome.

    Args:
        work: Whose pieces are deltas (``hosted_work``).
        hold_back: Whether the pieces wait until the answer is whole: it may yet fail, and then another answer
            is shown in its place.
    """
    job = yield work
    assert job is not None, "the driver answers work with a job"
    pieces: Generator[Delta, None, Any] = job.pieces()
    if not hold_back:
        return (yield from pieces)
    held: list[Delta] = []
    while True:
        try:
            held.append(next(pieces))
        except StopIteration as end:
            outcome = end.value
            break
    yield from held
    return outcome


def describe_failure(error: Exception) -> str | None:
    """What a report says of a hosted model's failure; None where the request failed, and not the model.

    Errors of other libraries are only named: what they say may hold a key.
    """
    if isinstance(error, (RequestError, EngineClosedError)):
        return None
    kind = type(error).__name__
    return f"{kind}: {error.problem}" if isinstance(error, SGLError) else kind


def check_prices(prices: Mapping[str, Price], *names: str) -> None:
    """Refuses prices of which none is of these models: a name that is misspelt would cost nothing.

    Raises:
        ConfigError: It names both.
    """
    if prices and not prices.keys() & set(names):
        raise ConfigError(
            f"Prices are given for {', '.join(prices)}; the models are {' and '.join(names)}.",
            remedy="Give prices by the names that reports call the models.",
        )


def not_here(model: HostedModel) -> ConfigError:
    """Makes the error for what looks into a large model that is on another machine."""
    return ConfigError(
        f"The large model, {model.name}, is a hosted one: nothing of it is here.",
        remedy="Use SGLEngine.hosted, or an engine whose large model is loaded here.",
    )


def cannot_score(model: HostedModel) -> ConfigError:
    """Makes the error for a request that scores given answers."""
    return ConfigError(
        f"{model.name} is a hosted model, which cannot score given answers.",
        remedy="Generate an answer, or use an engine whose large model is loaded here.",
    )
