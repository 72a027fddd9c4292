"""Answers with the small model, finds what is important, and measures how sure it is (SGL, 3.2 and 3.3).

    vision tower -> answer, attention recorded -> importance map -> consistency pass

The consistency pass asks how likely the same answer is when only the most important visual tokens are seen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_engine.attention.capture import capture_attention
from sgl_engine.attention.importance import ImportanceMap, importance_map
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.decoding.answer import Answer, AnswerTask, Generation
from sgl_engine.decoding.loop import MAX_LOGIT_ROWS, NobodyWaitsError, decode, exclusive_for
from sgl_engine.errors import RequestError
from sgl_engine.exit.decision import measure_answer
from sgl_engine.passes.pictures import NOTHING_REUSED, EmbeddedPrompt, Reused
from sgl_engine.passes.prefill import Prefiller, group_rows, run_in_groups
from sgl_engine.passes.prefixes import shares_prefix
from sgl_engine.prompt.encoded import MAX_ROWS, EncodedPrompt, PromptBatch
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import KeptColumns, PruningPlan, plan_pruning

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class SmallPassResult:
    """What the small model said, how sure it is, and where it looked.

    Attributes:
        generation: The small answer.
        parts: How sure the model was (``sgl_engine.exit.decision``).
        importance: None when the prompt holds no image.
        consistency_plan: What the consistency pass saw of the prompt; None when there was none.
        stage_ms: Milliseconds: "vision", "generate", and "consistency" where that pass was wanted.
        reused: What was known before.
    """

    generation: Generation
    parts: Mapping[str, float]
    importance: ImportanceMap | None
    consistency_plan: PruningPlan | None
    stage_ms: Mapping[str, float]
    reused: Reused = NOTHING_REUSED


CONSISTENCY_KEEP_RATIO = 0.05
"""Fraction of the visual tokens that the consistency pass sees."""


def run_small_pass(
    vlm: VLM,
    task: AnswerTask,
    *,
    consistency_keep_ratio: float | None = CONSISTENCY_KEEP_RATIO,
    reuse: ReuseConfig = NO_REUSE,
) -> SmallPassResult:
    """Answers, recording attention, then measures how likely the answer is when little of the image is seen.

    A batch of one. The vision tower runs once, or not at all where the pictures are known. Without visual
    tokens nothing is recorded, and there is no consistency pass.

    Args:
        vlm: The small model.
        task: The prompt, encoded by it, and what the answer is to be like.
        consistency_keep_ratio: Fraction of the visual tokens that the consistency pass sees; None leaves it
            out.
        reuse: What may be kept for, or known from, another request.

    Raises:
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
    """
    [result] = run_small_batch(vlm, [task], consistency_keep_ratio=consistency_keep_ratio, reuse=reuse)
    if isinstance(result, RequestError):
        raise result
    return result


def run_small_batch(
    vlm: VLM,
    tasks: Sequence[AnswerTask],
    *,
    consistency_keep_ratio: float | None = CONSISTENCY_KEEP_RATIO,
    max_rows: int = MAX_ROWS,
    reuse: ReuseConfig = NO_REUSE,
) -> list[SmallPassResult | RequestError]:
    """Answers several prompts side by side, each as ``run_small_pass`` does.

    Args:
        vlm: The small model.
        tasks: The prompts, and what their answers are to be like.
        consistency_keep_ratio: Fraction of the visual tokens that the consistency pass sees; None leaves it
            out.
        max_rows: Prompts side by side at most.
        reuse: What may be kept for, or known from, another request.

    Returns:
        In order, results, or errors of single tasks. The milliseconds of a result are its equal share of
        those of its group.
    """

    def run(rows: list[int]) -> list[SmallPassResult | RequestError]:
        return _run_group(vlm, [tasks[row] for row in rows], consistency_keep_ratio, reuse)

    kinds = shares_prefix(vlm, [task.prompt for task in tasks], None, reuse)
    return run_in_groups(vlm, tasks, kinds, run, max_rows=max_rows)


@dataclass(eq=False)
class _Row:
    """One prompt of a group, and what has become of it so far."""

    answer: Answer
    embedded: EmbeddedPrompt | None = None
    known_tokens: int = 0
    importance: ImportanceMap | None = None
    plan: PruningPlan | None = None
    consistency: list[float] | None = None

    @property
    def prompt(self) -> EncodedPrompt:
        """What the answer is an answer to."""
        return self.answer.prompt


def _run_group(
    vlm: VLM, tasks: Sequence[AnswerTask], keep_ratio: float | None, reuse: ReuseConfig
) -> list[SmallPassResult | RequestError]:
    """Runs tasks side by side; returns results or errors, in order."""
    rows = [_Row(Answer(vlm, task)) for task in tasks]
    stage_ms: dict[str, float] = {}
    answers = [row.answer for row in rows]
    # The model is held from the first layer to the last token: what is recorded must be these prompts' alone.
    with suppress(NobodyWaitsError), exclusive_for(vlm, answers, "before the small model began"):
        stage_ms = _run_stages(Prefiller(vlm, reuse), rows, keep_ratio)
    return [row.answer.error or _result(row, stage_ms) for row in rows]


def _run_stages(prefiller: Prefiller, rows: Sequence[_Row], keep_ratio: float | None) -> dict[str, float]:
    """Runs the stages, filling the rows; returns the milliseconds of each stage, shared out equally."""
    started = time.perf_counter()
    pictures = prefiller.see([row.answer for row in rows], [row.prompt for row in rows])
    for row, embedded in zip(rows, pictures, strict=True):
        row.embedded = embedded
    seen = time.perf_counter()
    _answer(prefiller, [row for row in rows if row.answer.error is None])
    answered = time.perf_counter()
    stage_ms = {
        "vision": 1e3 * (seen - started) / len(rows),
        "generate": 1e3 * (answered - seen) / len(rows),
    }
    if keep_ratio is not None:
        _check_consistency(prefiller.vlm, rows, keep_ratio)
        stage_ms["consistency"] = 1e3 * (time.perf_counter() - answered) / len(rows)
    return stage_ms


def _answer(prefiller: Prefiller, rows: Sequence[_Row]) -> None:
    """Generates the answers, and records where the model looks."""
    if not rows:
        return
    vlm = prefiller.vlm
    embedded = [row.embedded for row in rows if row.embedded is not None]
    ready = prefiller.prefill([row.prompt for row in rows], embedded)
    with capture_attention(vlm, ready.batch, cached_tokens=ready.prefix.tokens) as recorder:

        def only(running: Sequence[int]) -> AbstractContextManager[None]:
            """Tells the recorder which rows run in the next forward; patches nothing."""
            recorder.select(running)
            return nullcontext()

        steps = decode(
            vlm,
            ready.batch,
            ready.embeddings,
            [row.answer for row in rows],
            cache=ready.prefix.cache,
            cached_tokens=ready.prefix.tokens,
            patch=only,
        )
        for _ in steps:  # the text is not shown: whether the answer is kept is not decided yet
            pass
    for number, row in enumerate(rows):
        row.known_tokens = ready.prefix.known[number]
        if row.prompt.spans and row.answer.error is None:
            row.importance = importance_map(recorder.sums(number), row.prompt.spans)


def _check_consistency(vlm: VLM, rows: Sequence[_Row], keep_ratio: float) -> None:
    """Measures how likely the answers are when little of the pictures is seen."""
    # Without visual tokens there is nothing to hide.
    rows = [row for row in rows if row.importance is not None]
    for row in rows:
        row.answer.check_wanted("before the consistency pass")
    rows = [row for row in rows if row.answer.error is None]
    for row in rows:
        assert row.importance is not None
        row.plan = plan_pruning(
            row.prompt, row.importance, layer=vlm.family.first_prunable_layer, keep_ratio=keep_ratio
        )
    # Logits are needed for every answer token, so their memory limits how many rows run side by side.
    longest = max((len(row.answer.generation().answer) for row in rows), default=1)
    groups = group_rows(
        [len(row.prompt) + len(row.answer.ids) for row in rows],
        [row.plan is not None and row.plan.prunes for row in rows],
        max_rows=max(1, MAX_LOGIT_ROWS // longest),
    )
    for group in groups:
        together = [rows[number] for number in group]
        batch, embeddings = _together(vlm, together)
        logprobs = answers_logprobs(
            vlm,
            batch,
            embeddings,
            [row.answer.generation() for row in together],
            [row.plan for row in together if row.plan is not None],
        )
        for row, of_row in zip(together, logprobs, strict=True):
            row.consistency = of_row.tolist()


def _together(vlm: VLM, rows: Sequence[_Row]) -> tuple[PromptBatch, Tensor]:
    """Lays the rows' prompts, already embedded, side by side: the batch, and embeddings (B, S, width)."""
    batch = vlm.batch([row.prompt for row in rows])
    return batch, batch.join([row.embedded.embeddings for row in rows if row.embedded is not None])


