"""The paper's three findings, as numbers with intervals on the pair at hand.

(i) attention from one layer, or from the prompt alone, ranks visual tokens worse than the whole sum does;
(ii) the whole sum ranks them well; (iii) the small model's sum resembles the large one's. (SGL, section 3.1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_engine.evaluation.figures import forest_figure, layers_figure
from sgl_engine.evaluation.intervals import Bootstrap, Floats, Interval
from sgl_engine.evaluation.likeness import COMPARED, STUDY, Likeness
from sgl_engine.evaluation.records import Json, Scored
from sgl_engine.evaluation.sections import Section
from sgl_engine.evaluation.tables import Table
from sgl_engine.evaluation.threshold_sweep import column
from sgl_engine.rankers import DEFAULT_RANKER

PARTS = (
    ("large-own", ("fastv", "large-one-layer", "large-last-layer", "large-prompt-rows")),
    (DEFAULT_RANKER, ("small-one-layer", "small-last-layer", "prompt-rows")),
)
"""Each whole sum, and parts of it."""
ENOUGH_KEPT = 0.95
"""Finding (ii) holds where the sum keeps at least this share of the unpruned accuracy."""


def findings(rows: Sequence[Scored], bootstrap: Bootstrap) -> Section | None:
    """Tests all three findings; None where no row was studied."""
    if not rows or STUDY not in rows[0].outcome.study:
        return None
    parts, kept, alike = _parts(rows, bootstrap), _kept_shares(rows, bootstrap), Likeness.of(rows, bootstrap)
    text = [
        "### (i) Is part of the attention worse than all of it?\n",
        _parts_table(parts).markdown(),
        "\n### (ii) Does the summed map rank well?\n",
        _kept_table(kept).markdown(),
        "\n### (iii) Does the small model's map resemble the large model's?\n",
        alike.markdown(),
    ]
    data = {
        "partial": [each.json() for each in parts],
        "kept": {
            name: {point: each.json() for point, each in points.items()} for name, points in kept.items()
        },
        "likeness": alike.json(),
    }
    figures: dict[str, Callable[[], Any]] = {"findings-layers": lambda: layers_figure(alike.layers, COMPARED)}
    if parts:
        figures["findings-partial"] = lambda: _partial_figure(parts)
    return Section("The paper's three findings", "\n".join(text), data, figures)


def _partial_figure(parts: Sequence[_Part]) -> Any:
    points = dict.fromkeys(each.point for each in parts)
    return forest_figure(
        {
            point: [
                (f"{each.part} of {each.whole}", each.difference) for each in parts if each.point == point
            ]
            for point in points
        },
        label="accuracy of all of it minus that of the part, points",
        title="(i) Is part of the attention worse than all of it?",
    )


@dataclass(frozen=True)
class _Part:
    """A sum and a part of it at one operating point: accuracies, and their paired difference (sum - part)."""

    whole: str
    part: str
    point: str
    whole_value: Interval
    part_value: Interval
    difference: Interval

    @property
    def verdict(self) -> str:
        if not self.difference.excludes_zero:
            return "cannot be told apart"
        return "holds" if self.difference.value > 0 else "does not hold: the part is better"

    def json(self) -> Json:
        return {
            "whole": self.whole,
            "part": self.part,
            "point": self.point,
            "whole_accuracy": self.whole_value.json(),
            "part_accuracy": self.part_value.json(),
            "difference": self.difference.json(),
            "verdict": self.verdict,
        }


def _values(rows: Sequence[Scored], ranker: str, point: str) -> Floats:
    return column(rows, lambda outcome: outcome.pruned[ranker][point].value)


def _parts(rows: Sequence[Scored], bootstrap: Bootstrap) -> list[_Part]:
    known, found = rows[0].outcome.pruned, []
    for whole, parts in PARTS:
        for part in parts:
            for point in known.get(whole, {}) if part in known else ():
                values = _values(rows, whole, point), _values(rows, part, point)
                all_of_it, part_of_it = (bootstrap.mean(each) for each in values)
                difference = bootstrap.difference(*values)
                found.append(_Part(whole, part, point, all_of_it, part_of_it, difference))
    return found


def _parts_table(parts: Sequence[_Part]) -> Table:
    return Table(
        "Accuracy of the large model in % (95 % interval), pruned by a sum and by part of it",
        ("part of a sum", "of", "point", "part", "all of it", "all - part", "finding (i)"),
        [
            (
                each.part,
                each.whole,
                each.point,
                each.part_value.percent(),
                each.whole_value.percent(),
                each.difference.percent(sign=True),
                each.verdict,
            )
            for each in parts
        ],
    )


def _kept_shares(rows: Sequence[Scored], bootstrap: Bootstrap) -> dict[str, dict[str, Interval]]:
    """Divides accuracies by the unpruned large model's: ranker -> operating point -> share kept."""
    whole = column(rows, lambda outcome: outcome.large.value)
    return {
        name: {point: bootstrap.ratio(_values(rows, name, point), whole) for point in points}
        for name, points in rows[0].outcome.pruned.items()
        if name in (*(whole for whole, _ in PARTS), "uniform", "random")
    }


def _kept_table(kept: dict[str, dict[str, Interval]]) -> Table:
    points = list(next(iter(kept.values()), {}))
    rows = [(name, *(shares[point].percent() for point in points)) for name, shares in kept.items()]
    for name, _ in PARTS:
        if name in kept:
            rows.append((f"finding (ii), {name}", *(_kept_verdict(kept[name][point]) for point in points)))
    return Table(
        "Accuracy kept, in % of the unpruned large model's (95 % interval)", ("ranker", *points), rows
    )


def _kept_verdict(share: Interval) -> str:
    if share.low >= ENOUGH_KEPT:
        return f"holds: {ENOUGH_KEPT:.0%} kept"
    return f"does not hold: under {ENOUGH_KEPT:.0%}" if share.high < ENOUGH_KEPT else "cannot be told"
