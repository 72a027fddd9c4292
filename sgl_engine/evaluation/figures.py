"""How figures look, and what they share. Drawn without pyplot, so nothing global is left behind.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; markers differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgl_engine.evaluation.intervals import Interval
from sgl_engine.evaluation.optional import extra

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#6E6E6E"
PALE = "#C8C8C8"
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "errorbar.capsize": 2.5,
    "savefig.dpi": 160,
}


@contextmanager
def styled() -> Iterator[None]:
    """Gives figures this package's look within the context; puts matplotlib's settings back afterwards."""
    with extra("matplotlib").rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Any:
    """Makes an empty matplotlib figure, in inches, that leaves room for its labels."""
    return extra("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draws a figure in this style and writes it as PNG."""
    with styled():
        draw().savefig(path)


def whiskers(intervals: Sequence[Interval]) -> list[list[float]]:
    """Turns intervals into error bars in percent, as matplotlib takes them: below and above each value."""
    below = [100 * (each.value - each.low) for each in intervals]
    return [below, [100 * (each.high - each.value) for each in intervals]]


def level(axes: Any, interval: Interval, name: str, colour: str, style: str) -> None:
    """Draws a horizontal line in percent, with its interval as a band."""
    axes.axhline(100 * interval.value, color=colour, linestyle=style, label=name, zorder=1.5)
    axes.axhspan(100 * interval.low, 100 * interval.high, color=colour, alpha=0.10, linewidth=0, zorder=0.5)


def forest_figure(
    groups: Mapping[str, Sequence[tuple[str, Interval]]],
    *,
    label: str,
    title: str,
    at: float | None = 0.0,
    percent: bool = True,
) -> Any:
    """Draws numbers with their intervals, one below the other.

    Args:
        groups: Colour -> (name, interval) of each; the names of the first group are the lines.
        label: Of the axis.
        title: Of the figure.
        at: Where a line is drawn to compare with; None is nowhere.
        percent: Whether numbers are shown times 100.
    """
    names = [name for name, _ in next(iter(groups.values()))]
    figure = new_figure(7.5, 1.2 + 0.3 * len(names))
    axes, factor = figure.subplots(), 100.0 if percent else 1.0
    if at is not None:
        axes.axvline(at, color=GREY, linewidth=1.0, zorder=1)
    for number, (group, values) in enumerate(groups.items()):
        offset = 0.22 * (number - (len(groups) - 1) / 2)
        found = dict(values)
        places = [place for place, name in enumerate(names) if name in found]
        shown = [found[names[place]] for place in places]
        axes.errorbar(
            [factor * each.value for each in shown],
            [place + offset for place in places],
            xerr=[
                [factor * (each.value - each.low) for each in shown],
                [factor * (each.high - each.value) for each in shown],
            ],
            fmt=MARKERS[number],
            color=COLOURS[number],
            markersize=5,
            linewidth=1.2,
            label=group,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.set_title(title)
    if len(groups) > 1:
        figure.legend(loc="outside lower center", ncols=len(groups))
    return figure


def layers_figure(layers: Mapping[str, Sequence[tuple[Interval, Interval]]], names: Mapping[str, str]) -> Any:
    """Draws the rank correlation over relative depth.

    Args:
        layers: Comparison -> layer by layer, (Spearman, overlap); only the former is drawn.
        names: Comparison -> what the legend calls it.
    """
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    for number, (key, pairs) in enumerate(layers.items()):
        depth = [layer / max(1, len(pairs) - 1) for layer in range(len(pairs))]
        values = [pair[0] for pair in pairs]
        axes.plot(
            depth,
            [each.value for each in values],
            marker=MARKERS[number],
            color=COLOURS[number],
            label=names[key],
        )
        axes.fill_between(
            depth,
            [each.low for each in values],
            [each.high for each in values],
            color=COLOURS[number],
            alpha=0.15,
            linewidth=0,
        )
    axes.axhline(0.0, color=GREY, linewidth=1.0)
    axes.set_xlabel("depth of the layer (0 = first, 1 = last)")
    axes.set_ylabel("Spearman's rank correlation")
    axes.set_title("How alike are the maps of the two models?")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def rates_figure(
    rates: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    reference: Sequence[str] = (),
) -> Any:
    """Draws the accuracy of the cascade over the share of questions that go to the large model.

    Args:
        rates: The shares, in [0, 1].
        curves: How the large model runs -> score -> accuracy at each share, in [0, 1]; one panel each.
        reference: Scores that are drawn in grey, dashed.
    """
    figure = new_figure(5.2 * len(curves), 4.6)
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (how, scores) in zip(panels, curves.items(), strict=True):
        colours = iter([*((colour, "-") for colour in COLOURS), *((colour, "-.") for colour in COLOURS)])
        for name, values in scores.items():
            grey = name in reference
            colour, style = (GREY, ("--", ":")[reference.index(name) % 2]) if grey else next(colours)
            axes.plot(
                [100 * rate for rate in rates],
                [100 * value for value in values],
                color=colour,
                linestyle=style,
                label=name,
            )
        axes.set_xlabel("questions that go to the large model, %")
        axes.set_title(f"large model {how}")
    panels[0].set_ylabel("accuracy of the cascade, %")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure
