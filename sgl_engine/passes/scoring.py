"""How likely given answers are: one prefill, then every answer teacher-forced on its cache.

Nothing is generated and nothing is masked: a score is the probability that the model, asked freely, would say
exactly this answer and stop. The cache is cropped back to the prompt between answers, so that they do not see
each other; under a pruning plan it is ragged, and is cropped by the same number of tokens in every layer.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from sgl_engine.attention.capture import capture_attention
from sgl_engine.attention.importance import AttentionSums, ImportanceMap, importance_map
from sgl_engine.attention.recorder import AttentionRecorder
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.errors import (
    InvalidRequestError,
    PromptTooLongError,
    UnsupportedModelError,
)
from sgl_engine.passes.embedding import NOTHING_REUSED, Reused, embed_pictures
from sgl_engine.passes.prefixes import find_prefixes
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan, keep_everything
from sgl_engine.request import Decoding, check_wanted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM


def run_scoring_pass(
    vlm: VLM,
    prompt: EncodedPrompt,
    answers: Sequence[str],
    *,
    plan: PruningPlan | None = None,
    guide: bool = False,
    decoding: Decoding | None = None,
    reuse: ReuseConfig = NO_REUSE,
) -> ScoringPassResult:
    """Scores answers to a prompt.

    Args:
        vlm: The model.
        prompt: Encoded by it.
        answers: At least one; none of them empty.
        plan: What of the prompt is seen; None is everything. Not together with ``guide``.
        guide: Whether attention is recorded, for an importance map.
        decoding: Only its deadline and cancellation count.
        reuse: What may be kept for, or known from, another request.

    Raises:
        InvalidRequestError: No answers, an empty one, or one with a control token of the model in it.
        PromptTooLongError: An answer does not fit the context.
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
        ConfigError: The model cannot be pruned at the plan's layer.
        UnsupportedModelError: The model has no end-of-sequence token.
    """
    decoding = decoding or Decoding()
    plan = plan or keep_everything(prompt)
    guide = guide and bool(prompt.spans)
    assert not (guide and plan.prunes), "attention is read unpruned"
    # Held throughout: tokenizers have state, hooks and recordings must see this request alone.
    with vlm.exclusive(partial(check_wanted, decoding, "before the answers were scored")):
        tokens = [_tokenize(vlm, answer) for answer in _checked(answers)]
        _check_model(vlm, prompt, tokens)
        return _score(vlm, prompt, tokens, plan=plan, guide=guide, decoding=decoding, reuse=reuse)


def _score(
    vlm: VLM,
    prompt: EncodedPrompt,
    tokens: Sequence[Sequence[int]],
    *,
    plan: PruningPlan,
    guide: bool,
    decoding: Decoding,
    reuse: ReuseConfig,
) -> ScoringPassResult:
    started = time.perf_counter()
    embedded = embed_pictures(vlm, prompt, reuse)
    seen = time.perf_counter()
    prefix = find_prefixes(vlm, vlm.batch([prompt]), [embedded.embeddings], [plan], reuse)
    cache, cached = prefix.cache, prefix.tokens
    with (
        prune_visual_tokens(vlm, plan, prefix.lower),
        capture_attention(vlm, prompt, cached_tokens=cached) if guide else nullcontext() as recorder,
    ):
        rest = embedded.embeddings[:, cached:]
        first = vlm.forward(rest, prompt=prompt, first_position=cached, cache=cache)
    prefilled = time.perf_counter()
    scored: list[tuple[float, ...]] = []
    for ids in tokens:
        check_wanted(decoding, f"after {len(scored)} of {len(tokens)} answers were scored")
        with prune_visual_tokens(vlm, plan):
            rows = torch.cat((first, _force(vlm, prompt, cache, ids)))
        scored.append(_logprobs(vlm, rows, ids))
    best = max(range(len(scored)), key=lambda index: math.fsum(scored[index]))
    importance = None if recorder is None else _importance(vlm, prompt, cache, recorder, tokens[best])
    return ScoringPassResult(
        token_logprobs=tuple(scored),
        best=best,
        importance=importance,
        reused=embedded.reused(prefix.known[0]),
        stage_ms={
            "vision": 1e3 * (seen - started),
            "prefill": 1e3 * (prefilled - seen),
            "score": 1e3 * (time.perf_counter() - prefilled),
        },
    )


def _force(vlm: VLM, prompt: EncodedPrompt, cache: DynamicCache, ids: Sequence[int]) -> Tensor:
    """Logits (T, vocab) after each of T answer tokens; the cache is left as it was."""
    embeddings = vlm.embed_tokens(torch.tensor(ids, dtype=torch.int64))
    # A recurrent state, or a window that has moved on, cannot be taken back: those work on a copy.
    can_be_cropped = all(type(layer) is DynamicLayer for layer in cache.layers)
    used = cache if can_be_cropped else copy.deepcopy(cache)
    logits = vlm.forward(
        embeddings, prompt=prompt, first_position=len(prompt), cache=used, logit_rows=len(ids)
    )
    if can_be_cropped:
        cache.crop(-len(ids))  # tokens to drop, so it is right for the shorter caches of pruned layers too
    return logits


def _logprobs(vlm: VLM, rows: Tensor, ids: Sequence[int]) -> tuple[float, ...]:
    """Natural logs of the probabilities of T tokens and of the end after them, from logits (T + 1, vocab)."""
    logs = rows.log_softmax(dim=-1).cpu()
    chosen = logs[range(len(ids)), ids].tolist()
    # Whichever end token comes: all of them end the answer. Rounding must not make it likelier than certain.
    return (*chosen, min(0.0, float(logs[-1, sorted(vlm.eos_token_ids)].logsumexp(dim=-1))))


def _importance(
    vlm: VLM, prompt: EncodedPrompt, cache: DynamicCache, prefill: AttentionRecorder, best: Sequence[int]
) -> ImportanceMap:
    """The map that a generation of the best answer would have left: its tokens are fed again, recorded."""
    with capture_attention(vlm, prompt, cached_tokens=len(prompt)) as recorder:
        _force(vlm, prompt, cache, best)
    before, after = prefill.sums(), recorder.sums()
    sums = AttentionSums(before.prefill, after.decode, before.prefill_queries, after.decode_queries)
    return importance_map(sums, prompt.spans)


def _checked(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers or not all(answer.strip() for answer in answers):
        raise InvalidRequestError(
            f"The answers to score are {answers!r}; at least one is needed, and none may be empty.",
            remedy="Give a list of the texts that are to be compared.",
        )
    return answers


def _tokenize(vlm: VLM, answer: str) -> list[int]:
    """The tokens as which the model itself would write ``answer``, at the start of its turn."""
    tokenizer = vlm.processor.tokenizer
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    added = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    control = {*tokenizer.all_special_ids, *added}.intersection(ids)
    if control:
        raise InvalidRequestError(
            f"The answer {answer!r} contains {tokenizer.decode([min(control)])!r}, "
            "which is a control token of the model.",
            remedy="Remove it, or write it with a space inside.",
        )
    return ids


def _check_model(vlm: VLM, prompt: EncodedPrompt, tokens: Sequence[Sequence[int]]) -> None:
    if not vlm.eos_token_ids:
        raise UnsupportedModelError(
            f"{vlm.name} names no end-of-sequence token, so its answers have no end and no probability.",
            remedy="Set model.generation_config.eos_token_id.",
        )
    longest = len(prompt) + max(map(len, tokens))
    if longest > vlm.context_tokens:
        raise PromptTooLongError(
            f"Prompt and longest answer have {longest} tokens; the context of {vlm.name} is "
            f"{vlm.context_tokens}.",
            remedy="Shorten the text, or send fewer or smaller images.",
        )


@dataclass(frozen=True, eq=False)
class ScoringPassResult:
    """One model's scores.

    Attributes:
        token_logprobs: Per answer, the natural log of each of its tokens' probability, its end last.
        best: Index of the likeliest answer; the first of equals.
        importance: Attention to the visual tokens, by the prompt's rows and those of the best answer; None
            where it was not asked for, or the prompt holds no image.
        stage_ms: Milliseconds: "vision", "prefill", "score".
        reused: What was known before.
    """

    token_logprobs: tuple[tuple[float, ...], ...]
    best: int
    importance: ImportanceMap | None
    stage_ms: dict[str, float]
    reused: Reused = NOTHING_REUSED

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Natural log of the probability of each whole answer."""
        return tuple(math.fsum(tokens) for tokens in self.token_logprobs)

    @property
    def forced_tokens(self) -> tuple[int, ...]:
        """Tokens of each answer that was fed, its end not counted; the best one's twice, if recorded."""
        fed = tuple(len(tokens) - 1 for tokens in self.token_logprobs)
        return fed if self.importance is None else (*fed, fed[self.best])

    @property
    def output_tokens(self) -> int:
        """Answer tokens that were scored, all answers together, their ends included."""
        return sum(len(tokens) for tokens in self.token_logprobs)
