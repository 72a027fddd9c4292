"""SGLUsage: what a number of calls cost together; a sum of run reports, and the table that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict


class SGLUsage(BaseModel):
    """Totals over calls; ``+`` adds two of them, and ``SGLUsage()`` is nothing used.

    Immutable. ``model_dump(mode="json")`` is plain JSON, and ``SGLUsage.model_validate`` takes it back.

    Attributes:
        calls: Answers that were computed; those from LangChain's cache are not among them.
        escalations: Of those, how many called the large model.
        forced: Of those, how many took a route that the score did not choose.
        large_agreed: Escalations where the large model only repeated the small answer.
        visual_tokens: Visual tokens of all prompts; the small model saw each of them.
        kept_visual_tokens: Of the escalated prompts' visual tokens, those that the large model
            saw in all its layers.
        pruned_visual_tokens: Of the same, those that it dropped; an early exit counts in neither.
        small_tflops: Small model, consistency pass included where it ran; 1e12 floating-point operations.
        large_tflops: Large model, as it ran.
        large_alone_tflops: What the large model alone, unpruned, would have needed for these answers.
        stage_ms: Milliseconds per stage; "total" covers whole calls. Calls that run at once add up to more
            than the time that passed.
        small_input_tokens: Prompt tokens of the small model.
        small_output_tokens: Tokens that it generated.
        large_input_tokens: Prompt tokens of the large model, before pruning.
        large_output_tokens: Tokens that it generated.
        small_cost: Money that the small model cost, in the currency of the prices (``EngineConfig.prices``).
        large_cost: The same of the large model.
        large_alone_cost: What the large model alone would have cost, over calls where that can be told.
        saved_cost: That, less what those calls cost.
        cached: Answers from LangChain's cache; nothing was computed, and nothing else counts them.
        errors: Calls that raised. What they had computed by then is not known, and not in the totals.
        cancelled: Calls that the caller cancelled, or whose stream it left; as for ``errors``.
        other_calls: Calls of other models in the same run; nothing else counts them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls: int = 0
    escalations: int = 0
    forced: int = 0
    large_agreed: int = 0
    visual_tokens: int = 0
    kept_visual_tokens: int = 0
    pruned_visual_tokens: int = 0
    small_tflops: float = 0.0
    large_tflops: float = 0.0
    large_alone_tflops: float = 0.0
    stage_ms: dict[str, float] = {}
    small_input_tokens: int = 0
    small_output_tokens: int = 0
    large_input_tokens: int = 0
    large_output_tokens: int = 0
    small_cost: float = 0.0
    large_cost: float = 0.0
    large_alone_cost: float = 0.0
    saved_cost: float = 0.0
    cached: int = 0
    errors: int = 0
    cancelled: int = 0
    other_calls: int = 0

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> SGLUsage:
        """Reads what one computed call used.

        Args:
            report: A ``RunReport`` as plain JSON, as in ``response_metadata["sgl"]``; fields that are not
                known here are ignored, since a later version of the schema may add some.
        """
        escalated = bool(report["escalated"])
        kept = report["kept_visual_tokens"]  # None: the large model was not asked, or is a hosted one
        return cls(
            calls=1,
            escalations=int(escalated),
            forced=int(report["forced"]),
            large_agreed=int(report["large_agreed"] or False),
            visual_tokens=report["visual_tokens"],
            kept_visual_tokens=kept or 0,
            pruned_visual_tokens=report["visual_tokens"] - kept if escalated and kept is not None else 0,
            small_tflops=report["small_tflops"],
            large_tflops=report["large_tflops"],
            large_alone_tflops=report["large_alone_tflops"],
            stage_ms=dict(report["stage_ms"]),
            small_input_tokens=report["small_input_tokens"],
            small_output_tokens=report["small_output_tokens"],
            large_input_tokens=report["large_input_tokens"] or 0,
            large_output_tokens=report["large_output_tokens"] or 0,
            **_money(report.get("cost")),
        )

    def __add__(self, other: SGLUsage) -> SGLUsage:
        mine, theirs = dict(self), dict(other)
        stages = [*self.stage_ms, *(stage for stage in other.stage_ms if stage not in self.stage_ms)]
        added = {name: mine[name] + theirs[name] for name in mine if name != "stage_ms"}
        stage_ms = {stage: self.stage_ms.get(stage, 0.0) + other.stage_ms.get(stage, 0.0) for stage in stages}
        return SGLUsage(**added, stage_ms=stage_ms)

    @property
    def exits(self) -> int:
        """Calls that the small model answered alone."""
        return self.calls - self.escalations

    @property
    def escalation_rate(self) -> float:
        """Escalations per call, in [0, 1]; 0 without calls."""
        return self.escalations / self.calls if self.calls else 0.0

    @property
    def tflops(self) -> float:
        """Used by both models; 1e12 floating-point operations."""
        return self.small_tflops + self.large_tflops

    @property
    def saved_tflops(self) -> float:
        """What the large model alone would have used beyond this; negative when the cascade cost more."""
        return self.large_alone_tflops - self.tflops

    @property
    def saved_fraction(self) -> float:
        """``saved_tflops`` as a fraction of what the large model alone would have used; 0 without calls."""
        return self.saved_tflops / self.large_alone_tflops if self.large_alone_tflops else 0.0

    @property
    def cost(self) -> float:
        """Money, of both models."""
        return self.small_cost + self.large_cost

    @property
    def total_ms(self) -> float:
        """Milliseconds of all calls."""
        return self.stage_ms.get("total", 0.0)


