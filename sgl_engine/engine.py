"""SGLEngine: small model, early exit, pruned large model; the only place that knows the order of the steps.

request -> images -> small pass -> exit? -+-> the small answer
                                          +-> plan -> large pass -> the large answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sgl_engine.accounting import Asked, Clock, Run, engine_version, make_response
from sgl_engine.answer import Turn
from sgl_engine.answer_reader import AnswerReader, read_stream
from sgl_engine.answer_scores import AnswerScores, ScoringRun, decision_confidence, scoring_report
from sgl_engine.answer_scoring import run_scoring_pass
from sgl_engine.batching import MAX_ROWS, Attempts
from sgl_engine.calibration.exit_rule import exit_rule
from sgl_engine.cancellation import check_wanted
from sgl_engine.confidence import DEFAULT_SCORER, find_scorer
from sgl_engine.config import EngineConfig, ExitConfig
from sgl_engine.drafting import draft_tokens
from sgl_engine.early_exit import decide_exit
from sgl_engine.errors import ConfigError, SGLError
from sgl_engine.images import resolve_images
from sgl_engine.large_pass import run_large_batch, stream_large_pass
from sgl_engine.proof import prove
from sgl_engine.pruning import keep_everything, plan_pruning
from sgl_engine.reuse_store import StoreInfo
from sgl_engine.small_pass import run_small_batch, run_small_pass
from sgl_engine.tool_calls import ParsedAnswer
from sgl_engine.types import (
    Decoding,
    EncodedPrompt,
    ImportanceMap,
    PruningPlan,
    Request,
    Response,
    SmallPassResult,
    StreamEvent,
)
from sgl_engine.vlm import VLM
from sgl_engine.wishes import hold_to_form, permitted, resolve

if TYPE_CHECKING:
    import torch


class SGLEngine:
    """Answers requests with a pair of models; may be shared between threads, which take turns at each model.

    Nothing of a request stays in the engine or on the models; a bad request fails alone.

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
        find_scorer(self.config.exit.scorer)
        for vlm in (small, large):
            prove(vlm)
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
        """
        return SGLEngine(self.small, self.large, config)

    def run(self, request: Request) -> Response:
        """Answers.

        Raises:
            RequestError: This request is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
        """
        *_, last = self.stream(request)
        assert isinstance(last, Response)
        return last

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Answers piece by piece: the ExitDecision, text and tool call deltas, then the Response, last.

        The decision comes first, so text of an overruled small answer is never shown. Closing the iterator,
        or setting the request's ``cancel`` from anywhere, stops generation within one token.

        Raises:
            RequestError: This request is bad; the engine is unharmed.
            IncompatiblePairError: A model does not say which part of the images its tokens show.
        """
        asked = self._ask_small(request, Clock())
        turn = asked.turn
        small = self._small_pass(asked.request, turn.prompt, turn.max_new_tokens, turn.decoding)
        run = self._decide(asked, small)
        yield run.decision
        if run.decision.exit:
            yield from asked.reader.push(small.generation.text)
        else:
            asked, plan = self._ask_large(asked, run)
            turn = asked.turn
            passing = stream_large_pass(
                self.large,
                turn.prompt,
                plan,
                max_new_tokens=turn.max_new_tokens,
                decoding=turn.decoding,
                draft=turn.draft,
                reuse=self.config.reuse,
            )
            large = yield from read_stream(passing, asked.reader)
            asked.clock.add("large", large.stage_ms)
            run = replace(run, large_prompt=turn.prompt, large=large)
        held_back, answer = asked.reader.finish((run.large or small).generation)
        yield from held_back
        yield self._response(run, answer)

    def run_batch(
        self, requests: Sequence[Request], *, max_batch_size: int = MAX_ROWS
    ) -> list[Response | SGLError]:
        """Answers several requests: the small model all of them at once, then the large one what is left.

        Answers are those of single runs: the same, but for rounding, where two tokens are equally likely.
        Each request keeps its own limits, deadline, cancellation and form. Models that cannot be given padded
        prompts (``takes_padding``) answer one after the other.

        Times in a report: work that requests share is shared out equally, so that stages add up to what the
        batch took; "total" is how long the caller waited.

        Args:
            requests: In any mixture.
            max_batch_size: Prompts that run side by side at most; longer lists run in parts.

        Returns:
            In order, a response, or the error that a single run would have raised.

        Raises:
            ConfigError: The large model cannot be pruned as configured, or ``max_batch_size`` is below 1.
        """
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}.", remedy="Use 1 or more.")
        clocks, attempts = [Clock() for _ in requests], Attempts()
        asked = attempts.each(lambda row: self._ask_small(requests[row], clocks[row]), range(len(requests)))
        small = attempts.together(
            lambda rows: self._small_batch([asked[row] for row in rows], max_batch_size), asked
        )
        runs = attempts.each(lambda row: self._decide(asked[row], small[row]), small)
        left = [row for row, run in runs.items() if not run.decision.exit]
        aimed = attempts.each(lambda row: self._ask_large(asked[row], runs[row]), left)
        large = attempts.together(
            lambda rows: run_large_batch(
                self.large,
                [aimed[row][0].turn for row in rows],
                [aimed[row][1] for row in rows],
                max_rows=max_batch_size,
                reuse=self.config.reuse,
            ),
            aimed,
        )
        for row, result in large.items():
            asked[row] = aimed[row][0]
            clocks[row].add("large", result.stage_ms)
            runs[row] = replace(runs[row], large_prompt=asked[row].turn.prompt, large=result)
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
        return Asked(request, clock, decoding, reader, Turn(prompt, max_new_tokens, reader.suited(decoding)))

    def _decide(self, asked: Asked, small: SmallPassResult) -> Run:
        asked.clock.add("small", small.stage_ms)
        calibrated = None
        if self._exit_rule is not None:
            limit = asked.turn.max_new_tokens
            calibrated = self._exit_rule.judge(asked.request, asked.decoding, limit, small)
        decision = permitted(asked.request, decide_exit(small.confidence, self.config.exit, calibrated))
        return Run(asked.request, asked.clock, asked.turn.prompt, small, decision)

    def _ask_large(self, asked: Asked, run: Run) -> tuple[Asked, PruningPlan]:
        asked.clock.resume()
        prompt = self.large.encode(asked.request, self.config.limits, self.config.reuse)
        plan = self.plan(prompt, run.small.importance)
        draft = self._draft(asked.request, run.small) if self.config.generation.draft else ()
        asked.clock.lap("encode_large")
        reader = AnswerReader(self.large, asked.request, prompt)
        turn = replace(asked.turn, prompt=prompt, decoding=reader.suited(asked.decoding), draft=draft)
        return replace(asked, reader=reader, turn=turn), plan

    def _draft(self, request: Request, small: SmallPassResult) -> tuple[int, ...]:
        waiting = partial(check_wanted, request, "while the large model was busy")
        return draft_tokens(self.small, self.large, small.generation, waiting)

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

    def _small_pass(
        self, request: Request, prompt: EncodedPrompt, max_new_tokens: int, decoding: Decoding
    ) -> SmallPassResult:
        """The small model's turn; ``request`` is for engines whose small pass is scripted."""
        del request
        return run_small_pass(
            self.small,
            prompt,
            max_new_tokens=max_new_tokens,
            decoding=decoding,
            scorer=self.config.exit.scorer,
            consistency_keep_ratio=self.config.exit.consistency_keep_ratio,
            reuse=self.config.reuse,
        )

    def _small_batch(self, asked: Sequence[Asked], max_rows: int) -> Sequence[SmallPassResult | SGLError]:
        """The small model's turn for many; scripted engines have another, as for one."""
        return run_small_batch(
            self.small,
            [each.turn for each in asked],
            scorer=self.config.exit.scorer,
            consistency_keep_ratio=self.config.exit.consistency_keep_ratio,
            max_rows=max_rows,
            reuse=self.config.reuse,
        )

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
