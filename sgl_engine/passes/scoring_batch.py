"""Scores given answers to several questions about the same pictures, in one forward where they fit.

    what all prompts begin with -> its cache;  rests of prompts and answers -> tries on that cache

Each question sees what it shares and itself alone, so the scores are those of a pass of its own.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_engine.attention.trie import TokenTrie, in_tries, run_trie
from sgl_engine.config import ReuseConfig
from sgl_engine.errors import RequestError
from sgl_engine.passes.pictures import EmbeddedPrompt, Reused, embed_pictures
from sgl_engine.passes.prefill import Prefiller, adds_masks, can_branch
from sgl_engine.passes.scored_texts import (
    AnswerPath,
    ScoringPassResult,
    ScoringTask,
    path_logprobs,
    read_answers,
)
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import check_wanted

if TYPE_CHECKING:
    from transformers import DynamicCache

    from sgl_engine.model.vlm import VLM


def shared_beginning(vlm: VLM, task: ScoringTask, reuse: ReuseConfig) -> Hashable | None:
    """What tasks that run side by side have in common: the prompt up to its last picture.

    None for a task that runs alone: attention is recorded, something is pruned, or masks do not decide who
    sees what in this model.
    """
    prompt, plan = task.prompt, task.plan
    prunes = task.guide or (plan is not None and plan.prunes) or prompt.part is not None
    if prunes or not (can_branch(vlm) and vlm.family.looks_back_only):
        return None
    found = hashlib.sha256(b"".join(prompt.picture_digests))
    end = len(prompt) - rest_tokens(prompt)
    found.update(prompt.input_ids[0, :end].cpu().numpy().tobytes())
    if prompt.positions is not None:
        found.update(prompt.positions[:, 0, :end].cpu().numpy().tobytes())
    return "scored", reuse, prompt.cache_salt, found.digest()


def rest_tokens(prompt: EncodedPrompt) -> int:
    """How many tokens of a prompt come after its first token and its last picture."""
    return len(prompt) - 1 - max((span.positions[-1] for span in prompt.spans), default=0)


def stream_scoring_batch(
    vlm: VLM, tasks: Sequence[ScoringTask], *, reuse: ReuseConfig
) -> Generator[list[tuple[int, Any]], None, None]:
    """Scores the answers of several tasks side by side; those of ``shared_beginning``.

    Yields:
        After each forward, the numbers of the tasks that are done with it, and their results; an error ends
        its task alone.
    """
    batch = _Batch(vlm, [_Question(task) for task in tasks])
    with vlm.exclusive():
        batch.prefill(reuse)
    yield batch.ended()
    for trie, paths in batch.tries():
        with vlm.exclusive():
            batch.score(trie, paths)
        yield batch.ended()


@dataclass(eq=False)
class _Question:
    """One task, and what has become of it so far.

    Attributes:
        task: What is scored.
        tokens: Of its answers.
        logprobs: Of its answers so far, by their numbers.
        known: Prompt tokens that were not computed for it.
        fed: Tokens of its answers that were.
        ms: Its share of the time, by stage.
        error: Why it has no scores.
        told: Whether its outcome was passed on.
    """

    task: ScoringTask
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: dict[int, tuple[float, ...]] = field(default_factory=dict)
    known: int = 0
    fed: int = 0
    ms: dict[str, float] = field(default_factory=lambda: {"vision": 0.0, "prefill": 0.0, "score": 0.0})
    error: RequestError | None = None
    told: bool = False

    @property
    def prompt(self) -> list[int]:
        """Its prompt's tokens."""
        ids: list[int] = self.task.prompt.input_ids[0].tolist()
        return ids


