"""Decides which prompt tokens the layers from K on see, by importance (SGL, section 3.2, SGP). Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.errors import ConfigError
from sgl_engine.prompt.encoded import EncodedPrompt, VisualSpan


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which prompt tokens the layers from ``layer`` on see.

    Attributes:
        keep: int64 (M,), on the CPU, ascending prompt positions: all text and the kept visual tokens.
        layer: K, the first decoder layer that sees only ``keep``; 0 prunes before the first layer.
        prompt_tokens: S.
        visual_tokens: V.
        kept_visual_tokens: How many of the V are in ``keep``.
        keep_ratio: The ratio that was asked for (what is kept, not what is dropped).
        spans: The prompt's visual spans, to show what is kept in the picture.
    """

    keep: Tensor
    layer: int
    prompt_tokens: int
    visual_tokens: int
    kept_visual_tokens: int
    keep_ratio: float
    spans: tuple[VisualSpan, ...] = ()

    @property
    def prunes(self) -> bool:
        """Whether any token is dropped; where none is, the model is not patched at all."""
        return self.kept_visual_tokens < self.visual_tokens

    def kept_of(self, prompt_tokens: int) -> int:
        """Counts which of the first ``prompt_tokens`` positions, at least S, the pruned layers see.

        Positions after the prompt are all kept.
        """
        return prompt_tokens - (self.visual_tokens - self.kept_visual_tokens)


def plan_pruning(
    prompt: EncodedPrompt, importance: ImportanceMap, *, layer: int, keep_ratio: float
) -> PruningPlan:
    """Plans to keep all text and the most important visual tokens. Pure.

    Args:
        prompt: The prompt that will be pruned; it need not be the one that the map was taken from.
        importance: Higher = more important; of equals, the first is kept. A map of another prompt's visual
            tokens is carried onto this one's.
        layer: K, the first layer that sees only the kept tokens.
        keep_ratio: max(1, floor(V * keep_ratio)) visual tokens are kept.

    Raises:
        IncompatiblePairError: The map cannot be carried onto the prompt (``ImportanceMap.resample``).
        ConfigError: A ratio outside (0, 1], or a negative layer.
    """
    if not 0.0 < keep_ratio <= 1.0 or layer < 0:
        raise ConfigError(
            f"Cannot keep {keep_ratio} of the visual tokens from layer {layer} on.",
            remedy="Give a keep_ratio in (0, 1] and a layer of at least 0.",
        )
    mass = importance.resample(prompt.spans).mass
    total = prompt.num_visual_tokens
    kept = min(total, max(1, math.floor(total * keep_ratio)))
    # A stable sort: of equal tokens the first is kept, on every machine.
    ranking = torch.sort(mass, descending=True, stable=True).indices
    mask = torch.ones(len(prompt), dtype=torch.bool)
    mask[torch.tensor(prompt.visual_positions, dtype=torch.int64)[ranking[kept:]]] = False
    return PruningPlan(
        keep=mask.nonzero()[:, 0],
        layer=layer,
        prompt_tokens=len(prompt),
        visual_tokens=total,
        kept_visual_tokens=kept,
        keep_ratio=keep_ratio,
        spans=prompt.spans,
    )


def keep_everything(prompt: EncodedPrompt) -> PruningPlan:
    """Plans to keep every token: of a prompt without images, or for the model on its own. Pure."""
    return PruningPlan(
        keep=torch.arange(len(prompt)),
        layer=0,
        prompt_tokens=len(prompt),
        visual_tokens=prompt.num_visual_tokens,
        kept_visual_tokens=prompt.num_visual_tokens,
        keep_ratio=1.0,
        spans=prompt.spans,
    )


@dataclass(frozen=True, eq=False)
class KeptColumns:
    """Plans of several prompts side by side: which columns of the padded batch the layers from K on see.

    Rows keep different numbers of tokens. Those that keep fewer begin with fillers, which no token sees:

        positions that are kept    columns (S = 6, M = 4)    fillers
        0 2 3 5 (of 6)             0 2 3 5                   0
        1 3     (of 4)             0 0 3 5                   2

    Attributes:
        layer: K, of all plans.
        tokens: S, columns that the padded prompts take (``PromptBatch``).
        columns: int64 (B, M), on the CPU; M is that of the plan that keeps most. Fillers, then ascending.
        fillers: int64 (B, 1), on the CPU: how many fillers a row begins with.
        prunes: Whether any token is dropped; where none is, the model is not patched at all.
        recurrent: Layers that read tokens one after the other. They have no columns, so a mask tells them
            which tokens not to read.
    """

    layer: int
    tokens: int
    columns: Tensor
    fillers: Tensor
    prunes: bool
    recurrent: frozenset[int] = frozenset()

    @classmethod
    def of(cls, plans: Sequence[PruningPlan]) -> KeptColumns:
        """Puts plans side by side, for prompts that are padded to the longest of them.

        Args:
            plans: One per row; all of them prune from the same layer on, or none of them prunes.
        """
        assert len({(plan.prunes, plan.prunes and plan.layer) for plan in plans}) == 1, "one kind at a time"
        tokens = max(plan.prompt_tokens for plan in plans)
        most = max(len(plan.keep) for plan in plans)
        # A position p stands in column p + padding. Any column will do as a filler: it is never seen.
        columns = [
            torch.nn.functional.pad(plan.keep + tokens - plan.prompt_tokens, (most - len(plan.keep), 0))
            for plan in plans
        ]
        return cls(
            layer=plans[0].layer,
            tokens=tokens,
            columns=torch.stack(columns),
            fillers=torch.tensor([[most - len(plan.keep)] for plan in plans]),
            prunes=plans[0].prunes,
        )

    def select(self, rows: Sequence[int]) -> KeptColumns:
        """Returns some of the rows, with as many columns as before."""
        chosen = torch.tensor(rows)
        return replace(self, columns=self.columns[chosen], fillers=self.fillers[chosen])

    @cached_property  # asked in every layer of every step
    def is_even(self) -> bool:
        """Whether no row has fillers."""
        return not bool(self.fillers.any())

    def exist(self, count: int, device: torch.device) -> Tensor:
        """Tells which of the first ``count`` columns of a pruned layer are no fillers, bool (B, count)."""
        return (torch.arange(count) >= self.fillers).to(device)
