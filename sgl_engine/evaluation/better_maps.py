"""Better maps, training-free, against the plain sum: apart where the small answer was right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgl_engine.evaluation.figures import forest_figure
from sgl_engine.evaluation.intervals import Bootstrap, Floats, Interval
from sgl_engine.evaluation.records import Json, Scored
from sgl_engine.evaluation.sections import Section
from sgl_engine.evaluation.separation import interval
from sgl_engine.evaluation.tables import Table
from sgl_engine.evaluation.threshold_sweep import column
from sgl_engine.rankers import DEFAULT_RANKER, MAPS


def better_maps(rows: Sequence[Scored], bootstrap: Bootstrap) -> Section | None:
    """Compares every map of ``MAPS`` that took part with the plain sum; None where there is none."""
    known = rows[0].outcome.pruned if rows else {}
    names = [name for name in MAPS if name in known and name != DEFAULT_RANKER]
    if not names or DEFAULT_RANKER not in known:
        return None
    right = column(rows, lambda outcome: outcome.small.right)
    found = {
        point: [_Map.of(rows, bootstrap, name, point, right, len(names)) for name in names]
        for point in known[DEFAULT_RANKER]
    }
    plain = {point: _values(rows, DEFAULT_RANKER, point) for point in found}
    text = [_table(point, maps, plain[point], right, bootstrap).markdown() for point, maps in found.items()]
    text.append(_conclusion(found))
    return Section(
        title="Better maps",
        markdown="\n\n".join(text),
        data={point: {each.name: each.json() for each in maps} for point, maps in found.items()},
        figures={"maps": lambda: _figure(found)},
    )


@dataclass(frozen=True)
class _Map:
    """One map at one operating point, against the plain sum on the same rows.

    Attributes:
        name: Of the ranker.
        value: Accuracy of the large model.
        difference: From the plain sum.
        where_right: The difference, of rows whose small answer is right.
        where_wrong: The difference, of the other rows.
        corrected: ``difference``, its interval widened for as many comparisons as there are maps
            (Bonferroni), so that the best of many by chance is not taken for better.
    """

    name: str
    value: Interval
    difference: Interval
    where_right: Interval
    where_wrong: Interval
    corrected: Interval

    @classmethod
    def of(
        cls, rows: Sequence[Scored], bootstrap: Bootstrap, name: str, point: str, right: Floats, maps: int
    ) -> _Map:
        values = _values(rows, name, point)
        gained = values - _values(rows, DEFAULT_RANKER, point)
        return cls(
            name=name,
            value=bootstrap.mean(values),
            # Ratios, and not means: differences that are all 0 are no share of hits.
            difference=bootstrap.ratio(gained, np.ones(len(gained))),
            where_right=_where(bootstrap, gained, right > 0),
            where_wrong=_where(bootstrap, gained, right == 0),
            corrected=interval(_resampled(gained, bootstrap), comparisons=maps),
        )

    @property
    def verdict(self) -> str:
        if self.corrected.excludes_zero:
            return "better" if self.difference.value > 0 else "worse"
        if self.difference.excludes_zero:
            return "better?" if self.difference.value > 0 else "worse?"
        return "-"

    def json(self) -> Json:
        intervals = ("value", "difference", "where_right", "where_wrong", "corrected")
        return {
            **{name: getattr(self, name).json() for name in intervals},
            "verdict": self.verdict,
        }


def _values(rows: Sequence[Scored], ranker: str, point: str) -> Floats:
    return column(rows, lambda outcome: outcome.pruned[ranker][point].value)


def _where(bootstrap: Bootstrap, values: Floats, chosen: NDArray[np.bool_]) -> Interval:
    return bootstrap.ratio(np.where(chosen, values, 0.0), chosen.astype(float))


def _resampled(values: Floats, bootstrap: Bootstrap) -> Floats:
    return np.concatenate(([values.mean()], bootstrap.weights @ values / len(values)))


def _table(point: str, maps: Sequence[_Map], plain: Floats, right: Floats, bootstrap: Bootstrap) -> Table:
    columns = (
        f"map, {point}",
        "accuracy %",
        "minus the plain sum",
        "small answer right",
        "small answer wrong",
        "",
    )
    base = (
        DEFAULT_RANKER,
        bootstrap.mean(plain).percent(),
        "",
        f"accuracy {bootstrap.mean(plain, where=(right > 0).tolist()).percent()}",
        f"accuracy {bootstrap.mean(plain, where=(right == 0).tolist()).percent()}",
        "",
    )
    ordered = sorted(maps, key=lambda each: -each.difference.value)
    return Table(
        f"The large model pruned to {point} by maps of the small model's attention; paired differences in "
        "percentage points (95 % interval)",
        columns,
        [
            base,
            *(
                (
                    each.name,
                    each.value.percent(),
                    each.difference.percent(sign=True),
                    each.where_right.percent(sign=True),
                    each.where_wrong.percent(sign=True),
                    each.verdict,
                )
                for each in ordered
            ),
        ],
    )


def _conclusion(found: dict[str, list[_Map]]) -> str:
    """Says which maps are better at one point and worse at none."""
    better = {each.name for maps in found.values() for each in maps if each.verdict == "better"}
    worse = {each.name for maps in found.values() for each in maps if each.verdict.startswith("worse")}
    note = (
        '"better" and "worse" are beyond an interval that allows for comparing so many maps; with a question '
        "mark, only beyond the plain 95 % interval."
    )
    if better - worse:
        return f"{note} Better at one point or more and worse at none: {', '.join(sorted(better - worse))}."
    return f"{note} No map is better than the plain sum at one point and worse at none."


def _figure(found: dict[str, list[_Map]]) -> Any:
    first, *_ = found.values()
    order = [each.name for each in sorted(first, key=lambda each: -each.difference.value)]
    return forest_figure(
        {
            point: [
                (each.name, each.difference) for each in sorted(maps, key=lambda each: order.index(each.name))
            ]
            for point, maps in found.items()
        },
        label="accuracy minus that of the plain sum, points (95 % interval)",
        title="Other maps of the small model's attention",
    )
