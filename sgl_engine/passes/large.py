"""Answers with the large model, on what the small one thought worth seeing (SGL, section 3.2, SGP)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import Answer, AnswerTask, Generation
from sgl_engine.decoding.loop import NobodyWaitsError, decode, exclusive_for
from sgl_engine.errors import ModelError, SGLError
from sgl_engine.passes.pictures import NOTHING_REUSED, EmbeddedPrompt, Reused
from sgl_engine.passes.prefill import Prefilled, Prefiller, find_tiles, run_in_groups
from sgl_engine.passes.prefixes import shares_prefix
from sgl_engine.prompt.encoded import MAX_ROWS
from sgl_engine.pruning.layer_inputs import LayerInputs
from sgl_engine.pruning.patch import last_prunable_layer, prune_visual_tokens
from sgl_engine.pruning.plan import KeptColumns, PruningPlan, keep_everything, plan_pruning

if TYPE_CHECKING:
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.config import PruningConfig
    from sgl_engine.model.vlm import VLM
    from sgl_engine.prompt.encoded import EncodedPrompt


@dataclass(frozen=True, eq=False)
class LargePassResult:
    """What the large model said.

    Attributes:
        generation: The large answer.
        plan: What was pruned.
        cache_tokens: Columns of the cache per decoder layer (L,) when the answer ended; fewer from
            plan.layer on, 0 in recurrent layers. In a batch, padding and the others' tokens are included.
        stage_ms: Milliseconds: "vision", "generate".
        fed: For each forward, how many answer tokens the cache held before it, and how many were fed,
            including wrong ones of a draft. The first forward took the prompt, too. What a batch adds,
            padding and waiting for others, is left out.
        drafted_tokens: Tokens of the draft, up to the answer's limit.
        accepted_tokens: How many of these the answer took over, in order: up to the first that differs, and
            again where it came back to the draft after that.
        reused: What was known before.
    """

    generation: Generation
    plan: PruningPlan
    cache_tokens: tuple[int, ...]
    stage_ms: Mapping[str, float]
    fed: tuple[tuple[int, int], ...]
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    reused: Reused = NOTHING_REUSED


def plan_large(
    vlm: VLM, prompt: EncodedPrompt, importance: ImportanceMap | None, pruning: PruningConfig
) -> PruningPlan:
    """Plans which tiles and tokens of ``prompt`` the large model sees.

    Args:
        vlm: The large model.
        prompt: The prompt that is pruned.
        importance: The small model's map; None, as for a request without images, keeps everything.
        pruning: How much is kept.

    Raises:
        IncompatiblePairError: The map cannot be carried onto the prompt (``ImportanceMap.resample``).
    """
    if importance is None:
        return keep_everything(prompt)
    # Some families cannot be pruned in their first layers, or behind some layer, whatever is configured.
    layer = min(last_prunable_layer(vlm), max(pruning.layer(vlm.num_layers), vlm.family.first_prunable_layer))
    top = pruning.top_tokens
    tiles = None if top is None else find_tiles(vlm, prompt)
    ratio = pruning.keep_ratio
    return plan_pruning(prompt, importance, layer=layer, keep_ratio=ratio, tiles=tiles, top_tokens=top)


def run_large_pass(
    vlm: VLM, task: AnswerTask, plan: PruningPlan, *, reuse: ReuseConfig = NO_REUSE
) -> LargePassResult:
    """Answers on the pruned prompt, in a batch of one.

    A draft is fed in the same forward as the prompt. As much of its beginning as the model would have written
    itself is taken at once. From there the model writes on, and where its answer comes back to the draft, the
    draft is checked again. A draft that is right to its end takes that one forward alone. (Recurrent layers
    cannot take tokens back. A model that has some reads its prompt first and the draft in a second forward,
    and does not come back to it.)

    Args:
        vlm: The large model.
        task: The prompt, encoded by it, what the answer is to be like, and its draft.
        plan: For this prompt (``plan_pruning``, or ``keep_everything`` for the model on its own).
        reuse: What may be kept for, or known from, another request.

    Raises:
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
        ConfigError: The model cannot be pruned at the plan's layer.
    """
    [result] = run_large_batch(vlm, [task], [plan], reuse=reuse)
    if isinstance(result, SGLError):
        raise result
    return result


def run_large_batch(
    vlm: VLM,
    tasks: Sequence[AnswerTask],
    plans: Sequence[PruningPlan],
    *,
    max_rows: int = MAX_ROWS,
    reuse: ReuseConfig = NO_REUSE,
) -> list[LargePassResult | SGLError]:
    """Answers several prompts side by side, each as ``run_large_pass`` does.

    They may keep different numbers of tokens. Prompts that are pruned from different layers on, or not at
    all, run after each other.

    Args:
        vlm: The large model.
        tasks: The prompts, what their answers are to be like, and their drafts.
        plans: One for each of them.
        max_rows: Prompts side by side at most.
        reuse: What may be kept for, or known from, another request.

    Returns:
        In order, results, or errors of single tasks. The milliseconds of a result are its equal shares of
        the steps in which it took part.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """

    def run(rows: list[int]) -> list[LargePassResult | SGLError]:
        found: dict[int, LargePassResult | SGLError] = {}
        chosen = [tasks[row] for row in rows], [plans[row] for row in rows]
        for pieces in stream_large_batch(vlm, *chosen, reuse=reuse):
            # Text that comes early is part of the result, too.
            found |= {row: piece for row, piece in pieces if not isinstance(piece, str)}
        return [found[row] for row in range(len(rows))]

    entering = [plan.enter(task.prompt) for task, plan in zip(tasks, plans, strict=True)]
    prompts, below = [prompt for prompt, _ in entering], [plan for _, plan in entering]
    kinds = list(zip(map(pruned_from, below), shares_prefix(vlm, prompts, below, reuse), strict=True))
    return run_in_groups(vlm, tasks, kinds, run, max_rows=max_rows)


def pruned_from(plan: PruningPlan) -> int | None:
    """Returns the first pruned layer, which has to be the same in a batch; None prunes nothing."""
    return plan.layer if plan.prunes else None


def stream_large_batch(
    vlm: VLM, tasks: Sequence[AnswerTask], plans: Sequence[PruningPlan], *, reuse: ReuseConfig = NO_REUSE
) -> Iterator[list[tuple[int, str | LargePassResult | SGLError]]]:
    """Answers prompts side by side, step by step; all are pruned from the same layer on (``pruned_from``).

    The model is held only while it computes, never while the caller does something else.

    Args:
        vlm: The large model.
        tasks: The prompts, what their answers are to be like, and their drafts.
        plans: One for each of them.
        reuse: What may be kept for, or known from, another request.

    Yields:
        After every step, what is new, each with the number of its task: newly final text or, once and last,
        the task's result or error. An answer that has ended does not wait for the others. The milliseconds of
        a result are its equal shares of the steps in which it took part.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """
    batch = _AnswerBatch(vlm, tasks, plans)
    ready = None
    with suppress(NobodyWaitsError), exclusive_for(vlm, batch.answers, "before the large model began"):
        ready = batch.prefill(Prefiller(vlm, reuse))
    if ready is not None:
        # Tasks with an error are not decoded, so there may be fewer rows than tasks.
        rows, prefix = batch.rows, ready.prefix
        chosen = _chosen(KeptColumns.of([batch.plans[row] for row in rows]), prefix.lower)
        steps = decode(
            vlm,
            ready.batch,
            ready.embeddings,
            [batch.answers[row] for row in rows],
            cache=prefix.cache,
            cached_tokens=prefix.tokens,
            patch=lambda running: prune_visual_tokens(vlm, *chosen(tuple(running))),
        )
        for texts in steps:
            batch.cache_tokens = vlm.cache_tokens(prefix.cache)
            batch.spend("generate")
            said = [(row, text) for row, text in zip(rows, texts, strict=True) if text]
            yield [*said, *batch.end(only_over=True)]
            batch.resume()  # no answer pays for what the reader did in between
    yield batch.end()


def _chosen(
    kept: KeptColumns, lower: LayerInputs | None
) -> Callable[[tuple[int, ...]], tuple[KeptColumns, LayerInputs | None]]:
    """Makes a function: rows that still run -> what is kept of them, and what enters layer K of them."""

    # The same rows run for many tokens, so the last selection is kept.
    @lru_cache(maxsize=1)
    def select(running: tuple[int, ...]) -> tuple[KeptColumns, LayerInputs | None]:
        if len(running) == len(kept.columns):
            return kept, lower
        return kept.select(running), None if lower is None else lower.select(running)

    return select


class _AnswerBatch:
    """Answers that are generated side by side, and what each has cost so far.

    Attributes:
        answers: One per task.
        prompts: What enters of their prompts.
        plans: What is pruned of that.
        embedded: Their prompts, as the decoder takes them; None for an answer that has an error.
        rows: Numbers of the answers that are decoded.
        known: Prompt tokens of each that were known.
        cache_tokens: Columns of the cache per decoder layer (L,) after the last step.
    """

    def __init__(self, vlm: VLM, tasks: Sequence[AnswerTask], plans: Sequence[PruningPlan]) -> None:
        self._name = vlm.name
        self.answers = [Answer(vlm, task) for task in tasks]
        entering = [plan.enter(task.prompt) for task, plan in zip(tasks, plans, strict=True)]
        self.prompts, self.plans = [prompt for prompt, _ in entering], [plan for _, plan in entering]
        self.embedded: list[EmbeddedPrompt | None] = [None] * len(tasks)
        self.rows: list[int] = []
        self.known = [0] * len(tasks)
        self.cache_tokens: tuple[int, ...] = ()
        self._given = plans
        self._left = list(range(len(tasks)))
        self._stage_ms = [{"vision": 0.0, "generate": 0.0} for _ in tasks]
        self._since = time.perf_counter()

    def prefill(self, prefiller: Prefiller) -> Prefilled | None:
        """Prepares the prompts of answers without an error; returns None where there are none."""
        self.embedded = prefiller.see(self.answers, self.prompts)
        self.spend("vision")
        seen = {row: embedded for row, embedded in enumerate(self.embedded) if embedded is not None}
        self.rows = list(seen)
        if not seen:
            return None  # all have errors, so there is nothing to decode
        prompts, plans = [self.prompts[row] for row in seen], [self.plans[row] for row in seen]
        ready = prefiller.prefill(prompts, list(seen.values()), plans)
        for row, tokens in zip(seen, ready.prefix.known, strict=True):
            self.known[row] = tokens
        return ready

    def resume(self) -> None:
        """Begins to count milliseconds here."""
        self._since = time.perf_counter()

    def spend(self, stage: str) -> None:
        """Shares the milliseconds since the last count out, equally, among the answers that are left."""
        passed_ms = 1e3 * (time.perf_counter() - self._since)
        for row in self._left:
            self._stage_ms[row][stage] += passed_ms / len(self._left)
        self.resume()

    def end(self, *, only_over: bool = False) -> list[tuple[int, str | LargePassResult | SGLError]]:
        """Ends the answers that are left, or only those that are over; returns their numbers and outcomes."""
        # An answer ends once: the rest of the batch no longer shares its milliseconds with it.
        ended = [row for row in self._left if self.answers[row].over or not only_over]
        self._left = [row for row in self._left if row not in ended]
        return [(row, self._outcome(row)) for row in ended]

    def _outcome(self, row: int) -> LargePassResult | SGLError:
        """Makes an answer's result, or returns its error."""
        answer, plan, embedded = self.answers[row], self._given[row], self.embedded[row]
        if answer.error is not None:
            return answer.error
        generation = answer.generation()
        if generation.logprobs.isnan().any():
            # The small model's would go to the large one; there is none behind that.
            return ModelError(
                f"The numbers of {self._name} overflowed: its logits are not numbers.",
                remedy="Load it with dtype bfloat16 or float32.",
            )
        return LargePassResult(
            generation=generation,
            plan=plan,
            cache_tokens=self.cache_tokens,
            stage_ms=self._stage_ms[row],
            fed=tuple(answer.fed),
            drafted_tokens=len(answer.draft.tokens),
            accepted_tokens=answer.draft.accepted,
            reused=NOTHING_REUSED if embedded is None else embedded.reused(self.known[row]),
        )
