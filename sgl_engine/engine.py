"""SGLEngine: small model, early exit, pruned large model; the only place that knows the order of the steps.

request -> images -> small pass -> exit? -+-> the small answer
                                          +-> plan -> large pass -> the large answer
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sgl_engine.accounting import Clock, Run, engine_version, run_report
from sgl_engine.answer_reader import AnswerReader
from sgl_engine.answer_scores import AnswerScores, ScoringRun, decision_confidence, scoring_report
from sgl_engine.answer_scoring import run_scoring_pass
from sgl_engine.confidence import DEFAULT_SCORER, find_scorer
from sgl_engine.config import EngineConfig, ExitConfig
from sgl_engine.early_exit import decide_exit
from sgl_engine.errors import ConfigError
from sgl_engine.generation import token_logprobs
from sgl_engine.images import resolve_images
from sgl_engine.large_pass import stream_large_pass
from sgl_engine.proof import prove
from sgl_engine.pruning import keep_everything, plan_pruning
from sgl_engine.small_pass import run_small_pass
from sgl_engine.tool_calls import ParsedAnswer
from sgl_engine.types import (
    Decoding,
    EncodedPrompt,
    ExitDecision,
    ImportanceMap,
    LargePassResult,
    PruningPlan,
    Request,
    Response,
    SmallPassResult,
    StreamEvent,
)
from sgl_engine.vlm import VLM
from sgl_engine.wishes import hold_to_form, resolve

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
        ConfigError: The configuration names a scorer that does not exist.
    """

    def __init__(self, small: VLM, large: VLM, config: EngineConfig | None = None) -> None:
        self.small = small
        self.large = large
        self.config = config or EngineConfig()
        find_scorer(self.config.exit.scorer)
        for vlm in (small, large):
            prove(vlm)

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
        clock = Clock()
        max_new_tokens, decoding = resolve(request, self.config.generation)
        decoding = hold_to_form(request, decoding)
        request = resolve_images(request, self.config.limits)
        small_prompt = self.small.encode(request, self.config.limits)
        clock.lap("encode_small")
        reader = AnswerReader(self.small, request, small_prompt)
        small = self._small_pass(request, small_prompt, max_new_tokens, reader.suited(decoding))
        clock.add("small", small.stage_ms)
        decision = _permitted(request, decide_exit(small.confidence, self.config.exit))
        run = Run(request, clock, small_prompt, small, decision)
        yield decision
        if decision.exit:
            yield from reader.push(small.generation.text)
            held_back, answer = reader.finish(small.generation)
            yield from held_back
            yield self._response(run, answer)
            return
        large_prompt = self.large.encode(request, self.config.limits)
        plan = self.plan(large_prompt, small.importance)
        clock.lap("encode_large")
        reader = AnswerReader(self.large, request, large_prompt)
        large = yield from _as_deltas(
            stream_large_pass(
                self.large,
                large_prompt,
                plan,
                max_new_tokens=max_new_tokens,
                decoding=reader.suited(decoding),
            ),
            reader,
        )
        held_back, answer = reader.finish(large.generation)
        yield from held_back
        clock.add("large", large.stage_ms)
        yield self._response(replace(run, large_prompt=large_prompt, large=large), answer)

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
        small_prompt = self.small.encode(request, self.config.limits)
        clock.lap("encode_small")
        guide = exit_config.escalate != "never"
        small = run_scoring_pass(self.small, small_prompt, answers, guide=guide, decoding=decoding)
        clock.add("small", small.stage_ms)
        decision = _permitted(request, decide_exit(decision_confidence(small), exit_config))
        run = ScoringRun(tuple(answers), decision, small_prompt, small)
        if not decision.exit:
            large_prompt = self.large.encode(request, self.config.limits)
            plan = self.plan(large_prompt, small.importance)
            clock.lap("encode_large")
            large = run_scoring_pass(self.large, large_prompt, answers, plan=plan, decoding=decoding)
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
        )

    def count_tokens(self, request: Request) -> int:
        """Prompt tokens of a request, visual ones included, as the large model reads it.

        Raises:
            RequestError: This request is bad.
        """
        return len(self.large.encode(request, self.config.limits))

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
        vlm = self.small if run.large is None else self.large
        generation = run.small.generation if run.large is None else run.large.generation
        return Response(
            text=answer.text,
            finish_reason=generation.finish_reason,
            report=run_report(
                run, answer, self.small, self.large, scorer=self.config.exit.scorer or DEFAULT_SCORER
            ),
            tool_calls=answer.tool_calls,
            invalid_tool_calls=answer.invalid_tool_calls,
            tokens=token_logprobs(vlm, generation) if run.request.logprobs else (),
            importance=run.small.importance,
            plan=None if run.large is None else run.large.plan,
        )


def _permitted(request: Request, decision: ExitDecision) -> ExitDecision:
    """The decision, or a forced exit where the request may not escalate."""
    if decision.exit or request.may_escalate is None or request.may_escalate():
        return decision
    return replace(decision, exit=True, policy="forced")


def _as_deltas(
    stream: Generator[str, None, LargePassResult], reader: AnswerReader
) -> Generator[StreamEvent, None, LargePassResult]:
    while True:
        try:
            text = next(stream)
        except StopIteration as end:
            result: LargePassResult = end.value
            return result
        yield from reader.push(text)
