"""Finds where the small model looks when nothing in particular is asked (``PruningConfig.neutral``).

One forward of each prompt, and nothing is answered. It begins with the same pictures as the question that
has escalated, so most of it is known; and the map is that of the next question about these pictures, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_engine.attention.capture import capture_attention
from sgl_engine.attention.importance import ImportanceMap, importance_map
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import Answer, AnswerTask
from sgl_engine.decoding.loop import NobodyWaitsError, exclusive_for
from sgl_engine.errors import RequestError
from sgl_engine.passes.pictures import NOTHING_REUSED, Reused
from sgl_engine.passes.prefill import Prefiller, run_in_groups
from sgl_engine.passes.prefixes import prefix_key, shares_prefix
from sgl_engine.prompt.encoded import MAX_ROWS, EncodedPrompt

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class NeutralMap:
    """What came of a neutral question.

    Attributes:
        prompt: What was asked.
        importance: The map, of the prompt's rows alone.
        ran: Whether anything was computed; False where the map was known.
        stage_ms: Milliseconds: "neutral".
        reused: What was known before.
    """

    prompt: EncodedPrompt
    importance: ImportanceMap
    ran: bool
    stage_ms: Mapping[str, float]
    reused: Reused = NOTHING_REUSED


def run_neutral_batch(
    vlm: VLM, tasks: Sequence[AnswerTask], *, max_rows: int = MAX_ROWS, reuse: ReuseConfig = NO_REUSE
) -> list[NeutralMap | RequestError]:
    """Reads several prompts side by side, recording attention.

    Args:
        vlm: The small model.
        tasks: Neutral questions (``sgl_engine.prompt.neutral_request``), with pictures. Of how they are to be
            answered, only deadline and cancellation count.
        max_rows: Prompts side by side at most.
        reuse: What may be kept for, or known from, another request; maps are kept where prefixes are.

    Returns:
        In order, maps, or errors of single tasks. The milliseconds of a map are its equal share of those of
        its group.
    """

    def run(rows: list[int]) -> list[NeutralMap | RequestError]:
        return _read_group(Prefiller(vlm, reuse), [tasks[row] for row in rows])

    kinds = shares_prefix(vlm, [task.prompt for task in tasks], None, reuse)
    return run_in_groups(vlm, tasks, kinds, run, max_rows=max_rows)


def _read_group(prefiller: Prefiller, tasks: Sequence[AnswerTask]) -> list[NeutralMap | RequestError]:
    """Reads prompts side by side, but for those whose maps are known."""
    started = time.perf_counter()
    vlm, reuse = prefiller.vlm, prefiller.reuse
    answers = [Answer(vlm, task) for task in tasks]
    keys = [prefix_key(vlm, task.prompt, vlm.num_layers, len(task.prompt)) for task in tasks]
    maps: list[ImportanceMap | None] = [
        vlm.store.get("map", key) if reuse.keeps_prefixes else None for key in keys
    ]
    unknown = [row for row, known in enumerate(maps) if known is None]
    reused = {}
    waiting = [answers[row] for row in unknown]
    with suppress(NobodyWaitsError), exclusive_for(vlm, waiting, "before the neutral question was read"):
        for row, made, before in _read(prefiller, answers, unknown):
            maps[row], reused[row] = made, before
            if reuse.keeps_prefixes:
                vlm.store.put("map", keys[row], made, [made.mass], max_bytes=reuse.max_bytes)
    stage_ms = {"neutral": 1e3 * (time.perf_counter() - started) / len(tasks)}
    found: list[NeutralMap | RequestError] = []
    for row, (answer, importance) in enumerate(zip(answers, maps, strict=True)):
        if importance is None:
            assert answer.error is not None, "what goes on is read"
            found.append(answer.error)
        else:
            known = reused.get(row, NOTHING_REUSED)
            found.append(NeutralMap(answer.prompt, importance, row in reused, stage_ms, known))
    return found


def _read(
    prefiller: Prefiller, answers: Sequence[Answer], rows: Sequence[int]
) -> Iterator[tuple[int, ImportanceMap, Reused]]:
    """Runs the prompts of some answers; yields the number, the map, and what was known of each."""
    own = [answers[row] for row in rows]
    pictures = zip(rows, prefiller.see(own, [answer.prompt for answer in own]), strict=True)
    seen = {row: embedded for row, embedded in pictures if embedded is not None}  # others have an error
    if not seen:
        return
    vlm = prefiller.vlm
    ready = prefiller.prefill([answers[row].prompt for row in seen], list(seen.values()))
    first, cache = ready.prefix.tokens, ready.prefix.cache
    with capture_attention(vlm, ready.batch, cached_tokens=first) as recorder:
        vlm.forward_batch(
            ready.embeddings, batch=ready.batch, first_position=first, cache=cache, logit_rows=0
        )
    for number, (row, embedded) in enumerate(seen.items()):
        importance = importance_map(recorder.sums(number), answers[row].prompt.spans)
        yield row, importance, embedded.reused(ready.prefix.known[number])
