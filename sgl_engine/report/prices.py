"""What a request has cost in money, and what the large model alone would have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from sgl_engine.config import Price


class RunCost(BaseModel):
    """Money, in the currency of the prices. A model without a price costs nothing.

    Attributes:
        small: What the small model cost.
        large: What the large model cost; 0 where it was not called.
        total: Both.
        large_alone: The alternative: the large model alone, on all of the pictures. Where it was called, from
            its own tokens or its own time; where not, an estimate from the small model's tokens. None where
            that cannot be told: tokens without the provider's rule for pictures
            (``SendConfig.picture_tokens``), or the time of a machine that did not run.
        saved: ``large_alone`` less ``total``; negative where the cascade cost more. None as above.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    small: float
    large: float
    total: float
    large_alone: float | None
    saved: float | None


@dataclass(frozen=True)
class Spent:
    """What one model used.

    Attributes:
        name: The model's.
        given: Prompt tokens; None where its provider does not tell.
        written: Generated tokens; None as above.
        cached: How many of the prompt's tokens its provider had in its cache.
        ms: Milliseconds that it computed.
    """

    name: str
    given: int | None
    written: int | None
    cached: int = 0
    ms: float = 0.0


@dataclass(frozen=True)
class Alone:
    """What the large model alone would have used.

    Attributes:
        given: Prompt tokens; None where that is not known.
        written: Generated tokens.
        cached: How many of the prompt's tokens its provider had in its cache.
        times: How much more it would have computed than it did; None where it did not.
    """

    given: int | None
    written: int
    cached: int = 0
    times: float | None = None


def run_cost(
    prices: Mapping[str, Price], small: Spent, large: Spent | None, large_name: str, alone: Alone
) -> RunCost | None:
    """Adds up what a request cost; None without prices, or where tokens are paid that nobody tells.

    Args:
        prices: By the models' names.
        small: What the small model used.
        large: What the large model used; None where it was not called.
        large_name: The large model's name.
        alone: The alternative.
    """
    if not prices:
        return None
    parts = [money for each in (small, large) if (money := _price(prices, each)) is not None]
    if len(parts) < 2:
        return None
    other = _alone(prices.get(large_name, Price()), large, alone)
    total = sum(parts, Decimal(0))
    return RunCost(
        small=float(parts[0]),
        large=float(parts[1]),
        total=float(total),
        large_alone=None if other is None else float(other),
        saved=None if other is None else float(other - total),
    )


def _price(prices: Mapping[str, Price], spent: Spent | None) -> Decimal | None:
    """What one model cost; None where that cannot be told."""
    if spent is None:
        return Decimal(0)
    price = prices.get(spent.name, Price())
    if spent.given is None or spent.written is None:
        by_token = price.input or price.output or price.cached_input
        return None if by_token else price.of_time(spent.ms)
    return price.of_tokens(spent.given, spent.written, cached=spent.cached) + price.of_time(spent.ms)


def _alone(price: Price, large: Spent | None, alone: Alone) -> Decimal | None:
    if price.hour is not None:
        return None if large is None or alone.times is None else price.of_time(large.ms * alone.times)
    if alone.given is None:
        return None
    return price.of_tokens(alone.given, alone.written, cached=alone.cached)
