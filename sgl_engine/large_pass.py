"""The large model's turn, on what the small one thought worth seeing (SGL, section 3.2, SGP)."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING

from sgl_engine.cancellation import check_wanted
from sgl_engine.generation import finish, stream_tokens
from sgl_engine.pruning import prune_visual_tokens
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
