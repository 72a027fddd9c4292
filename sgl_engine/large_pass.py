"""The large model's turn, on what the small one thought worth seeing (SGL, section 3.2, SGP)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from sgl_engine.batching import MAX_ROWS, run_in_groups
from sgl_engine.cancellation import check_wanted
from sgl_engine.errors import RequestError
from sgl_engine.generation import (
    Answer,
    NobodyWaitsError,
    Turn,
    decode,
    exclusive_for,
    finish,
    stream_tokens,
)
from sgl_engine.pruning import KeptColumns, prune_visual_tokens
from sgl_engine.types import Decoding, EncodedPrompt, LargePassResult, PruningPlan

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM


def stream_large_pass(
    vlm: VLM,
    prompt: EncodedPrompt,
    plan: PruningPlan,
    *,
    max_new_tokens: int,
    stop_at_eos: bool = True,
    decoding: Decoding | None = None,
) -> Generator[str, None, LargePassResult]:
    """Answers on the pruned prompt; yields text as it comes, and returns the result.

    The model is patched only while it computes, never while the stream waits for its consumer.

    Args:
        vlm: The large model.
        prompt: Encoded by it.
        plan: For this prompt (``plan_pruning``, or ``keep_everything`` for the model on its own).
        max_new_tokens: Upper limit of answer tokens.
        stop_at_eos: False goes on to the limit.
        decoding: How tokens are chosen, stop strings, deadline, cancellation; None is greedy.

    Raises:
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
        ConfigError: The model cannot be pruned at the plan's layer.
    """
    decoding = decoding or Decoding()
    started = time.perf_counter()
    with vlm.exclusive(partial(check_wanted, decoding, "before the large model began")):
        embeddings = vlm.embed(prompt)
    seen = time.perf_counter()
    cache = vlm.new_cache()
    generation = yield from stream_tokens(
        vlm,
        prompt,
        embeddings,
        cache=cache,
        max_new_tokens=max_new_tokens,
        stop_at_eos=stop_at_eos,
        decoding=decoding,
        patch=lambda: prune_visual_tokens(vlm, plan),
    )
    return LargePassResult(
        generation=generation,
        plan=plan,
        cache_tokens=vlm.cache_tokens(cache),
        stage_ms={"vision": 1e3 * (seen - started), "generate": 1e3 * (time.perf_counter() - seen)},
    )


def run_large_pass(
    vlm: VLM,
    prompt: EncodedPrompt,
    plan: PruningPlan,
    *,
    max_new_tokens: int,
    stop_at_eos: bool = True,
    decoding: Decoding | None = None,
) -> LargePassResult:
    """``stream_large_pass`` to its end."""
    return finish(
        stream_large_pass(
            vlm, prompt, plan, max_new_tokens=max_new_tokens, stop_at_eos=stop_at_eos, decoding=decoding
        )
    )


def run_large_batch(
    vlm: VLM, turns: Sequence[Turn], plans: Sequence[PruningPlan], *, max_rows: int = MAX_ROWS
) -> list[LargePassResult | RequestError]:
    """``run_large_pass`` for several prompts side by side, which may keep different numbers of tokens.

    Prompts that are pruned from different layers on, or not at all, run after each other.

    Args:
        vlm: The large model.
        turns: The prompts, and what their answers are to be like.
        plans: One for each of them.
        max_rows: Prompts side by side at most.

    Returns:
        In order, a result, or what is wrong with this one. The milliseconds of a result are its equal shares
        of the steps in which it took part.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """

    def run(rows: list[int]) -> list[LargePassResult | RequestError]:
        found: dict[int, LargePassResult | RequestError] = {}
        for pieces in stream_large_batch(vlm, [turns[row] for row in rows], [plans[row] for row in rows]):
            found |= {row: piece for row, piece in pieces if not isinstance(piece, str)}
        return [found[row] for row in range(len(rows))]

    return run_in_groups(vlm, turns, [pruned_from(plan) for plan in plans], run, max_rows=max_rows)


def pruned_from(plan: PruningPlan) -> int | None:
    """What has to be equal in plans that run side by side: the first pruned layer; None prunes nothing."""
    return plan.layer if plan.prunes else None


def stream_large_batch(
    vlm: VLM, turns: Sequence[Turn], plans: Sequence[PruningPlan]
) -> Iterator[list[tuple[int, str | LargePassResult | RequestError]]]:
    """``run_large_batch``, step by step: all prompts side by side, so of one kind (``pruned_from``).

    The model is held only while it computes, never while the caller does something else.

    Args:
        vlm: The large model.
        turns: The prompts, and what their answers are to be like.
        plans: One for each of them.

    Yields:
        After every step, what is new: number of the turn, and newly final text or, last and once, its result
        or what is wrong with it. An answer that has ended is not kept back for the others. The milliseconds
        of a result are its equal shares of the steps in which it took part.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """
    group = _Group(vlm, turns, plans)
    embedded: list[Tensor | None] = [None] * len(turns)
    with suppress(NobodyWaitsError), exclusive_for(vlm, group.answers, "before the large model began"):
        embedded = [
            answer.attempt(partial(vlm.embed, turn.prompt))
            for answer, turn in zip(group.answers, turns, strict=True)
        ]
    group.spend("vision")
    rows = [row for row, embeddings in enumerate(embedded) if embeddings is not None]
    if rows:
        batch = vlm.batch([turns[row].prompt for row in rows])
        embeddings = batch.join([each for each in embedded if each is not None])
        kept = KeptColumns.of([plans[row] for row in rows])
        steps = decode(
            vlm,
            batch,
            embeddings,
            [group.answers[row] for row in rows],
            cache=vlm.new_cache(),
            patch=lambda running: prune_visual_tokens(vlm, kept.select(running)),
        )
        for texts in steps:
            group.spend("generate")
            said = [(row, text) for row, text in zip(rows, texts, strict=True) if text]
            yield [*said, *group.end(only_over=True)]
            group.resume()
    yield group.end()


class _Group:
    """Answers that are generated side by side, and what each has cost so far."""

    def __init__(self, vlm: VLM, turns: Sequence[Turn], plans: Sequence[PruningPlan]) -> None:
        self.answers = [Answer(vlm, turn) for turn in turns]
        self._vlm = vlm
        self._plans = plans
        self._left = list(range(len(turns)))
        self._stage_ms = [{"vision": 0.0, "generate": 0.0} for _ in turns]
        self._since = time.perf_counter()

    def resume(self) -> None:
        """Counts from here on."""
        self._since = time.perf_counter()

    def spend(self, stage: str) -> None:
        """Shares out what has passed among the answers that are left."""
        passed_ms = 1e3 * (time.perf_counter() - self._since)
        for row in self._left:
            self._stage_ms[row][stage] += passed_ms / len(self._left)
        self.resume()

    def end(self, *, only_over: bool = False) -> list[tuple[int, str | LargePassResult | RequestError]]:
        """Number and outcome of the answers that are left; or of those that are over."""
        ended = [row for row in self._left if self.answers[row].over or not only_over]
        self._left = [row for row in self._left if row not in ended]
        return [(row, self._outcome(row)) for row in ended]

    def _outcome(self, row: int) -> LargePassResult | RequestError:
        answer, plan = self.answers[row], self._plans[row]
        if answer.error is not None:
            return answer.error
        tokens = _cache_tokens(self._vlm, plan, answer)
        return LargePassResult(answer.generation(), plan, tokens, self._stage_ms[row])


def _cache_tokens(vlm: VLM, plan: PruningPlan, answer: Answer) -> tuple[int, ...]:
    """As ``vlm.cache_tokens`` of a cache of its own."""
    fed_back = answer.steps - 1
    return tuple(
        0
        if recurrent
        else fed_back + (len(plan.keep) if plan.prunes and layer >= plan.layer else plan.prompt_tokens)
        for layer, recurrent in enumerate(vlm.new_cache().is_linear)
    )