def _result(row: _Row, stage_ms: Mapping[str, float]) -> SmallPassResult:
    generation = row.answer.generation()
    answer = generation.answer
    return SmallPassResult(
        generation=generation,
        # How sure it is of what it says, not of what it thought before.
        parts=measure_answer(answer.logprobs.tolist(), answer.entropies.tolist(), row.consistency),
        importance=row.importance,
        consistency_plan=row.plan,
        stage_ms=stage_ms,
        reused=NOTHING_REUSED if row.embedded is None else row.embedded.reused(row.known_tokens),
    )


def answer_logprobs(
    vlm: VLM, prompt: EncodedPrompt, embeddings: Tensor, generation: Generation, plan: PruningPlan
) -> Tensor:
    """Computes how likely an answer is on a pruned prompt, in one teacher-forced pass.

    Args:
        vlm: The model.
        prompt: The prompt.
        embeddings: ``vlm.embed(prompt)``, (1, S, width): unpruned, visual features included.
        generation: The answer, T tokens.
        plan: What of the prompt is seen.

    Returns:
        float32, natural log of each answer token's probability; thoughts are fed, and left out.
    """
    return answers_logprobs(vlm, vlm.batch([prompt]), embeddings, [generation], [plan])[0]


def answers_logprobs(
    vlm: VLM,
    batch: PromptBatch,
    embeddings: Tensor,
    generations: Sequence[Generation],
    plans: Sequence[PruningPlan],
) -> list[Tensor]:
    """Computes ``answer_logprobs`` for several answers side by side; plans as for ``KeptColumns.of``."""
    longest = max(map(len, generations))
    # All tokens but the last are fed: logits behind one are those of the next. What fills up shorter answers
    # comes after them, where none of their tokens sees it.
    fed = [F.pad(each.token_ids, (0, longest - len(each)))[:-1] for each in generations]
    forced = vlm.append_tokens(embeddings, torch.stack(fed))
    first = min(each.reasoning_tokens for each in generations)  # logits before it are nobody's
    with prune_visual_tokens(vlm, KeptColumns.of(plans)):
        logits = vlm.forward_batch(
            forced, batch=batch, first_position=0, cache=None, logit_rows=longest - first
        )
    found = []
    for of_row, generation in zip(logits, generations, strict=True):
        tokens = generation.answer.token_ids.to(logits.device)
        begin = generation.reasoning_tokens - first
        rows = of_row[begin : begin + len(tokens)]
        found.append(rows.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].cpu())
    return found