def _money(cost: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reads what a report says of money; nothing where there were no prices."""
    if cost is None:
        return {}
    return {
        "small_cost": cost["small"],
        "large_cost": cost["large"],
        "large_alone_cost": cost["large_alone"] or 0.0,
        "saved_cost": cost["saved"] or 0.0,
    }


_Cell = tuple[str, str]
"""A value, and its share of another value or an empty string."""
_Row = tuple[str, Callable[[SGLUsage], _Cell]]


def usage_table(columns: Mapping[str, SGLUsage]) -> str:
    """Writes the usages side by side as plain text, without colour codes and as wide as it needs to be.

    Args:
        columns: Title -> usage, in this order; what is zero in all of them is left out.
    """
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.HORIZONTALS, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("SGL usage", no_wrap=True)
    for title in columns:
        table.add_column(Text(title), justify="right", no_wrap=True, min_width=10)
        table.add_column(justify="right", no_wrap=True, min_width=len("100%"))
    for label, cell in _rows(list(columns.values())):
        table.add_row(label, *(Text(part) for usage in columns.values() for part in cell(usage)))
    text = StringIO()
    # A terminal's width must not cut what may go to a file.
    Console(file=text, width=1000, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _rows(usages: Sequence[SGLUsage]) -> Iterator[_Row]:
    """Yields each row's label and how to fill its cells; an indented row is part of the one above it."""

    def used(name: str) -> bool:
        return any(getattr(usage, name) for usage in usages)

    yield "calls", _count("calls")
    if used("calls"):
        yield "  small model alone", _count("exits", "calls")
        yield "  escalated", _count("escalations", "calls")
    if used("escalations"):
        yield "    large model agreed", _count("large_agreed", "escalations")
    if used("forced"):
        yield "  route forced", _count("forced", "calls")
    for name, label in _APART.items():
        if used(name):
            yield label, _count(name)
    if used("calls"):
        yield from _work_rows(usages)


_APART = {
    "cached": "answers from the cache",
    "errors": "calls that failed",
    "cancelled": "calls cancelled",
    "other_calls": "calls of other models",
}


def _work_rows(usages: Sequence[SGLUsage]) -> Iterator[_Row]:
    unit, operations = _operations([usage.large_alone_tflops for usage in usages if usage.large_alone_tflops])
    yield "visual tokens", _count("visual_tokens")
    yield "  pruned for the large model", _count("pruned_visual_tokens", "visual_tokens")
    yield "  kept for the large model", _count("kept_visual_tokens", "visual_tokens")
    yield f"{unit}, large model alone", operations("large_alone_tflops")
    yield f"{unit} used", operations("tflops")
    yield "  small model", operations("small_tflops")
    yield "  large model", operations("large_tflops")
    yield f"{unit} saved", operations("saved_tflops")
    for model in ("small", "large"):
        for way, label in (("input", "in"), ("output", "out")):
            yield f"tokens {label}, {model} model", _count(f"{model}_{way}_tokens")
    if any(usage.cost or usage.large_alone_cost for usage in usages):
        for name, label in _MONEY.items():
            yield label, partial(_amount, name)
    yield "milliseconds", lambda usage: (f"{usage.total_ms:.0f}", "")
    for stage in dict.fromkeys(stage for usage in usages for stage in usage.stage_ms if stage != "total"):
        yield f"  {stage.replace('_', ' ')}", _milliseconds(partial(_stage_ms, stage))
    yield "  waiting, other", _milliseconds(_rest_ms)
    yield "  per call", lambda usage: (f"{usage.total_ms / max(usage.calls, 1):.0f}", "")


_MONEY = {
    "large_alone_cost": "money, large model alone",
    "cost": "money spent",
    "small_cost": "  small model",
    "large_cost": "  large model",
    "saved_cost": "money saved",
}


def _amount(name: str, usage: SGLUsage) -> _Cell:
    """Writes money with as many digits as it needs."""
    value = getattr(usage, name)
    share = "" if name == "large_alone_cost" else _share(value, usage.large_alone_cost)
    return f"{value:.4g}", share


def _count(name: str, of: str | None = None) -> Callable[[SGLUsage], _Cell]:
    def cell(usage: SGLUsage) -> _Cell:
        value = getattr(usage, name)
        return f"{value}", _share(value, getattr(usage, of)) if of else ""

    return cell


def _stage_ms(stage: str, usage: SGLUsage) -> float:
    return usage.stage_ms.get(stage, 0.0)


def _rest_ms(usage: SGLUsage) -> float:
    """Computes the time in no stage: above all, waiting for a model that another call is using."""
    stages = sum(ms for stage, ms in usage.stage_ms.items() if stage != "total")
    return max(0.0, usage.total_ms - stages)


def _milliseconds(value: Callable[[SGLUsage], float]) -> Callable[[SGLUsage], _Cell]:
    return lambda usage: (f"{value(usage):.0f}", _share(value(usage), usage.total_ms))


def _operations(amounts: Sequence[float]) -> tuple[str, Callable[[str], Callable[[SGLUsage], _Cell]]]:
    """Chooses the unit in which the largest amount (1e12 operations) is at least 1; makes cells in it.

    Cells have as many decimals as give the smallest amount three digits.
    """
    units = (("TFLOPs", 1.0), ("GFLOPs", 1e3), ("MFLOPs", 1e6))
    unit, factor = next(
        ((unit, factor) for unit, factor in units if max(amounts, default=0.0) * factor >= 1), units[-1]
    )
    smallest = min(amounts, default=0.0) * factor
    decimals = min(6, max(0, 2 - math.floor(math.log10(smallest)))) if smallest else 0

    def operations(name: str) -> Callable[[SGLUsage], _Cell]:
        def cell(usage: SGLUsage) -> _Cell:
            value = getattr(usage, name)
            share = "" if name == "large_alone_tflops" else _share(value, usage.large_alone_tflops)
            return f"{value * factor:.{decimals}f}", share

        return cell

    return unit, operations


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else ""
