"""Scores given answers: one prefill, then the answers teacher-forced on its cache.

Nothing is generated: a score is the probability that the model, asked freely, would say exactly this answer
and stop. Answers run side by side in one forward, in which equal beginnings are one (``attention.trie``).
Where a model cannot do that, they follow each other, and the cache is cropped back to the prompt between
them. Under a pruning plan it is ragged, and is cropped by the same number of tokens in every layer.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from sgl_engine.attention.capture import capture_attention
from sgl_engine.attention.importance import AttentionSums, ImportanceMap, importance_map
from sgl_engine.attention.recorder import AttentionRecorder
from sgl_engine.attention.trie import TokenTrie, in_tries, run_trie
from sgl_engine.config import NO_REUSE, ReuseConfig
from sgl_engine.passes.pictures import embed_pictures
from sgl_engine.passes.prefill import Prefiller, adds_masks, can_branch
from sgl_engine.passes.scored_texts import AnswerPath, ScoringPassResult, path_logprobs, read_answers
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.pruning.patch import prune_visual_tokens
from sgl_engine.pruning.plan import PruningPlan, keep_everything
from sgl_engine.request import Decoding, check_wanted
from sgl_engine.serving.job import finish

if TYPE_CHECKING:
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
    """Scores answers to a prompt, as ``stream_scoring_pass`` does, but in one go."""
    steps = stream_scoring_pass(vlm, prompt, answers, plan=plan, guide=guide, decoding=decoding, reuse=reuse)
    return finish(steps)


def stream_scoring_pass(
    vlm: VLM,
    prompt: EncodedPrompt,
    answers: Sequence[str],
    *,
    plan: PruningPlan | None = None,
    guide: bool = False,
    decoding: Decoding | None = None,
    reuse: ReuseConfig = NO_REUSE,
) -> Generator[None, None, ScoringPassResult]:
    """Scores answers to a prompt; yields after each of them, and returns the result.

    The model is held, and patched, only while it computes.

    Args:
        vlm: The model.
        prompt: Encoded by it.
        answers: At least one; none of them empty.
        plan: What of the prompt is seen; None is everything. Not together with ``guide``.
        guide: Whether attention is recorded, for an importance map.
        decoding: Only its deadline and cancellation count.
        reuse: What may be kept for, or known from, another request.

    Raises:
        InvalidRequestError: No answers, an empty one, or one with a control token that the model's tokenizer
            cannot read as text.
        PromptTooLongError: An answer does not fit the context.
        DeadlineError: The deadline passed.
        RequestCancelledError: The answer is not wanted any more.
        ConfigError: The model cannot be pruned at the plan's layer.
        UnsupportedModelError: The model has no end-of-sequence token.
    """
    decoding = decoding or Decoding()
    scoring = _Scoring(vlm, prompt, plan or keep_everything(prompt), decoding)
    guide = guide and bool(prompt.spans)
    assert not (guide and scoring.plan.prunes), "attention is read unpruned"
    with scoring.held("before the answers were scored"):
        tokens = read_answers(vlm, prompt, answers, decoding)
        scoring.prefill(Prefiller(vlm, reuse), guide=guide)
    yield
    branches = can_branch(vlm)
    tries = in_tries(tokens if branches else ())
    for step in tries if branches else range(len(tokens)):
        with scoring.held(f"after {len(scoring.logprobs)} of {len(tokens)} answers were scored"):
            if isinstance(step, int):
                scoring.score(step, tokens[step])
            else:
                scoring.score_together(*step)
        yield
    with scoring.held("after all answers were scored"):
        return scoring.result(tokens)


class _Scoring:
    """The state of one scoring pass between its steps; arguments as of ``stream_scoring_pass``.

    Attributes:
        plan: What is pruned of what enters.
        logprobs: Log-probabilities of the answers so far, token by token, by their numbers.
    """

    def __init__(self, vlm: VLM, prompt: EncodedPrompt, plan: PruningPlan, decoding: Decoding) -> None:
        # What enters, and what is pruned of that.
        self._prompt, self.plan = plan.enter(prompt)
        self.logprobs: dict[int, tuple[float, ...]] = {}
        self._fed: list[int] = []  # tokens of each forward of answers
        self._vlm = vlm
        self._decoding = decoding
        self._stage_ms = {"vision": 0.0, "prefill": 0.0, "score": 0.0}

    @contextmanager
    def held(self, where: str) -> Iterator[None]:
        """Holds the model for one step, as long as the scores are wanted."""
        # Alone, as hooks must see this request only.
        check_wanted(self._decoding, where)
        with self._vlm.exclusive(partial(check_wanted, self._decoding, where)):
            yield

    def prefill(self, prefiller: Prefiller, *, guide: bool) -> None:
        """Embeds the pictures and runs the prompt; with ``guide``, records attention."""
        vlm, prompt = self._vlm, self._prompt
        started = time.perf_counter()
        self._embedded = embed_pictures(vlm, prompt, prefiller.reuse)
        seen = time.perf_counter()
        ready = prefiller.prefill([prompt], [self._embedded], [self.plan])
        self._prefix, known = ready.prefix, ready.prefix.tokens
        with (
            prune_visual_tokens(vlm, self.plan, ready.prefix.lower),
            capture_attention(vlm, prompt, cached_tokens=known) if guide else nullcontext() as self._recorder,
        ):
            # (1, vocab): from the prompt's last token follows the first token of every answer.
            self._first = vlm.forward(
                ready.embeddings, prompt=prompt, first_position=known, cache=ready.prefix.cache
            )
        self._stage_ms["vision"] = 1e3 * (seen - started)
        self._stage_ms["prefill"] = 1e3 * (time.perf_counter() - seen)

    def score(self, number: int, ids: Sequence[int]) -> None:
        """Feeds one answer whole, and notes the log-probabilities of its tokens and of its end."""
        started = time.perf_counter()
        with prune_visual_tokens(self._vlm, self.plan):
            rows = torch.cat((self._first, _force(self._vlm, self._prompt, self._prefix.cache, ids)))
        path = AnswerPath(range(len(ids)), ids)
        [self.logprobs[number]] = path_logprobs(self._vlm, rows.log_softmax(dim=-1), [path])
        self._fed.append(len(ids))
        self._stage_ms["score"] += 1e3 * (time.perf_counter() - started)

    def score_together(self, trie: TokenTrie, paths: Mapping[int, Sequence[int]]) -> None:
        """Feeds several answers side by side: paths of a trie, by their numbers."""
        started, prompt = time.perf_counter(), self._prompt
        with prune_visual_tokens(self._vlm, self.plan, among=trie.visible()):
            rows = run_trie(
                self._vlm,
                trie,
                prompt=prompt,
                first_position=len(prompt),
                cache=self._prefix.cache,
                additive=adds_masks(self._vlm),
            )
        logs = torch.cat((self._first, rows)).log_softmax(dim=-1)
        of_each = [AnswerPath(path, [trie.tokens[node] for node in path]) for path in paths.values()]
        self.logprobs |= zip(paths, path_logprobs(self._vlm, logs, of_each), strict=True)
        self._fed.append(len(trie))
        self._stage_ms["score"] += 1e3 * (time.perf_counter() - started)

    def result(self, tokens: Sequence[Sequence[int]]) -> ScoringPassResult:
        """Makes the result; an importance map gets the rows of the best answer as well."""
        started = time.perf_counter()
        logprobs = tuple(self.logprobs[number] for number in range(len(tokens)))
        best = max(range(len(logprobs)), key=lambda index: math.fsum(logprobs[index]))
        importance = None
        if self._recorder is not None:
            cache = self._prefix.cache
            importance = _importance(self._vlm, self._prompt, cache, self._recorder, tokens[best])
            self._fed.append(len(tokens[best]))
        self._stage_ms["score"] += 1e3 * (time.perf_counter() - started)
        return ScoringPassResult(
            token_logprobs=logprobs,
            forced_tokens=tuple(self._fed),
            best=best,
            importance=importance,
            reused=self._embedded.reused(self._prefix.known[0]),
            stage_ms=self._stage_ms,
        )


def _force(vlm: VLM, prompt: EncodedPrompt, cache: DynamicCache, ids: Sequence[int]) -> Tensor:
    """Feeds T answer tokens; returns logits (T, vocab) after each of them. The cache stays as it was."""
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


def _importance(
    vlm: VLM, prompt: EncodedPrompt, cache: DynamicCache, prefill: AttentionRecorder, best: Sequence[int]
) -> ImportanceMap:
    """Makes the map that generating the best answer would have left: its tokens are fed again, recorded."""
    with capture_attention(vlm, prompt, cached_tokens=len(prompt)) as recorder:
        _force(vlm, prompt, cache, best)
    before, after = prefill.sums(), recorder.sums()
    sums = AttentionSums(before.prefill, after.decode, before.prefill_queries, after.decode_queries)
    return importance_map(sums, prompt.spans)
