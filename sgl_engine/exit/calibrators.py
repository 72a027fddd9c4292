"""A fitted calibrator as plain numbers: observation -> probability that keeping the small answer is harmless.

The same few lines run when thresholds are certified and when requests are answered, so that a probability
that equals a threshold does so in both places, bit for bit. Pure Python.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCORE = "score"
ANSWER_TOKENS = "answer_tokens"
_CLIP = 1e-6  # of probabilities: beyond it, log-odds measure rounding


class Feature(BaseModel):
    """One input of a calibrator.

    Attributes:
        name: "score", "answer_tokens", or a part of ``Confidence``.
        transform: "logit" takes a probability to its log-odds, clipped at 1e-6 and 1 - 1e-6; "log1p" takes a
            count or an entropy x >= 0 to log(1 + x); "identity" changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    transform: Literal["identity", "logit", "log1p"] = "identity"

    def of(self, values: Mapping[str, float]) -> float | None:
        """Takes the feature from ``values`` and transforms it; None where it is missing or not a number."""
        value = values.get(self.name)
        if value is None or not math.isfinite(value):
            return None
        if self.transform == "logit":
            inside = min(max(value, _CLIP), 1 - _CLIP)
            return math.log(inside / (1 - inside))
        return math.log1p(max(value, 0.0)) if self.transform == "log1p" else value


def observe(
    score: float, parts: Mapping[str, float], answer_tokens: int, seen: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Collects all that features can be made of.

    Args:
        score: The small model's score by its scorer, in [0, 1].
        parts: ``Confidence.parts``.
        answer_tokens: Tokens of the small answer, its end included.
        seen: Where the small model looked (``ImportanceMap.describe``); None where it was shown nothing.
    """
    return {**parts, **(seen or {}), SCORE: score, ANSWER_TOKENS: float(answer_tokens)}


class _Calibrator(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Isotonic(_Calibrator):
    """A rising piecewise linear curve over one feature; flat outside of its knots.

    Attributes:
        feature: Of which.
        x: Knots, ascending.
        y: Probability at each, in [0, 1], never falling.
    """

    method: Literal["isotonic"] = "isotonic"
    feature: Feature
    x: tuple[float, ...]
    y: tuple[float, ...]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.x or len(self.x) != len(self.y):
            raise ValueError("as many x as y are needed, and at least one")
        if list(self.x) != sorted(set(self.x)) or list(self.y) != sorted(self.y):
            raise ValueError("x must rise and y must not fall")
        if not 0.0 <= self.y[0] <= self.y[-1] <= 1.0:
            raise ValueError("y are probabilities")
        return self

    @property
    def features(self) -> tuple[Feature, ...]:
        """The one feature that it reads."""
        return (self.feature,)

    def probability(self, values: Mapping[str, float]) -> float | None:
        """Computes the probability, in [0, 1]; None where the feature is missing or not a number."""
        value = self.feature.of(values)
        if value is None:
            return None
        right = bisect_right(self.x, value)  # the first knot beyond the value
        if right == 0:
            return self.y[0]
        if right == len(self.x):
            return self.y[-1]
        x0, x1, y0, y1 = self.x[right - 1], self.x[right], self.y[right - 1], self.y[right]
        return min(y0 + (y1 - y0) * ((value - x0) / (x1 - x0)), y1)  # rounding may overshoot


class Logistic(_Calibrator):
    """1 / (1 + exp(-(intercept + sum of coefficients x standardised features))).

    Attributes:
        inputs: The features.
        mean: Of each on the fitting half.
        scale: Its standard deviation there; 1 for a constant.
        coefficients: One for each.
        intercept: The log-odds of an average observation.
    """

    method: Literal["logistic"] = "logistic"
    inputs: tuple[Feature, ...]
    mean: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0.0)], ...]
    coefficients: tuple[float, ...]
    intercept: float

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if {len(self.mean), len(self.scale), len(self.coefficients)} != {len(self.inputs)}:
            raise ValueError("mean, scale and coefficients need one number per input")
        return self

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that it reads."""
        return self.inputs

    def probability(self, values: Mapping[str, float]) -> float | None:
        """Computes the probability, in [0, 1]; None where a feature is missing or not a number."""
        terms = [self.intercept]
        for feature, mean, scale, coefficient in zip(
            self.inputs, self.mean, self.scale, self.coefficients, strict=True
        ):
            value = feature.of(values)
            if value is None:
                return None
            terms.append(coefficient * (value - mean) / scale)
        log_odds = math.fsum(terms)
        if log_odds < 0:  # exp of a large positive number overflows
            return math.exp(log_odds) / (1 + math.exp(log_odds))
        return 1 / (1 + math.exp(-log_odds))


Calibrator: TypeAlias = Annotated[Isotonic | Logistic, Field(discriminator="method")]
"""Add one with a class that has ``method``, ``features`` and ``probability``, and a branch in ``fit``."""
