"""What a calibrated probability is computed from. Pure.

A feature is a named number of the small pass and a transform. Files name their features, so that a part which
``sgl_engine.confidence`` learns to compute later breaks no file, and one that is missing is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

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
        """The feature of ``values``; None where it is missing or not a number."""
        value = values.get(self.name)
        if value is None or not math.isfinite(value):
            return None
        if self.transform == "logit":
            inside = min(max(value, _CLIP), 1 - _CLIP)
            return math.log(inside / (1 - inside))
        return math.log1p(max(value, 0.0)) if self.transform == "log1p" else value


def observe(score: float, parts: Mapping[str, float], answer_tokens: int) -> dict[str, float]:
    """All that features can be made of.

    Args:
        score: The small model's score by its scorer, in [0, 1].
        parts: ``Confidence.parts``.
        answer_tokens: Tokens of the small answer, its end included.
    """
    return {**parts, SCORE: score, ANSWER_TOKENS: float(answer_tokens)}


def logistic_features(observations: Sequence[Mapping[str, float]]) -> tuple[Feature, ...]:
    """Every number that all observations have, but for the score, which is made of the others.

    Numbers within [0, 1] are probabilities, and enter by their log-odds; others are counts or entropies.
    """
    names = _in_all(observations) - {SCORE}
    return tuple(Feature(name=name, transform=_transform(name, observations)) for name in sorted(names))


def _in_all(observations: Sequence[Mapping[str, float]]) -> set[str]:
    common: set[str] = set(observations[0]) if observations else set()
    for each in observations:
        common &= {name for name, value in each.items() if math.isfinite(value)}
    return common


def _transform(name: str, observations: Iterable[Mapping[str, float]]) -> Literal["logit", "log1p"]:
    # By what was seen, not by a table of names: a part that is added later has its transform, too.
    if name == ANSWER_TOKENS or "entropy" in name:
        return "log1p"
    return "logit" if all(0.0 <= each[name] <= 1.0 for each in observations) else "log1p"