class _Batch:
    """Tasks side by side."""

    def __init__(self, vlm: VLM, rows: Sequence[_Question]) -> None:
        self._vlm = vlm
        self._rows = rows
        self._items: list[tuple[int, int]] = []  # row and answer, of each sequence
        self._sequences: list[list[int]] = []
        self._shared = 0

    def prefill(self, reuse: ReuseConfig) -> None:
        """Reads the answers, and runs what all prompts begin with."""
        started = time.perf_counter()
        read: dict[tuple[str, ...], list[list[int]]] = {}  # questions often have the same answers
        for row in self._rows:
            task = row.task
            with _attempt(row):
                row.tokens = read_answers(self._vlm, task.prompt, task.answers, task.decoding, read)
        going = [row for row in self._rows if row.error is None]
        if not going:
            return
        self._first = going[0]
        prompts = [row.prompt for row in going]
        self._shared = _common(prompts)
        embedded = embed_pictures(self._vlm, going[0].task.prompt, reuse)
        seen = time.perf_counter()
        self._embedded = embedded
        self._run_shared(embedded, reuse)
        for number, row in enumerate(self._rows):
            if row.error is None:
                rest = row.prompt[self._shared :]
                self._items += [(number, answer) for answer in range(len(row.tokens))]
                self._sequences += [[*rest, *ids] for ids in row.tokens]
                row.known = self._known if row is self._first else self._shared
        self._spend("vision", seen - started)
        self._spend("prefill", time.perf_counter() - seen)

    def _run_shared(self, embedded: EmbeddedPrompt, reuse: ReuseConfig) -> None:
        """Fills the cache with what all prompts share, and keeps the logits behind it."""
        prompt = self._first.task.prompt
        ready = Prefiller(self._vlm, reuse).prefill([prompt], [embedded])
        first = ready.prefix.tokens
        assert first < self._shared, "a prefix ends before the last visual token, which all share"
        self._cache: DynamicCache = ready.prefix.cache
        self._known = ready.prefix.known[0]
        self._before: Tensor = self._vlm.forward(
            embedded.embeddings[:, first : self._shared],
            prompt=prompt,
            first_position=first,
            cache=self._cache,
        )

    def tries(self) -> list[tuple[TokenTrie, dict[int, list[int]]]]:
        """What is run after that."""
        return list(in_tries(self._sequences))

    def score(self, trie: TokenTrie, paths: Mapping[int, Sequence[int]]) -> None:
        """Runs one trie, and notes the answers in it."""
        started = time.perf_counter()
        rows = {self._items[number][0] for number in paths}
        for number in rows:
            with _attempt(self._rows[number]):
                check_wanted(self._rows[number].task.decoding, "while answers were scored")
        logits = run_trie(
            self._vlm,
            trie,
            prompt=self._first.task.prompt,
            first_position=self._shared,
            cache=self._cache,
            additive=adds_masks(self._vlm),
        )
        logs = torch.cat((self._before, logits)).log_softmax(dim=-1)
        counted: set[int] = set()
        of_each = []
        for number, path in paths.items():
            at, answer = self._items[number]
            row = self._rows[at]
            rest = len(path) - len(row.tokens[answer])
            of_each.append(AnswerPath(path[rest:], row.tokens[answer], path[rest - 1] if rest else -1))
            new = set(path) - counted
            row.fed += len(new.intersection(path[rest:]))
            counted |= new
        for number, logprobs in zip(paths, path_logprobs(self._vlm, logs, of_each), strict=True):
            at, answer = self._items[number]
            self._rows[at].logprobs[answer] = logprobs
        self._spend("score", time.perf_counter() - started, rows)

    def ended(self) -> list[tuple[int, Any]]:
        """Numbers and outcomes of tasks that are done, each once."""
        outcomes: list[tuple[int, Any]] = []
        for number, row in enumerate(self._rows):
            if row.told or not (row.error or len(row.logprobs) == len(row.tokens) > 0):
                continue
            row.told = True
            outcomes.append((number, row.error or self._result(row)))
        return outcomes

    def _result(self, row: _Question) -> ScoringPassResult:
        logprobs = tuple(row.logprobs[number] for number in range(len(row.tokens)))
        totals = [math.fsum(tokens) for tokens in logprobs]
        pictures = len({span.image for span in row.task.prompt.spans})
        own = self._embedded.reused(row.known) if row is self._first else Reused(pictures, row.known, ())
        return ScoringPassResult(
            token_logprobs=logprobs,
            best=totals.index(max(totals)),
            importance=None,
            stage_ms=row.ms,
            reused=own,
            forced_tokens=(row.fed,),
        )

    def _spend(self, stage: str, seconds: float, rows: set[int] | None = None) -> None:
        """Shares time out equally among tasks."""
        sharing = [row for number, row in enumerate(self._rows) if rows is None or number in rows]
        for row in sharing:
            row.ms[stage] += 1e3 * seconds / len(sharing)


@contextmanager
def _attempt(row: _Question) -> Iterator[None]:
    """Keeps an error of one task with it."""
    try:
        yield
    except RequestError as error:
        row.error = row.error or error


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
