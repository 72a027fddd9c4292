"""The small model's turn: answer, map of importance, confidence (SGL, sections 3.2 and 3.3)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from sgl_engine.attention import capture_attention
from sgl_engine.cancellation import check_wanted
from sgl_engine.confidence import find_scorer, measure_confidence
from sgl_engine.generation import finish, stream_tokens
from sgl_engine.importance import importance_map
from sgl_engine.pruning import plan_pruning, prune_visual_tokens
from sgl_engine.types import Decoding, EncodedPrompt, Generation, PruningPlan, SmallPassResult

if TYPE_CHECKING:
    from sgl_engine.vlm import VLM

CONSISTENCY_KEEP_RATIO = 0.05


def run_small_pass(
    vlm: VLM,
    prompt: EncodedPrompt,
    *,
    max_new_tokens: int,
    stop_at_eos: bool = True,
    decoding: Decoding | None = None,
    scorer: str | None = None,
    consistency_keep_ratio: float = CONSISTENCY_KEEP_RATIO,
) -> SmallPassResult:
    """Answers, recording attention, then asks how likely the answer is when little of the image is seen.

    The vision tower runs once. Without visual tokens nothing is recorded, and the confidence is the score.

    Args:
        vlm: The small model.
        prompt: Encoded by it.
        max_new_tokens: Upper limit of answer tokens.
        stop_at_eos: False goes on to the limit.
        decoding: How tokens are chosen, stop strings, deadline, cancellation; None is greedy.
        scorer: Name in ``sgl_engine.confidence.SCORERS``; None is the default.
        consistency_keep_ratio: Visual tokens that the consistency pass sees.

    Raises:
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
        ConfigError: There is no such scorer.
    """
    decoding = decoding or Decoding()
    find_scorer(scorer)  # before the work, not after it
    # Held from the first layer to the last token: what is recorded must be this request's attention.
    with vlm.exclusive(partial(check_wanted, decoding, "before the small model began")):
        return _answer(
            vlm,
            prompt,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
            decoding=decoding,
            scorer=scorer,
            consistency_keep_ratio=consistency_keep_ratio,
        )


def _answer(
    vlm: VLM,
    prompt: EncodedPrompt,
    *,
    max_new_tokens: int,
    stop_at_eos: bool,
    decoding: Decoding,
    scorer: str | None,
    consistency_keep_ratio: float,
) -> SmallPassResult:
    started = time.perf_counter()
    embeddings = vlm.embed(prompt)
    seen = time.perf_counter()
    with capture_attention(vlm, prompt) as recorder:
        generation = finish(
            stream_tokens(
                vlm,
                prompt,
                embeddings,
                cache=vlm.new_cache(),
                max_new_tokens=max_new_tokens,
                stop_at_eos=stop_at_eos,
                decoding=decoding,
            )
        )
    answered = time.perf_counter()
    importance, plan, consistency = None, None, None
    if prompt.spans:
        check_wanted(decoding, "before the consistency pass")
        importance = importance_map(recorder.sums(), prompt.spans)
        first = vlm.family.first_prunable_layer
        plan = plan_pruning(prompt, importance, layer=first, keep_ratio=consistency_keep_ratio)
        consistency = answer_logprobs(vlm, prompt, embeddings, generation, plan).tolist()
    return SmallPassResult(
        generation=generation,
        confidence=measure_confidence(generation.logprobs.tolist(), consistency, scorer),
        importance=importance,
        consistency_plan=plan,
        stage_ms={
            "vision": 1e3 * (seen - started),
            "generate": 1e3 * (answered - seen),
            "consistency": 1e3 * (time.perf_counter() - answered),
        },
    )


def answer_logprobs(
    vlm: VLM, prompt: EncodedPrompt, embeddings: Tensor, generation: Generation, plan: PruningPlan
) -> Tensor:
    """How likely an answer is on a pruned prompt: one teacher-forced pass.

    Args:
        vlm: The model.
        prompt: The prompt.
        embeddings: ``vlm.embed(prompt)``: of the unpruned prompt, vision features included.
        generation: The answer, T tokens.
        plan: What of the prompt is seen.

    Returns:
        float32 (T,), natural log of each answer token's probability.
    """
    tokens = generation.token_ids
    forced = vlm.append_tokens(embeddings, tokens[:-1])
    with prune_visual_tokens(vlm, plan):
        logits = vlm.forward(forced, prompt=prompt, first_position=0, cache=None, logit_rows=len(tokens))
    return logits.log_softmax(dim=-1).gather(1, tokens.to(logits.device)[:, None])[:, 0].cpu()
