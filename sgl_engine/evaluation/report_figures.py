"""The report's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from sgl_engine.evaluation.figures import COLOURS, GREY, MARKERS, PALE, level, new_figure, whiskers
from sgl_engine.evaluation.intervals import Interval, share
from sgl_engine.evaluation.summary import Summary
from sgl_engine.evaluation.threshold_sweep import NEVER
from sgl_engine.rankers import BASELINES

_MARKED = (0.5, 0.8, 0.95)  # thresholds with a label
_STEPS = np.linspace(0.0, 1.0, 51)  # shares of escalated rows along the curves


def charts(summary: Summary) -> Mapping[str, Callable[[], Any]]:
    """Lists the figures: name of the file, without ending -> what draws it."""
    found = {
        "cascade": partial(cascade, summary),
        "reliability": partial(calibration, summary),
        "kinds": partial(kinds, summary),
    }
    if any(name in BASELINES for name in summary.rankers):
        found = {"retention": partial(retention, summary.compared), **found}
    return found


def retention(summary: Summary) -> Any:
    """Draws accuracy against retention, per ranker."""
    figure = new_figure(8.2, 4.8)
    axes = figure.subplots()
    shown = [name for name in summary.rankers if name in BASELINES]
    level(axes, summary.draws.mean(summary.large), "large alone, unpruned", "#000000", "-")
    level(axes, summary.draws.mean(summary.small), "small alone", GREY, "--")
    places = np.array([summary.retention(point) for point in summary.points])
    for number, name in enumerate(shown):
        values = [summary.draws.mean(summary.ranked(name, point)) for point in summary.points]
        aside = 1.022 ** (number - (len(shown) - 1) / 2)  # side by side, so that whiskers do not overlap
        turn = number // len(COLOURS)  # colours come again with another marker, and broken lines
        axes.errorbar(
            100 * places * aside,
            [100 * each.value for each in values],
            yerr=whiskers(values),
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[(number + 3 * turn) % len(MARKERS)],
            linestyle="--" if turn else "-",
            linewidth=2.4 if number == 0 else 1.3,
            elinewidth=1.0,
        )
    axes.set_xscale("log")
    axes.set_xticks(100 * places, [f"{100 * place:.0f} %" for place in places])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens that an average layer of the large model sees (log scale)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"Which tokens to keep ({len(summary.rows)} questions, 95 % intervals)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def cascade(summary: Summary) -> Any:
    """Draws accuracy against TFLOPs and against milliseconds, small and large model alone beside it."""
    figure = new_figure(10.4, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    unit, factor = ("TFLOPs", 1.0) if summary.systems[1].tflops >= 0.1 else ("GFLOPs", 1e3)
    for axes, cost, name, scale in ((left, "tflops", unit, factor), (right, "ms", "milliseconds", 1.0)):
        _curves(axes, summary, cost, scale)
        axes.set_xlabel(f"{name} per question, mean")
        axes.set_xlim(left=0)
    left.set_ylabel("accuracy, %")
    left.set_title(f"What the cascade costs ({len(summary.rows)} questions, 95 % intervals)")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _curves(axes: Any, summary: Summary, cost: str, scale: float) -> None:
    points: list[str | None] = [*summary.points]
    for number, point in enumerate([*points, None]):
        measured = summary.measured(point)
        composed = [measured.escalating(float(share)) for share in _STEPS]
        spent = [scale * float(getattr(each, cost).mean()) for each in composed]
        singled = point == summary.point
        name = "unpruned" if point is None else f"pruned to {point}"
        axes.plot(
            spent,
            [100 * each.value.mean() for each in composed],
            color=GREY if point is None else COLOURS[number % len(COLOURS)],
            linestyle=":" if point is None else "-",
            linewidth=2.4 if singled else 1.2,
            label=f"cascade, {name}",
            zorder=3 if singled else 2,
        )
        if singled:
            band = [summary.draws.mean(each.value) for each in composed]
            _band(axes, spent, band, COLOURS[number % len(COLOURS)])
    _mark_thresholds(axes, summary, cost, scale)
    small, large = summary.systems[:2]
    for system, marker in ((small, "o"), (large, "s")):
        axes.errorbar(
            [scale * getattr(system, cost)],
            [100 * system.value.value],
            yerr=whiskers([system.value]),
            color="#000000",
            marker=marker,
            markerfacecolor="#000000" if system is large else "#FFFFFF",
            linestyle="none",
            label=system.name,
            zorder=5,
        )


def _band(axes: Any, spent: list[float], band: list[Interval], colour: str) -> None:
    low, high = [100 * each.low for each in band], [100 * each.high for each in band]
    axes.fill_between(spent, low, high, color=colour, alpha=0.15, linewidth=0)


def _mark_thresholds(axes: Any, summary: Summary, cost: str, scale: float) -> None:
    for number, threshold in enumerate(_MARKED):
        system = summary.cascade(summary.point, threshold)
        place = (scale * getattr(system, cost), 100 * system.value.value)
        axes.plot(*place, "D", color=COLOURS[summary.points.index(summary.point)], zorder=4, markersize=5)
        axes.annotate(
            f"exit at {threshold:g}",
            place,
            # One above the other, where curves seldom come: thresholds that do nearly the same stay legible.
            xytext=(0.62, 0.06 + 0.08 * number),
            textcoords="axes fraction",
            fontsize=8,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "#FFFFFF", "edgecolor": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6},
            zorder=6,
        )


def calibration(summary: Summary) -> Any:
    """Draws the share of right answers at each score, and below it how many answers have that score."""
    figure = new_figure(5.6, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [each for each in summary.bins if each.count]
    shares = [share(round(each.right * each.count), each.count) for each in filled]
    upper.plot([0, 1], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
    upper.errorbar(
        [each.score for each in filled],
        [100 * each.value for each in shares],
        yerr=whiskers(shares),
        color=COLOURS[0],
        marker="o",
        label=f"score (ECE {100 * summary.calibration_error:.1f} %, AUROC {summary.auroc.value:.3f})",
    )
    upper.set_ylabel("small answers that are right, %")
    upper.set_title(f"What a score is worth ({len(summary.rows)} questions)")
    figure.legend(loc="outside lower center", ncols=2)
    upper.set_ylim(-3, 103)
    widths = [each.high - each.low for each in summary.bins]
    lower.bar(
        [each.low for each in summary.bins],
        [each.count for each in summary.bins],
        widths,
        align="edge",
        color=PALE,
        edgecolor="#FFFFFF",
    )
    lower.set_ylabel("questions")
    lower.set_xlabel("score of the small model")
    lower.set_xlim(0, 1)
    return figure


def kinds(summary: Summary) -> Any:
    """Draws accuracy per kind of question, four systems a line."""
    composed = summary.chosen
    guided = summary.measured(summary.point).at(NEVER)
    systems = (
        ("small alone", summary.small),
        ("large alone", summary.large),
        (f"large, guided at {summary.point}", guided.value),
        (f"cascade, exits at {summary.threshold:g}", composed.value),
    )
    figure = new_figure(8.2, 1.4 + 0.48 * len(summary.kinds))
    axes = figure.subplots()
    for number, (name, values) in enumerate(systems):
        found = [summary.draws.mean(values, where) for where in summary.kinds.values()]
        axes.errorbar(
            [100 * each.value for each in found],
            [place + 0.17 * (number - 1.5) for place in range(len(found))],
            xerr=whiskers(found),
            color=COLOURS[number],
            marker=MARKERS[number],
            linestyle="none",
            label=name,
            elinewidth=1.0,
            markersize=4.5,
        )
    labels = [f"{kind} ({sum(where)})" for kind, where in summary.kinds.items()]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    for place in range(1, len(labels)):
        axes.axhline(place - 0.5, color="#E6E6E6", linewidth=0.8)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("accuracy, %")
    axes.set_title("By kind of question (how many), 95 % intervals")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
