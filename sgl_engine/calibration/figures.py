"""Three figures for the report page: what a risk buys, whether probabilities are true, which kinds exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgl_engine.calibration.outcomes import CascadeOutcome, share_interval
from sgl_engine.calibration.ways import Ways
from sgl_engine.evaluation.figures import COLOURS, GREY, MARKERS, new_figure, styled

if TYPE_CHECKING:
    from sgl_engine.exit import OperatingPoint

_BINS = 10
_BLUE, _ORANGE = COLOURS[:2]


def risk_curve(path: Path, ways: Ways, points: Sequence[OperatingPoint]) -> None:
    """Draws observed risk against the share of questions that exit, certified points marked."""
    with _drawn(path, 7.0, 4.2) as axes:
        thresholds = np.unique(ways.probabilities[np.isfinite(ways.probabilities)])[::-1]
        exits = np.array([(ways.choose(each) == 0).mean() for each in thresholds])
        risks = np.array([ways.harmed(each).mean() for each in thresholds])
        axes.plot(100 * exits, 100 * risks, color=_BLUE, label="observed")
        for point in points:
            axes.axhline(100 * point.target_risk, color=GREY, linewidth=0.8, linestyle="--")
            axes.annotate(
                f"target {point.target_risk:.0%}"
                if point.target_risk >= 0.01
                else f"{point.target_risk:.1%}",
                (0.5, 100 * point.target_risk),
                textcoords="offset points",
                xytext=(0, 3),
                color=GREY,
                fontsize=9,
            )
            if point.threshold is not None:
                place = (100 * point.exit_share, 100 * point.observed_risk)
                right = point.exit_share < 0.2  # on the left it would stand on the axis
                axes.plot(*place, "o", color=_ORANGE, markersize=8, clip_on=False)
                axes.annotate(
                    f"{point.exit_share:.0%} exit",
                    place,
                    textcoords="offset points",
                    xytext=(8, -12) if right else (-8, 7),
                    ha="left" if right else "right",
                    color=_ORANGE,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )
        top = max([100 * max(risks, default=0.0), *(130 * point.target_risk for point in points)])
        axes.set(xlim=(0, 100), ylim=(0, min(top * 1.05, 100 * max(p.target_risk for p in points) * 3)))
        axes.set_xlabel("questions that never reach the large model, %")
        axes.set_ylabel("risk: harmful answers, % of all questions")


def reliability_figure(
    path: Path, before: Sequence[float], after: Sequence[float], harmless: Sequence[bool]
) -> tuple[float, float]:
    """Draws predicted against observed, in bins of equal size, for scores and calibrated probabilities.

    Returns:
        Expected calibration error before and after: mean distance between the two, in [0, 1].
    """
    with _drawn(path, 4.8, 4.6) as axes:
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle="--")
        errors = []
        for values, color, marker, name in (
            (before, GREY, MARKERS[1], "score, as the model gives it"),
            (after, _BLUE, MARKERS[0], "calibrated probability"),
        ):
            predicted, observed, spread, sizes = bins(values, harmless)
            errors.append(float(np.average(np.abs(predicted - observed), weights=sizes)))
            axes.errorbar(
                100 * predicted,
                100 * observed,
                yerr=100 * spread,
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.2,
                elinewidth=0.8,
                label=f"{name} (off by {100 * errors[-1]:.1f} points)",
            )
        axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal")
        axes.set_xlabel("predicted: keeping the small answer is harmless, %")
        axes.set_ylabel("observed, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)  # above: curves may be anywhere
    return errors[0], errors[1]


def bins(
    values: Sequence[float], harmless: Sequence[bool], count: int = _BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Sorts predictions into bins of about equal size, ties kept together.

    Returns:
        Mean value, share of harmless ones, distances to the ends of its 95 % interval (2, bins), and size.
    """
    predicted, right = np.asarray(values, dtype=np.float64), np.asarray(harmless, dtype=bool)
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, count + 1), method="lower"))
    place = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, max(len(edges) - 2, 0))
    used = np.unique(place)
    sizes = np.array([(place == each).sum() for each in used])
    means = np.array([predicted[place == each].mean() for each in used])
    hits = np.array([right[place == each].sum() for each in used])
    ends = np.array([share_interval(int(hit), int(size)) for hit, size in zip(hits, sizes, strict=True)]).T
    share = hits / sizes
    return means, share, np.maximum(np.stack([share - ends[0], ends[1] - share]), 0.0), sizes


def exits_by_kind(path: Path, by_risk: Mapping[str, Mapping[str, CascadeOutcome]]) -> None:
    """Draws the share of each kind that never reaches the large model, a bar per operating point."""
    first = next(iter(by_risk.values()))
    names = sorted(first, key=lambda kind: -sum(each[kind].exit_share for each in by_risk.values()))
    with _drawn(path, 7.0, 1.2 + 0.34 * len(names)) as axes:
        height = 0.8 / len(by_risk)
        places = np.arange(len(names))
        for number, (label, outcomes) in enumerate(by_risk.items()):
            axes.barh(
                places + (number - (len(by_risk) - 1) / 2) * height,
                [100 * outcomes[name].exit_share for name in names],
                height=height * 0.92,
                color=COLOURS[number % len(COLOURS)],
                label=label,
            )
        axes.set_yticks(places, [f"{name} ({first[name].questions})" for name in names])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(names) - 0.4, -0.6)  # the first kind on top
        axes.set_xlim(0, 100)
        axes.set_xlabel("questions that never reach the large model, %")
        axes.legend(loc="lower right")


@contextmanager
def _drawn(path: Path, width: float, height: float) -> Iterator[Any]:
    """Gives the axes of a new figure, and writes it at the end."""
    with styled():
        figure = new_figure(width, height)
        yield figure.add_subplot()
        # Without a version in it, the same records make the same file.
        figure.savefig(path, metadata={"Software": None})
