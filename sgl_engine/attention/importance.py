"""Turns sums of attention into the importance of visual tokens (SGL, section 3.2, A = A^P + A^D). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sgl_engine.attention.resampling import resample
from sgl_engine.prompt.encoded import VisualSpan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """How much attention each visual token received; higher = more important.

    Attributes:
        mass: float32 (V,), on the CPU, in prompt order; a plain sum over layers, heads and query rows.
        spans: The prompt's visual spans that the mass belongs to.
        num_queries: Query rows that were summed.
    """

    mass: Tensor
    spans: tuple[VisualSpan, ...]
    num_queries: int

    def grids(self) -> tuple[Tensor, ...]:
        """Returns the mass of each span, float32 (rows, cols)."""
        grids, first = [], 0
        for span in self.spans:
            grids.append(self.mass[first : first + len(span)].reshape(span.grid))
            first += len(span)
        return tuple(grids)

    def describe(self) -> dict[str, float]:
        """Measures what tells how little of the pictures may be enough; what calibrations are made of.

        Returns:
            "map_top_share", the share of all mass that the 5 % most important tokens have, and
            "visual_tokens". Nothing where there is no mass.
        """
        mass = self.mass.double()
        total = float(mass.sum())
        if not total > 0.0:
            return {}
        top = mass.topk(max(1, len(mass) // 20)).values
        return {"map_top_share": float(top.sum()) / total, "visual_tokens": float(len(mass))}

    def resample(self, spans: tuple[VisualSpan, ...]) -> ImportanceMap:
        """Carries the map onto another prompt's visual tokens: other tiles, grids, model or family.

        Mass goes where it lies in the picture (``sgl_engine.attention.resampling``); where the spans are
        equal, it does not change. Mass that none of the new tokens see, as behind a crop, is left out.

        Args:
            spans: Visual spans of the other prompt, which has the same images.

        Raises:
            IncompatiblePairError: Other images, or boxes that are needed and unknown.
        """
        if spans == self.spans:  # the usual pair: one grid, one processor
            return self
        return ImportanceMap(resample(self.mass, self.spans, spans), spans, self.num_queries)

    def beyond(self, other: ImportanceMap) -> ImportanceMap:
        """Takes off what another map of the same pictures has: the share of all mass, token by token.

        Nothing is clipped: a token that has less than there is negative, and the more so the less important.

        Args:
            other: Carried onto these visual tokens, where its own are others.

        Raises:
            IncompatiblePairError: As of ``resample``.
        """
        mine, theirs = _shares(self), _shares(other.resample(self.spans))
        return ImportanceMap((mine - theirs).float(), self.spans, self.num_queries)


def _shares(importance: ImportanceMap) -> Tensor:
    """Mass as shares of its sum, float64 (V,); none where there is no mass."""
    mass = importance.mass.double()
    total = float(mass.sum())
    return mass / total if total > 0.0 else mass


@dataclass(frozen=True, eq=False)
class AttentionSums:
    """Attention that each visual token received, summed over heads and query rows, but not over layers.

    Attributes:
        prefill: float32 (L, V), on the CPU; rows of the prompt (A^P).
        decode: float32 (L, V), on the CPU; one row per generated token that was fed back (A^D).
        prefill_queries: Number of prompt rows.
        decode_queries: Number of generated rows.
    """

    prefill: Tensor
    decode: Tensor
    prefill_queries: int
    decode_queries: int


def importance_map(
    sums: AttentionSums,
    spans: tuple[VisualSpan, ...],
    *,
    layers: Sequence[int] | None = None,
    rows: Literal["all", "prefill", "decode"] = "all",
) -> ImportanceMap:
    """Adds layers and rows up; higher = more important.

    Args:
        sums: What ``capture_attention`` recorded.
        spans: The prompt's visual spans, V tokens together.
        layers: Only these layers, for studies; None is all of them, as in the paper.
        rows: Only prompt rows or only generated rows, for studies.
    """
    # Rows that are left out do not count as queries either.
    prefill = sums.prefill_queries if rows != "decode" else 0
    decode = sums.decode_queries if rows != "prefill" else 0
    wanted = {"all": (sums.prefill, sums.decode), "prefill": (sums.prefill,), "decode": (sums.decode,)}[rows]
    per_layer = wanted[0] if len(wanted) == 1 else wanted[0] + wanted[1]
    chosen = per_layer if layers is None else per_layer[list(layers)]
    return ImportanceMap(mass=chosen.sum(dim=0), spans=spans, num_queries=prefill + decode)
