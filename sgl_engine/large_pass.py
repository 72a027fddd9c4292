"""The large model's turn, on what the small one thought worth seeing (SGL, section 3.2, SGP)."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from sgl_engine.answer import Answer, Turn
from sgl_engine.batching import MAX_ROWS, run_in_groups
from sgl_engine.cancellation import check_wanted
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.errors import RequestError
from sgl_engine.generation import NobodyWaitsError, decode, exclusive_for, finish, stream_answer
from sgl_engine.pictures import Embedded, embed_pictures
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
    yield from stream_answer(
        vlm,
        prompt,
        embedded.embeddings[:, opening.tokens :],
        answer,
        cache=opening.cache,
        cached_tokens=opening.tokens,
        patch=lambda: prune_visual_tokens(vlm, plan, opening.lower),
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
        In order, a result, or what is wrong with this one. The milliseconds of a result are its equal share
        of those of its group.

    Raises:
        ConfigError: The model cannot be pruned at a plan's layer.
    """

    def run(rows: list[int]) -> list[LargePassResult | RequestError]:
        return _run_group(vlm, [turns[row] for row in rows], [plans[row] for row in rows], reuse)

    opened = worth_opening(vlm, [turn.prompt for turn in turns], plans, reuse)
    kinds = [(plan.layer if plan.prunes else None, known) for plan, known in zip(plans, opened, strict=True)]
    return run_in_groups(vlm, turns, kinds, run, max_rows=max_rows)


def _run_group(
    vlm: VLM, turns: Sequence[Turn], plans: Sequence[PruningPlan], reuse: ReuseConfig
) -> list[LargePassResult | RequestError]:
    answers = [Answer(vlm, turn) for turn in turns]
    embedded: list[Embedded | None] = [None] * len(turns)
    known = [0] * len(turns)
    started = seen = time.perf_counter()
    with suppress(NobodyWaitsError), exclusive_for(vlm, answers, "before the large model began"):
        embedded = [
            answer.attempt(partial(embed_pictures, vlm, turn.prompt, reuse))
            for answer, turn in zip(answers, turns, strict=True)
        ]
        seen = time.perf_counter()
        rows = [row for row, each in enumerate(embedded) if each is not None]
        parts = [each.embeddings for each in embedded if each is not None]
        if rows:
            batch = vlm.batch([turns[row].prompt for row in rows])
            opening = open_prompts(vlm, batch, parts, [plans[row] for row in rows], reuse)
    if rows:
        for row, tokens in zip(rows, opening.known, strict=True):
            known[row] = tokens
        kept = KeptColumns.of([plans[row] for row in rows])
        steps = decode(
            vlm,
            batch,
            batch.join(parts)[:, opening.tokens :],
            [answers[row] for row in rows],
            cache=opening.cache,
            cached_tokens=opening.tokens,
            patch=lambda running: prune_visual_tokens(
                vlm, kept.select(running), None if opening.lower is None else opening.lower.select(running)
            ),
        )
        for _ in steps:
            pass
    stage_ms = {
        "vision": 1e3 * (seen - started) / len(turns),
        "generate": 1e3 * (time.perf_counter() - seen) / len(turns),
    }
    return [
        answer.error
        or _result(
            answer,
            plan,
            _cache_tokens(vlm, plan, answer),
            stage_ms,
            NOTHING_REUSED if given is None else given.reused(tokens),
        )
        for answer, plan, given, tokens in zip(answers, plans, embedded, known, strict=True)
    ]


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
