"""One question as rankers see it: the small model's pass, and the large model's where one asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from sgl_engine import Decoding, InvalidRequestError, Request
from sgl_engine.attention import (
    AttentionRows,
    AttentionSums,
    ImportanceMap,
    capture_attention,
    capture_hidden,
    keep_rows,
)
from sgl_engine.decoding import AnswerTask, resolve
from sgl_engine.passes import (
    LargePassResult,
    SmallPassResult,
    answer_logprobs,
    run_large_pass,
    run_small_pass,
)
from sgl_engine.prompt import EncodedPrompt
from sgl_engine.pruning import keep_everything, plan_pruning

if TYPE_CHECKING:
    from sgl_engine import SGLEngine


@dataclass(frozen=True, eq=False)
class RankingCase:
    """What rankers may look at. Everything is computed at most once; V' visual tokens of the large prompt.

    Attributes:
        engine: Both models, and how they are configured.
        request: The question.
        seed: For rankers that draw lots.
        small: The small model's pass: answer, measurements, plain importance.
        small_prompt: What it read.
        large_prompt: What the large model reads.
        rows: The small model's attention, row by row.
        max_new_tokens: Upper limit of either model's answer.
        decoding: How the engine chooses the tokens of either.
    """

    engine: SGLEngine
    request: Request
    seed: int
    small: SmallPassResult
    small_prompt: EncodedPrompt
    large_prompt: EncodedPrompt
    rows: AttentionRows
    max_new_tokens: int
    decoding: Decoding = field(default_factory=Decoding)

    @classmethod
    def of(cls, engine: SGLEngine, request: Request, *, seed: int = 0) -> RankingCase:
        """Runs the small pass, with all that can be measured, and keeps what rankers need.

        Args:
            engine: Both models; its configuration says how long answers are and how they are scored.
            request: The question.
            seed: For rankers that draw lots.

        Raises:
            InvalidRequestError: There is no picture, so nothing to rank.
            RequestError: This request is bad.
        """
        config = engine.config
        limit, chosen = resolve(request, config.generation)
        small_prompt = engine.small.encode(request, config.limits, pictures=config.small_pictures)
        if not small_prompt.spans:
            raise InvalidRequestError(
                "The request has no picture, so there are no visual tokens to rank.", remedy="Add one."
            )
        with keep_rows(engine.small) as keeper:
            small = run_small_pass(
                engine.small,
                AnswerTask(small_prompt, limit, chosen),
                consistency_keep_ratio=config.exit.consistency_keep_ratio,
            )
        return cls(
            engine=engine,
            request=request,
            seed=seed,
            small=small,
            small_prompt=small_prompt,
            large_prompt=engine.large.encode(request, config.limits, pictures=config.large_pictures),
            rows=keeper.rows(),
            max_new_tokens=limit,
            decoding=chosen,
        )

    @property
    def task(self) -> AnswerTask:
        """What the large model is asked."""
        return AnswerTask(self.large_prompt, self.max_new_tokens, self.decoding)

    @property
    def sums(self) -> AttentionSums:
        """The small model's attention per layer, prompt rows and generated rows apart."""
        return _sums(self.rows)

    @property
    def large(self) -> LargePassResult:
        """The large model on its own, unpruned: the answer that pruning is measured against."""
        return self._large_pass[0]

    @property
    def large_rows(self) -> AttentionRows:
        """The large model's attention in that pass, row by row."""
        return self._large_pass[1]

    @property
    def large_sums(self) -> AttentionSums:
        """The large model's attention in that pass, per layer."""
        return _sums(self.large_rows)

    @cached_property
    def _large_pass(self) -> tuple[LargePassResult, AttentionRows]:
        vlm, prompt = self.engine.large, self.large_prompt
        plan = keep_everything(prompt)
        with vlm.exclusive(), keep_rows(vlm) as keeper, capture_attention(vlm, prompt):
            result = run_large_pass(vlm, self.task, plan)
        return result, keeper.rows()

    @cached_property
    def visual_embeddings(self) -> Tensor:
        """Visual features as the large decoder is given them, float32 (V', hidden), on the CPU."""
        return self.large_inputs[list(self.large_prompt.visual_positions)]

    @property
    def large_inputs(self) -> Tensor:
        """What the large decoder is given of each prompt token, float32 (S', hidden), on the CPU."""
        # Some decoders take further features beside these; the first are what takes the tokens' place.
        width = int(self.engine.large.text_model.config.hidden_size)
        return self._large_embeddings[0, :, :width].float().cpu()

    @cached_property
    def _large_embeddings(self) -> Tensor:
        return self.engine.large.embed(self.large_prompt)

    @cached_property
    def _small_embeddings(self) -> Tensor:
        return self.engine.small.embed(self.small_prompt)

    def hidden_states(self, layer: int) -> Tensor:
        """Runs the large model; returns what a layer gets of the prompt: float32 (S', hidden), on the CPU."""
        vlm, prompt = self.engine.large, self.large_prompt
        with vlm.exclusive(), capture_hidden(vlm, layer, stop=True) as seen:
            vlm.forward(self._large_embeddings, prompt=prompt, first_position=0, cache=None)
        return seen[0][0].float().cpu()

    def consistency_logprobs(self, keep_ratio: float, importance: ImportanceMap | None = None) -> list[float]:
        """Measures how likely the small answer's tokens are when the small model sees little of the picture.

        Args:
            keep_ratio: Visual tokens that it sees.
            importance: Which ones; None is its own plain sum.

        Returns:
            Natural logs, one per answer token.
        """
        vlm, prompt = self.engine.small, self.small_prompt
        ranking = importance or self.small.importance
        assert ranking is not None, "a case has pictures"
        layer = vlm.family.first_prunable_layer
        plan = plan_pruning(prompt, ranking, layer=layer, keep_ratio=keep_ratio)
        with vlm.exclusive():
            logprobs = answer_logprobs(vlm, prompt, self._small_embeddings, self.small.generation, plan)
        found: list[float] = logprobs.tolist()
        return found

    def small_map(self, mass: Tensor) -> ImportanceMap:
        """Makes a map of a mass (V,) on the small model's visual tokens."""
        assert self.small.importance is not None, "a case has pictures"
        return ImportanceMap(mass.float(), self.small_prompt.spans, self.small.importance.num_queries)

    def large_map(self, mass: Tensor) -> ImportanceMap:
        """Makes a map of a mass (V',) on the large model's visual tokens."""
        return ImportanceMap(mass.float(), self.large_prompt.spans, num_queries=1)

    def large_order(self, order: Sequence[int]) -> ImportanceMap:
        """Makes a map of the large prompt's visual tokens in order of importance, the first matters most.

        One order serves all keep ratios: whoever keeps m tokens keeps the first m.
        """
        mass = torch.zeros(len(order))
        mass[torch.tensor(order)] = torch.arange(len(order), 0, -1).float()
        return self.large_map(mass)


def _sums(rows: AttentionRows) -> AttentionSums:
    prompt, answer = rows.plain[:, : rows.prompt_rows], rows.plain[:, rows.prompt_rows :]
    return AttentionSums(prompt.sum(dim=1), answer.sum(dim=1), prompt.shape[1], answer.shape[1])


Ranker: TypeAlias = Callable[[RankingCase], ImportanceMap]
"""A case -> importance of visual tokens, of the small or of the large prompt."""
