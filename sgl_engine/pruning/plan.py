"""Decides what the large model does not see, by importance (SGL, section 3.2, SGP). Pure.

Two things may be left out. Tiles of a picture that hold nothing important do not go through the vision tower,
and their tokens enter no layer. Of the tokens that enter, the least important leave before layer K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sgl_engine.attention.importance import ImportanceMap
from sgl_engine.errors import ConfigError
from sgl_engine.prompt.encoded import EncodedPrompt, PromptPart, PromptTiles, VisualSpan, leave_out


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Which tiles the vision tower sees, and which prompt tokens the layers from ``layer`` on.

    Attributes:
        keep: int64 (M,), on the CPU, ascending prompt positions: all text and the kept visual tokens.
        layer: K, the first decoder layer that sees only ``keep``; 0 prunes before the first layer.
        prompt_tokens: S.
        visual_tokens: V.
        kept_visual_tokens: How many of the V are in ``keep``.
        keep_ratio: The ratio that was asked for (what is kept, not what is dropped).
        spans: The prompt's visual spans, to show what is kept in the picture.
        tiles: The prompt's tiles, where some of them may be left out; else None.
        chosen_tiles: Numbers of the tiles that the vision tower sees, ascending; None is all.
    """

    keep: Tensor
    layer: int
    prompt_tokens: int
    visual_tokens: int
    kept_visual_tokens: int
    keep_ratio: float
    spans: tuple[VisualSpan, ...] = ()
    tiles: PromptTiles | None = None
    chosen_tiles: tuple[int, ...] | None = None

    @property
    def prunes(self) -> bool:
        """Whether any token that enters is dropped at ``layer``; else no layer is patched at all."""
        return self.kept_visual_tokens < self.entering_visual_tokens

    @property
    def skips_tiles(self) -> bool:
        """Whether any tile is left out."""
        return self.tiles is not None and self.chosen_tiles is not None

    @cached_property
    def entering_visual_tokens(self) -> int:
        """How many of the V enter layer 0: those of the tiles that are seen."""
        if self.tiles is None or self.chosen_tiles is None:
            return self.visual_tokens
        return int(self.tiles.made_of(self.chosen_tiles).sum())

    @cached_property
    def skipped_positions(self) -> tuple[int, ...]:
        """Prompt positions of the visual tokens that enter no layer, ascending."""
        if self.tiles is None or self.chosen_tiles is None:
            return ()
        enters = self.tiles.made_of(self.chosen_tiles).tolist()
        positions = (position for span in self.spans for position in span.positions)
        return tuple(position for position, left in zip(positions, enters, strict=True) if not left)

    def enter(self, prompt: EncodedPrompt) -> tuple[EncodedPrompt, PruningPlan]:
        """Takes the tiles that are left out from the plan's prompt: returns the rest, and the plan for it.

        Rotary positions stay what they were. Where no tile is left out, both are what they are.
        """
        if self.tiles is None or self.chosen_tiles is None:
            return prompt, self
        enters = torch.ones(len(prompt), dtype=torch.bool)
        enters[list(self.skipped_positions)] = False
        columns = enters.nonzero()[:, 0]
        left = leave_out(PromptPart(prompt, columns, self.tiles, self.chosen_tiles))
        return left, replace(
            self,
            keep=torch.searchsorted(columns, self.keep),
            prompt_tokens=len(left),
            visual_tokens=self.entering_visual_tokens,
            spans=left.spans,
            tiles=None,
            chosen_tiles=None,
        )

    def entering_of(self, prompt_tokens: int) -> int:
        """Counts which of the first ``prompt_tokens`` positions, at least S, enter layer 0."""
        return prompt_tokens - (self.visual_tokens - self.entering_visual_tokens)

    def kept_of(self, prompt_tokens: int) -> int:
        """Counts which of the first ``prompt_tokens`` positions, at least S, the pruned layers see.

        Positions after the prompt are all kept.
        """
        return prompt_tokens - (self.visual_tokens - self.kept_visual_tokens)


def plan_pruning(
    prompt: EncodedPrompt,
    importance: ImportanceMap,
    *,
    layer: int,
    keep_ratio: float,
    tiles: PromptTiles | None = None,
    top_tokens: int | None = None,
) -> PruningPlan:
    """Plans to keep all text and the most important visual tokens. Pure.

    Args:
        prompt: The prompt that will be pruned; it need not be the one that the map was taken from.
        importance: Higher = more important; of equals, the first is kept. A map of another prompt's visual
            tokens is carried onto this one's.
        layer: K, the first layer that sees only the kept tokens.
        keep_ratio: max(1, floor(V * keep_ratio)) visual tokens are kept, as far as tiles are seen.
        tiles: Those of the prompt that the vision tower sees apart (``passes.prefill.find_tiles``).
        top_tokens: Tiles are seen that hold one of so many of the most important tokens of their picture;
            None sees all.

    Raises:
        IncompatiblePairError: The map cannot be carried onto the prompt (``ImportanceMap.resample``).
        ConfigError: A ratio outside (0, 1], a negative layer, or no token to choose tiles by.
    """
    if not 0.0 < keep_ratio <= 1.0 or layer < 0 or (top_tokens is not None and top_tokens < 1):
        raise ConfigError(
            f"Cannot keep {keep_ratio} of the visual tokens from layer {layer} on, in the tiles of the "
            f"{'' if top_tokens is None else f'{top_tokens} '}most important ones.",
            remedy="Give a keep_ratio in (0, 1], a layer of at least 0, and at least one token.",
        )
    mass = importance.resample(prompt.spans).mass
    total = prompt.num_visual_tokens
    # A stable sort: of equal tokens the first is kept, on every machine.
    ranking = torch.sort(mass, descending=True, stable=True).indices
    chosen = None
    if tiles is not None and top_tokens is not None:
        chosen = choose_tiles(tiles, ranking, top_tokens)
        # As many as without: so what is not spent on tiles that nobody looked at goes to the others.
        seen = tiles.made_of(chosen)[ranking]
        ranking = torch.cat((ranking[seen], ranking[~seen]))
        chosen = None if len(chosen) == len(tiles) else chosen
    entering = total if chosen is None or tiles is None else int(tiles.made_of(chosen).sum())
    kept = min(entering, max(1, math.floor(total * keep_ratio)))
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
        tiles=tiles,
        chosen_tiles=chosen,
    )


def choose_tiles(tiles: PromptTiles, ranking: Tensor, top_tokens: int) -> tuple[int, ...]:
    """Chooses the tiles that hold one of the first tokens of a ranking (V,), picture by picture. Pure.

    Not by their sums: attention also goes to places, whatever is asked, and that adds up. Picture by picture,
    because questions that compare pictures need something of each.
    """
    chosen: set[int] = set()
    for picture in sorted(set(tiles.pictures)):
        own = torch.tensor([of == picture for of in tiles.pictures])
        of_picture = ranking[tiles.tokens[own].any(dim=0)[ranking]]
        chosen |= set(tiles.tokens[:, of_picture[:top_tokens]].any(dim=1).nonzero()[:, 0].tolist())
    return tuple(sorted(chosen))


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

    def seen(self, tokens: int, device: torch.device) -> Tensor:
        """The columns below ``tokens`` that a pruned layer sees, int64 (B, N): fillers, then ascending."""
        after = torch.arange(self.tokens, tokens).expand(len(self.columns), -1)
        return torch.cat((self.columns, after), dim=1).to(device)
