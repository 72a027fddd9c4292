"""The figure of a latency run: ratios against their targets, or stages of an escalated request."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.latency_profile import Stages
from sgl_engine.errors import ConfigError

_GOOD, _BAD, _TARGET = "#2a7f62", "#c1443c", "#444444"


def draw(measured: list[dict[str, Any]], profiles: list[Stages], path: Path) -> None:
    """Writes the figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("Drawing needs matplotlib.", remedy="pip install '.[evaluation]'") from None
    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in measured if row["target"]]
    tall = 1.2 + 0.5 * max(len(rows), 2 * len(profiles))
    figure, axes = plt.subplots(figsize=(9, tall), layout="constrained")
    if profiles:
        _stages(axes, profiles)
    else:
        _ratios(axes, rows)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Each ratio over its target, so that one line says which side is good for a kind of row."""
    for at, row in enumerate(rows):
        sense, target = row["target"].split()
        # Shares that should be small are turned over: to the right is better, everywhere.
        better = [float(target) / value if sense == "<=" else value / float(target) for value in _three(row)]
        value, ends = better[0], sorted(better[1:])
        colour = _GOOD if row["passed"] else _BAD
        axes.plot(ends, [at, at], color=colour, linewidth=3, alpha=0.5, solid_capstyle="round")
        axes.plot(value, at, "o", color=colour)
        axes.annotate(
            f"{row['ratio']:.2f} ({row['target']})",
            (max(value, ends[1]), at),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.axvline(1.0, color=_TARGET, linestyle="--", linewidth=1)
    names = [
        textwrap.fill(f"{row['name']}" + (f", {row['visual_tokens']}" if row["visual_tokens"] else ""), 52)
        for row in rows
    ]
    axes.set(xscale="log", yticks=range(len(rows)), xlabel="times better than the target", title="Ratios")
    axes.set_yticklabels(names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)


def _three(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["ratio"], row["spread"][0], row["spread"][1]


def _stages(axes: Any, profiles: list[Stages]) -> None:
    from matplotlib import colormaps

    names = list(dict.fromkeys(name for profile in profiles for name in profile.ms))
    for number, name in enumerate(names):
        widths, starts = [], []
        for profile in profiles:
            before = sum(profile.ms.get(other, 0.0) for other in names[:number])
            starts.append(before / profile.total_ms)
            widths.append(profile.ms.get(name, 0.0) / profile.total_ms)
        axes.barh(range(len(profiles)), widths, left=starts, label=name, color=colormaps["tab20"](number))
    axes.set(
        yticks=range(len(profiles)), xlabel="share of the request", title="One escalated request, by stage"
    )
    axes.set_yticklabels([f"{profile.name}\n{profile.total_ms:,.0f} ms" for profile in profiles])
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
