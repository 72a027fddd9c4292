"""How figures look, and what they share. Drawn without pyplot, so nothing global is left behind.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; markers differ as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgl_engine.evaluation.intervals import Interval
from sgl_engine.extras import extra

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
    """Within the context, figures look like this package's; afterwards, as matplotlib was set before."""
    with extra("matplotlib").rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, that makes room for its labels."""
    return extra("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draws a figure in this style and writes it as PNG."""
    with styled():
        draw().savefig(path)


def whiskers(intervals: Sequence[Interval]) -> list[list[float]]:
    """Error bars in percent, as matplotlib takes them: below and above each value."""
    below = [100 * (each.value - each.low) for each in intervals]
    return [below, [100 * (each.high - each.value) for each in intervals]]


def level(axes: Any, interval: Interval, name: str, colour: str, style: str) -> None:
    """A horizontal line in percent, with its interval as a band."""
    axes.axhline(100 * interval.value, color=colour, linestyle=style, label=name, zorder=1.5)
    axes.axhspan(100 * interval.low, 100 * interval.high, color=colour, alpha=0.10, linewidth=0, zorder=0.5)
