"""The risks that can be bounded, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Risk: TypeAlias = Literal["disagreement", "regression", "error"]
Agreement: TypeAlias = Literal["text", "metric"]
"""How answers agree: as ``RunReport.large_agreed`` says, or by the row's metric, were the large one right."""

RISKS: Mapping[Risk, str] = {
    "disagreement": "the small model's answer is final, and the large model would have answered differently",
    "regression": "the small model's answer is final and wrong, and the large model's would have been right",
    "error": "the small model's answer is final and wrong",
}
"""What a target risk bounds the probability of, over all questions."""
