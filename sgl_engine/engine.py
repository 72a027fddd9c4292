"""Answers requests with a pair of models: ``SGLEngine`` drives each along the road (``cascade``)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeVar, Unpack

from sgl_engine import cascade
from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.cascade import AnswerEvent, Road
from sgl_engine.config import EngineConfig
from sgl_engine.exit.calibrated import ExitRule, exit_rule
from sgl_engine.exit.decision import ExitDecision, find_scorer
from sgl_engine.finished import Pair
from sgl_engine.hosted.model import HostedModel
from sgl_engine.hosted.station import check_prices, not_here
from sgl_engine.model.settings import LoadSettings, same_source, settings_of_each
from sgl_engine.model.siblings import Siblings
from sgl_engine.model.store import StoreInfo
from sgl_engine.model.vlm import VLM
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.passes.large import plan_large
from sgl_engine.passes.scored_texts import check_lists
from sgl_engine.passes.work import SmallPass, run_small
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.plan import PruningPlan
from sgl_engine.report.clock import Clock
from sgl_engine.request import Request
from sgl_engine.response import AnswerScores, Response, StreamEvent
from sgl_engine.serving.job import finish
from sgl_engine.serving.parts import run_in_parts
from sgl_engine.serving.scheduler import Scheduler, Ticket, drive

Result = TypeVar("Result")


class SGLEngine:
    """Answers requests with a pair of models; may be shared between threads.

    One worker runs the models for all requests, side by side where they can (``SchedulerConfig``), whichever
    method they came by; it starts with the first one. Requests are read, and answers decided on, in the
    callers' threads. Nothing of a request stays but what ``ReuseConfig`` keeps. A bad request fails alone.

    Args:
        small: Model that answers first, and guides.
        large: Model that answers when the small one is not sure, guided by it; ``OpenAIModel`` is hosted.
        config: The settings; None is ``EngineConfig()``.
        small_pass: Runs the small model; scripted engines have another than ``run_small``.

    Raises:
        UnsupportedModelError: A model's architecture has no family, and the engine does not run it exactly.
        ConfigError: The configuration names a scorer that does not exist, or a calibration that is of another
            pair or other settings, or certifies nothing at the risk that is asked for; or prices of others.
    """

    def __init__(
        self,
        small: VLM,
        large: VLM | HostedModel,
        config: EngineConfig | None = None,
        *,
        small_pass: SmallPass = run_small,
    ) -> None:
        self.small = small
        self._large = large
        self.config = config or EngineConfig()
        self._scheduler, self.small_pass = Scheduler(), small_pass
        self._beside: Siblings | None = None  # of a part of a list that is under way
        find_scorer(self.config.exit.scorer)
        for vlm, other in zip(self._local, reversed(self._local), strict=True):
            check_exactness(vlm)
            vlm.store.look_in(other.store)
        self._exit_rule = self._rule(self.config)

    def __repr__(self) -> str:
        return f"SGLEngine(small={self.small!r}, large={self._large!r})"

    @property
    def large(self) -> VLM:
        """The large model. Raises ConfigError where it is a hosted one."""
        if not isinstance(self._large, VLM):
            raise not_here(self._large)
        return self._large

    @property
    def hosted(self) -> HostedModel | None:
        """The large model where it is a hosted one."""
        return None if isinstance(self._large, VLM) else self._large

    @property
    def _local(self) -> list[VLM]:
        return [self.small] if self.hosted else [self.small, self.large]

    def _rule(self, config: EngineConfig) -> ExitRule | None:
        check_prices(config.prices, self.small.name, self._large.name)
        return exit_rule(self.small, None if self.hosted else self.large, config)

    @classmethod
    def from_pretrained(
        cls,
        small: str | Path,
        large: str | Path,
        config: EngineConfig | None = None,
        *,
        small_settings: LoadSettings | None = None,
        large_settings: LoadSettings | None = None,
        **settings: Unpack[LoadSettings],
    ) -> SGLEngine:
        """Loads both models; errors are those of ``VLM.from_pretrained``.

        One folder or hub id with the same settings is loaded once: one model, one store, in both places.

        Args:
            small: Folder or hub id of the small model.
            large: Folder or hub id of the large model.
            config: The settings of the engine; None is ``EngineConfig()``.
            small_settings: Of the small model alone, as {"device": "cuda:1"}; they count before ``settings``.
            large_settings: Of the large model alone.
            settings: Of both: dtype, device, ...; ``sgl_engine.model.LoadSettings`` describes them.
        """
        own = settings_of_each(settings, small_settings, large_settings)
        first = VLM.from_pretrained(small, **own[0])
        is_one = own[0] == own[1] and same_source(small, large)
        return cls(first, first if is_one else VLM.from_pretrained(large, **own[1]), config)

    def with_config(self, config: EngineConfig) -> SGLEngine:
        """Makes an engine on the same models with another configuration; costs nothing.

        ``engine.with_config(engine.config.escalating("always")).run(request)`` forces a route for one call.
        Both share one worker, so that their requests run side by side.

        Raises:
            ConfigError: The configuration names a scorer that does not exist.
        """
        find_scorer(config.exit.scorer)
        engine = copy.copy(self)
        engine.config, engine._exit_rule = config, self._rule(config)  # noqa: SLF001  # of this class
        return engine

    def close(self, *, wait: bool = True) -> None:
        """Takes no more requests, here and in engines made by ``with_config``; answers those under way.

        Closing is optional: an engine that is dropped ends its threads. As a context manager, it is closed at
        the end. A stream that nobody reads is not waited for, and fails when it is read on.

        Args:
            wait: Whether to return only when all is answered. A future's callback would wait for itself.
        """
        self._scheduler.close(wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, request: Request) -> Response:
        """Answers a request, and waits for the answer.

        Raises:
            RequestError: This request is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        [ticket] = self._admit([request])
        with ticket:
            return finish(self._events(ticket))

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Answers piece by piece: yields the ExitDecision, text and tool call deltas, then the Response.

        The decision comes first, so text of an overruled small answer is never shown. Closing the iterator,
        or setting the request's ``cancel`` from anywhere, stops generation within one token. The model does
        not wait for the iterator's reader.

        Raises:
            RequestError: This request is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        [ticket] = self._admit([request])
        with ticket:
            events = self._events(ticket)
            while True:
                try:
                    event: StreamEvent = next(events)
                except StopIteration as end:
                    event = end.value  # the response, which a for loop would drop
                with ticket.handed_over():  # a slow reader takes no place in the queue
                    yield event
                if isinstance(event, Response):
                    return

    def submit(self, request: Request) -> Future[Response]:
        """Answers a request in the background; nothing of it keeps the interpreter from ending.

        For asyncio: ``await asyncio.wrap_future(engine.submit(request))``.

        Returns:
            A future with the response, or the error that ``run`` would have raised. Cancelling it, at any
            time, stops generation within one token; so does the interpreter's end.

        Raises:
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        [ticket] = self._admit([request])

        def run() -> Response:
            with ticket:
                return finish(self._events(ticket))

        return self._scheduler.in_background(ticket, run)

    @property
    def _pair(self) -> Pair:
        beside = Siblings() if self._beside is None else self._beside
        return Pair(self.small, self._large, self.config, self._exit_rule, self.small_pass, beside)

    def _answer(self, ticket: Ticket) -> Road[Response]:
        return cascade.answer(self._pair, ticket.request, Clock())

    def _scored(self, answers: Sequence[str], ticket: Ticket) -> Road[AnswerScores]:
        return cascade.score(self._pair, ticket.request, answers, Clock())

    def _events(self, ticket: Ticket) -> Generator[AnswerEvent, None, Response]:
        return drive(self._scheduler, ticket, self._answer(ticket))

    def _admit(self, requests: Sequence[Request]) -> list[Ticket]:
        """Lets in as many of the requests as there is room for, in order; at least one, or it raises."""
        for vlm in self._local:
            vlm.check_not_mine()
        return self._scheduler.admit(requests, self.config.scheduler)

    def run_batch(
        self, requests: Sequence[Request], *, max_batch_size: int | None = None
    ) -> list[Response | Exception]:
        """Answers several requests: the small model all of them at once, then the large one what is left.

        Answers are the same as of single runs, but for rounding, where two tokens are equally likely. Each
        request keeps its own limits, deadline and form. Models that cannot be given padded prompts
        (``takes_padding``) answer one after the other. What has no room at once is answered in parts.

        Times in a report: time of work that requests do together is divided equally among them, so that all
        add up to what the batch took. "total" is how long a request was under way; "queue" is its rest.

        Args:
            requests: Requests of any kind, together.
            max_batch_size: Prompts that run side by side at most; None is the configuration's.

        Returns:
            In order, responses, or the errors that single runs would have raised.

        Raises:
            ConfigError: ``max_batch_size`` is below 1.
            EngineClosedError: The engine was closed.
        """
        size = max_batch_size
        engine = copy.copy(self if size is None else self.with_config(self.config.with_batch_size(size)))
        return engine._side_by_side(requests, [engine._answer] * len(requests))  # noqa: SLF001  # this class

    def _side_by_side(
        self, requests: Sequence[Request], roads: Sequence[Callable[[Ticket], Road[Result]]]
    ) -> list[Result | Exception]:
        """Takes them along their roads; of an engine that is this call's own."""

        def admit(rest: Sequence[Request]) -> list[Ticket]:
            self._beside = Siblings()  # of a part: its pictures and prompts are dropped with it
            return self._admit(rest)

        return run_in_parts(
            *(self._scheduler, admit, requests, roads),
            decision=ExitDecision,  # the small model runs all at once; each goes on to its decision
            ends=lambda decided: decided.exit,
        )

    def score_answers(
        self, request: Request, answers: Sequence[str], *, model: Literal["auto", "small", "large"] = "auto"
    ) -> AnswerScores:
        """Measures how likely each of ``answers`` is, instead of generating one.

        The small model scores first. It is sure enough when its best answer's share among the answers reaches
        the exit threshold; of a single answer with probability p, when max(p, 1 - p) reaches it. If not, the
        large model scores them, guided as it is when it answers.

        Args:
            request: What is asked. Its settings for generated answers, such as ``stop``, have no effect.
            answers: At least one; none of them empty.
            model: Whose scores are returned; "auto" goes by the exit configuration.

        Raises:
            RequestError: This request, or an answer, is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
            ConfigError: There is no such model.
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        [scores] = self.score_batch([request], [answers], model=model)
        if isinstance(scores, Exception):
            raise scores
        return scores

    def score_batch(
        self,
        requests: Sequence[Request],
        answers: Sequence[Sequence[str]],
        *,
        model: Literal["auto", "small", "large"] = "auto",
    ) -> list[AnswerScores | Exception]:
        """``score_answers`` for several requests at once, each with its own; scores, or errors, in order."""
        engine = copy.copy(self)
        engine.config = self.config if model == "auto" else self.config.scored_by(model)
        roads = [partial(engine._scored, each) for each in answers]  # noqa: SLF001  # of this class
        check_lists(len(roads), len(requests))
        return engine._side_by_side(requests, roads)  # noqa: SLF001  # of this class

    def cache_info(self) -> Mapping[str, StoreInfo]:
        """Returns what the stores of "small" and "large" hold, and how often it helped (``ReuseConfig``)."""
        return {side: vlm.store.info() for side, vlm in zip(("small", "large"), self._local, strict=False)}

    def load(self) -> Mapping[str, int]:
        """Counts requests "under_way", passes "running", and those "waiting_small" and "waiting_large"."""
        return self._scheduler.load()

    def count_tokens(self, request: Request) -> int:
        """Counts prompt tokens, visual ones included, as the large model reads it; for a hosted, the small.

        Raises:
            RequestError: This request is bad.
        """
        pictures = self.config.small_pictures if self.hosted else self.config.large_pictures
        return len(self._local[-1].encode(request, self.config.limits, self.config.reuse, pictures))

    def plan(self, prompt: EncodedPrompt, importance: ImportanceMap | None) -> PruningPlan:
        """Plans which tiles and tokens of ``prompt`` the large model sees, as the configuration says.

        Args:
            prompt: The prompt that is pruned.
            importance: The small model's map; None, as for a request without images, keeps everything.

        Raises:
            IncompatiblePairError: The map cannot be carried onto the prompt (``ImportanceMap.resample``).
        """
        return plan_large(self.large, prompt, importance, self.config.pruning)
