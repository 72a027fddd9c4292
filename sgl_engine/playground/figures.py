"""What an answer cost, against the large model alone, as rows of bars. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from pydantic import BaseModel

from sgl_engine import Price, RunReport

MONEY_FOR: Final = 1000
"""Questions that money is told for: of one it would be a row of zeros."""
_Text: TypeAlias = Callable[[float], str]
_TERA: Final = (("TFLOP", 1.0), ("GFLOP", 1e-3), ("MFLOP", 1e-6))


class AloneRun(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What the large model by itself has done with the same question.

    Attributes:
        text: Its answer.
        ms: Milliseconds, reading included.
    """

    text: str
    ms: float


class FigureRow(BaseModel, frozen=True):
    """One pair of bars, in one unit.

    Attributes:
        name: What is compared.
        small: The small model's part of what the pair took.
        large: The large model's part; 0 where it was not asked.
        rest: What is neither's: waiting.
        alone: The large model alone.
        ours_text: The pair's sum, for people.
        alone_text: The large model alone, for people.
        share: The pair's sum divided by ``alone``; None where that is 0.
    """

    name: str
    small: float
    large: float
    rest: float
    alone: float
    ours_text: str
    alone_text: str
    share: float | None


def figure_rows(report: RunReport, alone: AloneRun, prices: tuple[Price, Price]) -> list[FigureRow]:
    """Operations, milliseconds and money.

    Args:
        report: Of the pair's answer, with nothing known from before.
        alone: The large model alone, the same way.
        prices: Of the small and of the large model's machine, by the hour.
    """
    spent_ms = [_ms_of(report, model) for model in ("small", "large")]
    rest_ms = max(0.0, report.stage_ms["total"] - sum(spent_ms))
    money = [
        MONEY_FOR * float(price.of_time(ms))
        for price, ms in ((prices[0], spent_ms[0]), (prices[1], spent_ms[1]), (prices[1], alone.ms))
    ]
    tera = report.small_tflops, report.large_tflops, report.large_alone_tflops
    # Operations are in giga: numbers that people can read off the JSON as well.
    return [
        _row("Operations", [1e3 * each for each in tera], lambda giga: _flops(giga / 1e3)),
        _row("Time", [*spent_ms, alone.ms], lambda ms: f"{ms:,.0f} ms", rest=rest_ms),
        _row(f"Money, per {MONEY_FOR:,} questions", money, lambda value: f"{value:.3g}"),
    ]


def _row(name: str, values: list[float], text: _Text, *, rest: float = 0.0) -> FigureRow:
    small, large, alone = values
    ours = small + large + rest
    return FigureRow(
        name=name,
        small=small,
        large=large,
        rest=rest,
        alone=alone,
        ours_text=text(ours),
        alone_text=text(alone),
        share=ours / alone if alone else None,
    )


def _ms_of(report: RunReport, model: str) -> float:
    """What a model's stages took, which are called ``<stage>_<model>``."""
    return sum(ms for stage, ms in report.stage_ms.items() if stage.endswith(f"_{model}"))


def _flops(tera: float) -> str:
    unit, scale = next(((unit, scale) for unit, scale in _TERA if tera >= scale), _TERA[-1])
    return f"{tera / scale:.3g} {unit}"
