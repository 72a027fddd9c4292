"""Finding (iii): how alike the small and the large model's maps are, summed and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sgl_engine.attention import ImportanceMap
from sgl_engine.evaluation.intervals import Bootstrap, Floats, Interval
from sgl_engine.evaluation.optional import extra
from sgl_engine.evaluation.records import BenchOutcome, Json, Scored
from sgl_engine.evaluation.tables import Table
from sgl_engine.rankers import RankingCase

STUDY = "likeness"
"""What ``likeness`` is called among the studies."""
OVERLAPS = (0.05, 0.2, 0.4)
"""Shares of the visual tokens, kept at the paper's three operating points."""
LAYER_OVERLAP = 0.2
ALIKE = 0.5
"""The finding holds where the rank correlation is at least this."""
COMPARED = {
    "small_layers": "small layer, large sum",
    "large_layers": "small sum, large layer",
    "same_depth": "small layer, large layer at its depth",
}


def likeness(case: RankingCase, outcome: BenchOutcome) -> Json:
    """Measures how alike both models' maps are on one row, on the large model's grid.

    Returns:
        Spearman's rank correlation and the overlap of the top tokens: of the two sums; of each small layer
        and the large sum; of the small sum and each large layer; of layers at the same relative depth. None
        where a map is constant.
    """
    del outcome
    small = np.stack([_carried(case, layer) for layer in case.rows.plain.sum(dim=1)])
    large = case.large_rows.plain.sum(dim=1).double().numpy()
    sums = _carried(case, case.rows.plain.sum(dim=(0, 1))), large.sum(axis=0)
    depth = [round(at * (len(large) - 1) / max(1, len(small) - 1)) for at in range(len(small))]
    return {
        "spearman": spearman(*sums),
        "overlap": {f"{share:.0%}": overlap(*sums, share) for share in OVERLAPS},
        "chance": {f"{share:.0%}": _kept(len(sums[0]), share) / len(sums[0]) for share in OVERLAPS},
        "small_layers": _pairs([(layer, sums[1]) for layer in small]),
        "large_layers": _pairs([(sums[0], layer) for layer in large]),
        "same_depth": _pairs([(layer, large[at]) for layer, at in zip(small, depth, strict=True)]),
    }


def _carried(case: RankingCase, mass: Tensor) -> Floats:
    spans = case.large_prompt.spans
    carried: Floats = ImportanceMap(mass, case.small_prompt.spans, 1).resample(spans).mass.double().numpy()
    return carried


def _pairs(pairs: Sequence[tuple[Floats, Floats]]) -> Json:
    return {
        "spearman": [spearman(*pair) for pair in pairs],
        "overlap": [overlap(*pair, LAYER_OVERLAP) for pair in pairs],
    }


def spearman(one: Floats, other: Floats) -> float | None:
    """Computes the rank correlation in [-1, 1], ties sharing a rank; None where one of them is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(extra("scipy.stats").spearmanr(one, other).statistic)


def overlap(one: Floats, other: Floats, share: float) -> float:
    """Computes which share of one's top tokens is among the other's; ties go to the lower index."""
    kept = _kept(len(one), share)
    tops = [set(np.argsort(-mass, kind="stable")[:kept].tolist()) for mass in (one, other)]
    return len(tops[0] & tops[1]) / kept


def _kept(count: int, share: float) -> int:
    return max(1, int(count * share))


@dataclass(frozen=True)
class Likeness:
    """Means over rows.

    Attributes:
        spearman: Of the sums.
        overlap: Share -> of the sums.
        chance: Share -> what chance gives.
        layers: Comparison -> layer by layer, (Spearman, overlap).
    """

    spearman: Interval
    overlap: dict[str, Interval]
    chance: dict[str, float]
    layers: dict[str, list[tuple[Interval, Interval]]]

    @classmethod
    def of(cls, rows: Sequence[Scored], bootstrap: Bootstrap) -> Likeness:
        """Averages over rows that took part in the study."""
        studied = [row.outcome.study[STUDY] for row in rows]

        # A map that is constant has no rank correlation: such rows are left out of that mean.
        def mean(values: Sequence[float | None]) -> Interval:
            known = [value is not None for value in values]
            return bootstrap.mean([value or 0.0 for value in values], where=known)

        shares = list(studied[0]["overlap"])
        return cls(
            spearman=mean([each["spearman"] for each in studied]),
            overlap={share: mean([each["overlap"][share] for each in studied]) for share in shares},
            chance={share: float(np.mean([each["chance"][share] for each in studied])) for share in shares},
            layers={
                name: [
                    (
                        mean([each[name]["spearman"][layer] for each in studied]),
                        mean([each[name]["overlap"][layer] for each in studied]),
                    )
                    for layer in range(len(studied[0][name]["spearman"]))
                ]
                for name in COMPARED
            },
        )

    @property
    def verdict(self) -> str:
        """Says in words whether the finding holds."""
        if self.spearman.low >= ALIKE:
            return "holds"
        if self.spearman.high < ALIKE:
            weakly = self.spearman.low > 0
            return "holds weakly: alike, but not closely" if weakly else "does not hold"
        return f"cannot be told from a correlation of {ALIKE}"

    def markdown(self) -> str:
        """Writes two tables: of the summed maps, and layer by layer."""
        sums = Table(
            "Summed maps, mean over questions (95 % interval)",
            ("measure", "small and large", "chance"),
            [
                ("Spearman's rank correlation", self.spearman.plain(), "0"),
                *(
                    (f"overlap of the top {share}", each.percent(), f"{100 * self.chance[share]:.1f}")
                    for share, each in self.overlap.items()
                ),
                ("finding (iii)", self.verdict, ""),
            ],
        )
        layers = Table(
            f"Layer by layer: Spearman's rank correlation, overlap of the top {LAYER_OVERLAP:.0%}",
            ("compared", "layer", "Spearman", "overlap %"),
            [
                (COMPARED[name], str(layer), pair[0].plain(), pair[1].percent())
                for name, pairs in self.layers.items()
                for layer, pair in enumerate(pairs)
            ],
        )
        return f"{sums.markdown()}\n\n{layers.markdown()}"

    def json(self) -> Json:
        """Returns all numbers."""
        return {
            "spearman": self.spearman.json(),
            "overlap": {share: each.json() for share, each in self.overlap.items()},
            "chance": self.chance,
            "verdict": self.verdict,
            "layers": {
                name: [{"spearman": pair[0].json(), "overlap": pair[1].json()} for pair in pairs]
                for name, pairs in self.layers.items()
            },
        }
