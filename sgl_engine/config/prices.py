"""What a model costs: tokens of a provider, or time of a machine."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, Field, model_validator

Per: TypeAlias = Literal["1M tokens", "1K tokens", "token", "hour"]
Amount: TypeAlias = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]

_TOKENS = {"1M tokens": 1_000_000, "1K tokens": 1_000, "token": 1}
_MS_PER_HOUR = 3_600_000


class Price(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a model costs, in whatever currency all prices are in; exact decimal numbers.

    ``Price(input=2.5, output=10)`` is a provider's list price per million tokens, ``Price.per_hour(1.2)``
    that of a machine of one's own, which counts while the model computes.

    Attributes:
        input: Prompt tokens.
        output: Generated tokens, thoughts included.
        cached_input: Prompt tokens that the provider had in its cache; None costs as much as others.
        hour: An hour of the machine.
        per: What ``input``, ``output`` and ``cached_input`` are for; "hour" of a machine.
    """

    input: Amount = Decimal(0)
    output: Amount = Decimal(0)
    cached_input: Amount | None = None
    hour: Amount | None = None
    per: Per = "1M tokens"

    @model_validator(mode="before")
    @classmethod
    def _decimals(cls, given: object) -> object:
        """Reads 0.1 as the decimal number that was written, not as the float that is nearest to it."""
        if not isinstance(given, dict):
            return given
        return {name: str(value) if isinstance(value, float) else value for name, value in given.items()}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.hour is not None) != (self.per == "hour"):
            raise ValueError(
                'an hourly price is written Price.per_hour(amount); per="hour" goes with it alone'
            )
        if self.hour is not None and (self.input or self.output or self.cached_input is not None):
            raise ValueError("a model costs by the hour or by the token, not both")
        return self

    @classmethod
    def per_hour(cls, amount: float | str | Decimal) -> Self:
        """The price of a machine, for each hour that it computes."""
        return cls(hour=Decimal(str(amount)), per="hour")

    def of_tokens(self, given: int, written: int, *, cached: int = 0) -> Decimal:
        """The price of so many prompt tokens, ``cached`` of them known to the provider, and output tokens."""
        cached_input = self.input if self.cached_input is None else self.cached_input
        money = (given - cached) * self.input + cached * cached_input + written * self.output
        return money / _TOKENS.get(self.per, 1)

    def of_time(self, ms: float) -> Decimal:
        """The price of so many milliseconds; nothing where tokens are paid."""
        return (self.hour or Decimal(0)) * Decimal(repr(ms)) / _MS_PER_HOUR
