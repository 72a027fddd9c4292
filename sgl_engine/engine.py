"""SGLEngine: small model, early exit, pruned large model; the only place that knows the order of the steps.

request -> images -> small pass -> exit? -+-> the small answer
                                          +-> plan -> large pass -> the large answer
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.cascade import hold_to_form, resolve
from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.config import EngineConfig, ExitConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.decoding.draft import draft_tokens
from sgl_engine.decoding.reader import AnswerReader, read_stream
from sgl_engine.errors import ConfigError, EngineError, OverloadedError
from sgl_engine.exit.calibrated import exit_rule
from sgl_engine.exit.decision import decide_exit, permitted
from sgl_engine.exit.scorers import DEFAULT_SCORER, decision_confidence, find_scorer, score_parts
from sgl_engine.model.store import StoreInfo
from sgl_engine.model.vlm import VLM
from sgl_engine.passes.exactness import check_exactness
from sgl_engine.passes.large import pruned_from, stream_large_batch
from sgl_engine.passes.prefill import Attempts, sharing
from sgl_engine.passes.prefixes import shares_prefix
from sgl_engine.passes.scoring import run_scoring_pass
from sgl_engine.passes.small import SmallPassResult, run_small_batch
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.prompt.images import resolve_images
from sgl_engine.pruning.plan import PruningPlan, keep_everything, plan_pruning
from sgl_engine.report.make import (
    Asked,
    Clock,
    Run,
    ScoringRun,
    engine_version,
    scoring_report,
)
from sgl_engine.request import Request, check_wanted
from sgl_engine.response import AnswerScores, Response, StreamEvent, make_response
from sgl_engine.serving.job import StepResults, Work
from sgl_engine.serving.scheduler import Scheduler, Ticket

if TYPE_CHECKING:
    from typing import Self

    import torch


class SGLEngine:
    """Answers requests with a pair of models; may be shared between threads.

    However a request comes (``run``, ``stream``, ``run_batch``, ``submit``), one worker runs the models for
    all of them, side by side where they can (``SchedulerConfig``); it starts with the first request. What is
    asked is read, and answers are decided on, in the callers' threads. Nothing of a request stays in the
    engine or on the models; a bad request fails alone.

    Args:
        small: Answers first, and guides.
        large: Answers when the small one is not sure, seeing what the small one thought worth seeing.
        config: What can be set; None is ``EngineConfig()``.

    Raises:
        UnsupportedModelError: An architecture without a family, and the model is not run exactly.
        ConfigError: The configuration names a scorer that does not exist, or a calibration that is of another
            pair or other settings, or certifies nothing at the risk that is asked for.
    """

    def __init__(self, small: VLM, large: VLM, config: EngineConfig | None = None) -> None:
        self.small = small
        self.large = large
        self.config = config or EngineConfig()
        self._scheduler = Scheduler()
        find_scorer(self.config.exit.scorer)
        for vlm in (small, large):
            check_exactness(vlm)
        self._exit_rule = exit_rule(small, large, self.config)

    def __repr__(self) -> str:
        return f"SGLEngine(small={self.small!r}, large={self.large!r})"

    @classmethod
    def from_pretrained(
        cls,
        small: str | Path,
        large: str | Path,
        config: EngineConfig | None = None,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        small_revision: str | None = None,
        large_revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> SGLEngine:
        """Loads both models; see ``VLM.from_pretrained`` for arguments and errors."""
        models = [
            VLM.from_pretrained(
                name,
                dtype=dtype,
                device=device,
                device_map=device_map,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
            for name, revision in ((small, small_revision), (large, large_revision))
        ]
        return cls(models[0], models[1], config)

    def with_config(self, config: EngineConfig) -> SGLEngine:
        """An engine on the same models with another configuration; costs nothing.

        ``engine.with_config(engine.config.escalating("always")).run(request)`` forces a route for one call.
        Both share one worker, so that their requests run side by side.

        Raises:
            ConfigError: The configuration names a scorer that does not exist.
        """
        find_scorer(config.exit.scorer)
        engine = copy.copy(self)
        engine.config = config
        engine._exit_rule = exit_rule(self.small, self.large, config)  # noqa: SLF001  # of this class
        return engine

    def close(self, *, wait: bool = True) -> None:
        """Takes no more requests, here and in engines made by ``with_config``; answers those under way.

        An engine that is not needed any more need not be closed. As a context manager, it is closed at the
        end. A stream that nobody reads is not waited for, and fails when it is read on.

        Args:
            wait: Until all is answered. Not from a callback of a future, which would wait for itself.
        """
        self._scheduler.close(wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, request: Request) -> Response:
        """Answers.

        Raises:
            RequestError: This request is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        *_, last = self.stream(request)
        assert isinstance(last, Response)
        return last

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Answers piece by piece: the ExitDecision, text and tool call deltas, then the Response, last.

        The decision comes first, so text of an overruled small answer is never shown. Closing the iterator,
        or setting the request's ``cancel`` from anywhere, stops generation within one token. The model does
        not wait for its reader.

        Raises:
            RequestError: This request is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        [ticket] = self._admit([request])
        with ticket:
            for event in self._events(ticket):
                with ticket.handed_over():
                    yield event

    def submit(self, request: Request) -> Future[Response]:
        """Answers in the background.

        For asyncio: ``await asyncio.wrap_future(engine.submit(request))``.

        Returns:
            A future with the response, or the error that ``run`` would have raised. Cancelling it, at any
            time, stops generation within one token.

        Raises:
            OverloadedError: Too many requests are under way.
            EngineClosedError: The engine was closed.
        """
        [ticket] = self._admit([request])

        def answer() -> Response:
            with ticket:
                *_, last = self._events(ticket)
            assert isinstance(last, Response)
            return last

        return self._scheduler.in_background(ticket, answer)

    def _admit(self, requests: Sequence[Request]) -> list[Ticket]:
        for vlm in (self.small, self.large):
            if vlm.is_mine:
                raise EngineError(
                    f"This thread holds {vlm.name} exclusively, and so would wait for itself.",
                    remedy="Ask the engine outside of VLM.exclusive().",
                )
        return self._scheduler.admit(requests, self.config.scheduler)

    def _events(self, ticket: Ticket) -> Iterator[StreamEvent]:
        asked = self._ask_small(ticket.request, Clock())
        [job] = self._scheduler.put_small([ticket], [self._small_work(asked)])
        small = job.result()
        run = self._decide(asked, small)
        yield run.decision
        if run.decision.exit:
            yield from asked.reader.push(small.generation.text)
        else:
            asked, plan = self._ask_large(asked, run)
            [job] = self._scheduler.put_large([ticket], [self._large_work(asked, plan)])
            large = yield from read_stream(job.pieces(), asked.reader)
            asked.clock.add("large", large.stage_ms)
            run = replace(run, large_prompt=asked.task.prompt, large=large)
        held_back, answer = asked.reader.finish((run.large or small).generation)
        yield from held_back
        yield self._response(run, answer)

    def run_batch(
        self, requests: Sequence[Request], *, max_batch_size: int | None = None
    ) -> list[Response | Exception]:
        """Answers several requests: the small model all of them at once, then the large one what is left.

        Answers are those of single runs: the same, but for rounding, where two tokens are equally likely.
        Each request keeps its own limits, deadline, cancellation and form. Models that cannot be given padded
        prompts (``takes_padding``) answer one after the other. A list for which there is no room at once is
        answered in parts.

        Times in a report: work that requests share is shared out equally, so that stages add up to what the
        batch took; "total" is how long the caller waited, and "queue" what is between.

        Args:
            requests: In any mixture.
            max_batch_size: Prompts that run side by side at most; None is the configuration's.

        Returns:
            In order, a response, or the error that a single run would have raised.

        Raises:
            ConfigError: ``max_batch_size`` is below 1.
            EngineClosedError: The engine was closed.
        """
        engine = self if max_batch_size is None else self._with_batch_size(max_batch_size)
        outcomes: list[Response | Exception] = []
        while len(outcomes) < len(requests):
            rest = requests[len(outcomes) :]
            try:
                outcomes += engine._run_part(engine._admit(rest))  # noqa: SLF001  # of this class
            except OverloadedError as error:
                return [*outcomes, *(error for _ in rest)]
        return outcomes

    def _with_batch_size(self, max_batch_size: int) -> SGLEngine:
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}.", remedy="Use 1 or more.")
        scheduler = self.config.scheduler.model_copy(update={"max_batch_size": max_batch_size})
        return self.with_config(self.config.model_copy(update={"scheduler": scheduler}))

    def _run_part(self, tickets: Sequence[Ticket]) -> list[Response | Exception]:
        """Answers those who were let in together, step by step."""
        with ExitStack() as places:
            clocks = [Clock() for _ in tickets]
            for ticket in tickets:
                places.enter_context(ticket)
            attempts = Attempts()
            asked = attempts.each(
                lambda row: self._ask_small(tickets[row].request, clocks[row]), range(len(tickets))
            )
            works = [self._small_work(each) for each in asked.values()]
            jobs = dict(
                zip(asked, self._scheduler.put_small([tickets[row] for row in asked], works), strict=True)
            )
            small = attempts.each(lambda row: jobs[row].result(), jobs)
            runs = attempts.each(lambda row: self._decide(asked[row], small[row]), small)
            left = [row for row, run in runs.items() if not run.decision.exit]
            for row in set(range(len(tickets))).difference(left):
                tickets[row].done()
            aimed = attempts.each(lambda row: self._ask_large(asked[row], runs[row]), left)
            works = [self._large_work(*each) for each in aimed.values()]
            jobs = dict(
                zip(aimed, self._scheduler.put_large([tickets[row] for row in aimed], works), strict=True)
            )
            large = attempts.each(lambda row: jobs[row].result(), jobs)
            for row, result in large.items():
                asked[row] = aimed[row][0]
                clocks[row].add("large", result.stage_ms)
                runs[row] = replace(runs[row], large_prompt=asked[row].task.prompt, large=result)
            answered = [row for row in runs if row not in attempts.errors]
            return attempts.outcomes(attempts.each(lambda row: self._read(asked[row], runs[row]), answered))

    def _ask_small(self, request: Request, clock: Clock) -> Asked:
        clock.resume()
        max_new_tokens, decoding = resolve(request, self.config.generation)
        decoding = hold_to_form(request, decoding)
        request = resolve_images(request, self.config.limits)
        prompt = self.small.encode(request, self.config.limits, self.config.reuse)
        clock.lap("encode_small")
        reader = AnswerReader(self.small, request, prompt)
        task = AnswerTask(prompt, max_new_tokens, reader.suited(decoding))
        return Asked(request, clock, decoding, reader, task)

    def _decide(self, asked: Asked, small: SmallPassResult) -> Run:
        asked.clock.add("small", small.stage_ms)
        confidence, calibrated = score_parts(small.parts, self.config.exit.scorer), None
        if self._exit_rule is not None:
            limit, answer_tokens = asked.task.max_new_tokens, len(small.generation)
            calibrated = self._exit_rule.judge(
                asked.request, asked.decoding, limit, confidence, answer_tokens
            )
        decision = permitted(asked.request, decide_exit(confidence, self.config.exit, calibrated))
        return Run(asked.request, asked.clock, asked.task.prompt, small, decision)

    def _ask_large(self, asked: Asked, run: Run) -> tuple[Asked, PruningPlan]:
        asked.clock.resume()
        prompt = self.large.encode(asked.request, self.config.limits, self.config.reuse)
        plan = self.plan(prompt, run.small.importance)
        draft = self._draft(asked.request, run.small) if self.config.generation.draft else ()
        asked.clock.lap("encode_large")
        reader = AnswerReader(self.large, asked.request, prompt)
        task = replace(asked.task, prompt=prompt, decoding=reader.suited(asked.decoding), draft=draft)
        return replace(asked, reader=reader, task=task), plan

    def _draft(self, request: Request, small: SmallPassResult) -> tuple[int, ...]:
        waiting = partial(check_wanted, request, "while the large model was busy")
        return draft_tokens(self.small, self.large, small.generation.token_ids.tolist(), waiting)

    def _read(self, asked: Asked, run: Run) -> Response:
        generation = (run.large or run.small).generation
        asked.reader.push(generation.text)
        return self._response(run, asked.reader.finish(generation)[1])

    def score_answers(
        self, request: Request, answers: Sequence[str], *, model: Literal["auto", "small", "large"] = "auto"
    ) -> AnswerScores:
        """How likely each of ``answers`` is, instead of generating one.

        The small model scores first. It is sure enough when its best answer has at least the exit threshold's
        share among the answers; of a single answer with probability p, when max(p, 1 - p) reaches it. If not,
        the large model scores them, guided as it is when it answers.

        Args:
            request: What is asked. How it wants answers to be generated has no meaning here.
            answers: At least one; none of them empty.
            model: Whose scores are returned; "auto" goes by the exit configuration.

        Raises:
            RequestError: This request, or an answer, is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
            ConfigError: There is no such model.
        """
        clock = Clock()
        exit_config = self._exit_config(model)
        _, decoding = resolve(request, self.config.generation)
        request = resolve_images(request, self.config.limits)
        small_prompt = self.small.encode(request, self.config.limits, self.config.reuse)
        clock.lap("encode_small")
        guide = exit_config.escalate != "never"
        reuse = self.config.reuse
        small = run_scoring_pass(
            self.small, small_prompt, answers, guide=guide, decoding=decoding, reuse=reuse
        )
        clock.add("small", small.stage_ms)
        rule = self._exit_rule
        calibrated = None if rule is None else rule.uncovered("given answers are scored")
        decision = permitted(request, decide_exit(decision_confidence(small), exit_config, calibrated))
        run = ScoringRun(tuple(answers), decision, small_prompt, small)
        if not decision.exit:
            large_prompt = self.large.encode(request, self.config.limits, self.config.reuse)
            plan = self.plan(large_prompt, small.importance)
            clock.lap("encode_large")
            large = run_scoring_pass(
                self.large, large_prompt, answers, plan=plan, decoding=decoding, reuse=reuse
            )
            clock.add("large", large.stage_ms)
            run = replace(run, large_prompt=large_prompt, plan=plan, large=large)
        report = scoring_report(
            run, self.small, self.large, engine_version=engine_version(), stage_ms=clock.stage_ms()
        )
        return AnswerScores(run.answers, (run.large or small).logprobs, report)

    def _exit_config(self, model: Literal["auto", "small", "large"]) -> ExitConfig:
        """The configured one, or the one that forces ``model``."""
        if model == "auto":
            return self.config.exit
        if model not in ("small", "large"):
            raise ConfigError(f"There is no model {model!r}.", remedy='Use "auto", "small" or "large".')
        return self.config.escalating("never" if model == "small" else "always").exit

    def _small_work(self, asked: Asked) -> Work:
        """The small model's turn; requests that differ in anything but its ``kind`` may share it."""
        return Work(asked, self._small_steps, self._small_kind(), len(asked.task.prompt))

    def _small_kind(self) -> Hashable | None:
        return sharing(self.small, (self.config.exit.consistency_keep_ratio, self.config.reuse))

    def _small_steps(self, asked: Sequence[Asked]) -> StepResults:
        yield list(enumerate(self._small_batch(asked)))

    def _small_batch(self, asked: Sequence[Asked]) -> Sequence[SmallPassResult | Exception]:
        """The small model's turn, for all who share it; scripted engines have another."""
        return run_small_batch(
            self.small,
            [each.task for each in asked],
            consistency_keep_ratio=self.config.exit.consistency_keep_ratio,
            max_rows=len(asked),
            reuse=self.config.reuse,
        )

    def _large_work(self, asked: Asked, plan: PruningPlan) -> Work:
        reuse = self.config.reuse
        known = shares_prefix(self.large, [asked.task.prompt], [plan], reuse)
        kind = sharing(self.large, ("pruned from", pruned_from(plan), reuse, *known))
        return Work((asked.task, plan), self._large_steps, kind, len(asked.task.prompt))

    def _large_steps(self, aimed: Sequence[tuple[AnswerTask, PruningPlan]]) -> StepResults:
        tasks, plans = [task for task, _ in aimed], [plan for _, plan in aimed]
        yield from stream_large_batch(self.large, tasks, plans, reuse=self.config.reuse)

    def cache_info(self) -> Mapping[str, StoreInfo]:
        """What each model's store holds and how often it helped, "small" and "large"; ``ReuseConfig``."""
        return {"small": self.small.store.info(), "large": self.large.store.info()}

    def count_tokens(self, request: Request) -> int:
        """Prompt tokens of a request, visual ones included, as the large model reads it.

        Raises:
            RequestError: This request is bad.
        """
        return len(self.large.encode(request, self.config.limits, self.config.reuse))

    def plan(self, prompt: EncodedPrompt, importance: ImportanceMap | None) -> PruningPlan:
        """What the large model is made to keep of ``prompt``, at the configured operating point.

        Args:
            prompt: The prompt that is pruned.
            importance: The small model's map; None, as for a request without images, keeps everything.

        Raises:
            IncompatiblePairError: The map cannot be carried onto the prompt (``ImportanceMap.resample``).
        """
        if importance is None:
            return keep_everything(prompt)
        pruning = self.config.pruning
        layer = max(pruning.layer(self.large.num_layers), self.large.family.first_prunable_layer)
        return plan_pruning(prompt, importance, layer=layer, keep_ratio=pruning.keep_ratio)

    def _response(self, run: Run, answer: ParsedAnswer) -> Response:
        scorer = self.config.exit.scorer or DEFAULT_SCORER
        return make_response(run, answer, self.small, self.large, scorer=scorer)
