"""The large model's turn, on what the small one thought worth seeing (SGL, section 3.2, SGP)."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from sgl_engine.answer import Answer, Turn
from sgl_engine.batching import MAX_ROWS, run_in_groups
from sgl_engine.cancellation import check_wanted
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.errors import RequestError
from sgl_engine.generation import NobodyWaitsError, decode, exclusive_for, finish, stream_answer
from sgl_engine.lower_rows import LowerRows
from sgl_engine.pictures import Embedded, embed_pictures, run_towers
from sgl_engine.prefixes import open_prompts, worth_opening
from sgl_engine.pruning import KeptColumns, prune_visual_tokens
from sgl_engine.types import (
    NOTHING_REUSED,
    Decoding,
    EncodedPrompt,
    LargePassResult,
    PruningPlan,
    Reused,
)

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
    draft: Sequence[int] = (),
    reuse: ReuseConfig = NO_REUSE,
) -> Generator[str, None, LargePassResult]:
    """Answers on the pruned prompt; yields text as it comes, and returns the result.

    A draft is fed in the same forward as the prompt. Its longest beginning that the model would have written
    itself is taken, and yielded, at once; from there the model goes on, and where its answer comes back to
    the draft, so does the checking. A draft that is right to its end leaves nothing to do but that one
    forward. (Recurrent layers cannot take tokens back: a model that has some reads its prompt first, the
    draft in a second forward, and does not come back to it.)

    The model is patched only while it computes, never while the stream waits for its consumer.

    Args:
        vlm: The large model.
        prompt: Encoded by it.
        plan: For this prompt (``plan_pruning``, or ``keep_everything`` for the model on its own).
        max_new_tokens: Upper limit of answer tokens.
        stop_at_eos: False goes on to the limit.
        decoding: How tokens are chosen, stop strings, deadline, cancellation; None is greedy.
        draft: Tokens that the answer is expected to begin with, in this model's vocabulary and without an
            end; they change what the answer costs, not what it is (``sgl_engine.answer``).
        reuse: What may be kept for, or known from, another request.

    Raises:
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
        ConfigError: The model cannot be pruned at the plan's layer.
    """
    decoding = decoding or Decoding()
    started = time.perf_counter()
    with vlm.exclusive(partial(check_wanted, decoding, "before the large model began")):
        embedded = embed_pictures(vlm, prompt, reuse)
        seen = time.perf_counter()
        opening = open_prompts(vlm, vlm.batch([prompt]), [embedded.embeddings], [plan], reuse)
    answer = Answer(vlm, Turn(prompt, max_new_tokens, decoding, stop_at_eos, tuple(draft)))
    kept = KeptColumns.of([plan])
    yield from stream_answer(
        vlm,
        prompt,
        embedded.embeddings[:, opening.tokens :],
        answer,
        cache=opening.cache,
        cached_tokens=opening.tokens,
        patch=lambda: prune_visual_tokens(vlm, kept, opening.lower),
    )
    stage_ms = {"vision": 1e3 * (seen - started), "generate": 1e3 * (time.perf_counter() - seen)}
    cache_tokens = vlm.cache_tokens(opening.cache)
    return _result(answer, plan, cache_tokens, stage_ms, embedded.reused(opening.known[0]))


def run_large_pass(
    vlm: VLM,
    prompt: EncodedPrompt,
    plan: PruningPlan,
    *,
    max_new_tokens: int,
    stop_at_eos: bool = True,
    decoding: Decoding | None = None,
    draft: Sequence[int] = (),
    reuse: ReuseConfig = NO_REUSE,
) -> LargePassResult:
    """``stream_large_pass`` to its end."""
    return finish(
        stream_large_pass(
            vlm,
            prompt,
            plan,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
            decoding=decoding,
            draft=draft,
            reuse=reuse,
        )
    )


def run_large_batch(
    vlm: VLM,
    turns: Sequence[Turn],
    plans: Sequence[PruningPlan],
    *,
    max_rows: int = MAX_ROWS,
    reuse: ReuseConfig = NO_REUSE,
) -> list[LargePassResult | RequestError]:
    """``run_large_pass`` for several prompts side by side, which may keep different numbers of tokens.

    Prompts that are pruned from different layers on, or not at all, run after each other.

    Args:
        vlm: The large model.
        turns: The prompts, what their answers are to be like, and their drafts.
        plans: One for each of them.
        max_rows: Prompts side by side at most.
        reuse: What may be kept for, or known from, another request.

    Returns:
        In order, a result, or what is wrong with this one. The milliseconds of a result are its equal shares
        of the steps in which it took part.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """

    def run(rows: list[int]) -> list[LargePassResult | RequestError]:
        found: dict[int, LargePassResult | RequestError] = {}
        chosen = [turns[row] for row in rows], [plans[row] for row in rows]
        for pieces in stream_large_batch(vlm, *chosen, reuse=reuse):
            found |= {row: piece for row, piece in pieces if not isinstance(piece, str)}
        return [found[row] for row in range(len(rows))]

    opened = worth_opening(vlm, [turn.prompt for turn in turns], plans, reuse)
    kinds = [(pruned_from(plan), known) for plan, known in zip(plans, opened, strict=True)]
    return run_in_groups(vlm, turns, kinds, run, max_rows=max_rows)


def pruned_from(plan: PruningPlan) -> int | None:
    """What has to be equal in plans that run side by side: the first pruned layer; None prunes nothing."""
    return plan.layer if plan.prunes else None


def stream_large_batch(
    vlm: VLM, turns: Sequence[Turn], plans: Sequence[PruningPlan], *, reuse: ReuseConfig = NO_REUSE
) -> Iterator[list[tuple[int, str | LargePassResult | RequestError]]]:
    """``run_large_batch``, step by step: all prompts side by side, so of one kind (``pruned_from``).

    The model is held only while it computes, never while the caller does something else.

    Args:
        vlm: The large model.
        turns: The prompts, what their answers are to be like, and their drafts.
        plans: One for each of them.
        reuse: What may be kept for, or known from, another request.

    Yields:
        After every step, what is new: number of the turn, and newly final text or, last and once, its result
        or what is wrong with it. An answer that has ended is not kept back for the others. The milliseconds
        of a result are its equal shares of the steps in which it took part.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """
    group = _Group(vlm, turns, plans)
    rows: list[int] = []
    with suppress(NobodyWaitsError), exclusive_for(vlm, group.answers, "before the large model began"):
        wanted = [turn.prompt for answer, turn in zip(group.answers, turns, strict=True) if answer.goes_on()]
        computed = run_towers(vlm, wanted, reuse)
        group.embedded = [
            answer.attempt(partial(embed_pictures, vlm, turn.prompt, reuse, computed=computed))
            for answer, turn in zip(group.answers, turns, strict=True)
        ]
        group.spend("vision")
        rows = [row for row, embedded in enumerate(group.embedded) if embedded is not None]
        parts = [embedded.embeddings for embedded in group.embedded if embedded is not None]
        if rows:
            batch = vlm.batch([turns[row].prompt for row in rows])
            opening = open_prompts(vlm, batch, parts, [plans[row] for row in rows], reuse)
    if rows:
        for row, tokens in zip(rows, opening.known, strict=True):
            group.known[row] = tokens
        chosen = _chosen(KeptColumns.of([plans[row] for row in rows]), opening.lower)
        steps = decode(
            vlm,
            batch,
            batch.join(parts)[:, opening.tokens :],
            [group.answers[row] for row in rows],
            cache=opening.cache,
            cached_tokens=opening.tokens,
            patch=lambda running: prune_visual_tokens(vlm, *chosen(tuple(running))),
        )
        for texts in steps:
            group.spend("generate")
            said = [(row, text) for row, text in zip(rows, texts, strict=True) if text]
            yield [*said, *group.end(only_over=True)]
            group.resume()
    yield group.end()


def _chosen(
    kept: KeptColumns, lower: LowerRows | None
) -> Callable[[tuple[int, ...]], tuple[KeptColumns, LowerRows | None]]:
    """What of a group is left for the rows that run: made when rows leave, not for every token."""

    @lru_cache(maxsize=1)
    def select(running: tuple[int, ...]) -> tuple[KeptColumns, LowerRows | None]:
        if len(running) == len(kept.columns):
            return kept, lower
        return kept.select(running), None if lower is None else lower.select(running)

    return select


class _Group:
    """Answers that are generated side by side, and what each has cost so far.

    Attributes:
        answers: One per turn.
        embedded: Their prompts, as the decoder takes them.
        known: Prompt tokens of each that need not be computed.
    """

    def __init__(self, vlm: VLM, turns: Sequence[Turn], plans: Sequence[PruningPlan]) -> None:
        self.answers = [Answer(vlm, turn) for turn in turns]
        self.embedded: list[Embedded | None] = [None] * len(turns)
        self.known = [0] * len(turns)
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
        answer, plan, embedded = self.answers[row], self._plans[row], self.embedded[row]
        if answer.error is not None:
            return answer.error
        reused = NOTHING_REUSED if embedded is None else embedded.reused(self.known[row])
        tokens = _cache_tokens(self._vlm, plan, answer)
        return _result(answer, plan, tokens, self._stage_ms[row], reused)


def _result(
    answer: Answer,
    plan: PruningPlan,
    cache_tokens: tuple[int, ...],
    stage_ms: Mapping[str, float],
    reused: Reused,
) -> LargePassResult:
    return LargePassResult(
        generation=answer.generation(),
        plan=plan,
        cache_tokens=cache_tokens,
        stage_ms=stage_ms,
        fed=tuple(answer.fed),
        drafted_tokens=len(answer.draft.tokens),
        accepted_tokens=answer.draft.accepted,
        reused=reused,
    )


def _cache_tokens(vlm: VLM, plan: PruningPlan, answer: Answer) -> tuple[int, ...]:
    """As ``vlm.cache_tokens`` of a cache of its own."""
    fed_back = answer.steps - 1
    return tuple(
        0
        if recurrent
        else fed_back + (len(plan.keep) if plan.prunes and layer >= plan.layer else plan.prompt_tokens)
        for layer, recurrent in enumerate(vlm.new_cache().is_linear)
    )
