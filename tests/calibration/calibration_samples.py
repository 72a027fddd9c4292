"""Records that no model was asked for."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from sgl_engine.calibration.build import Promise, calibrate
from sgl_engine.calibration.records import CalibrationRecord
from sgl_engine.config import GenerationConfig, PruningConfig
from sgl_engine.exit.binding import Binding, Conditions, ModelIdentity

MODEL = ModelIdentity(name="little", revision=None, dtype="float32", fingerprint="f", prompt_format="p")
BINDING = Binding(
    small=MODEL,
    large=MODEL.model_copy(update={"name": "big", "fingerprint": "g"}),
    pruning=PruningConfig(),
    scorer="confidence",
    consistency_keep_ratio=0.05,
)
CONDITIONS = Conditions(generation=GenerationConfig(), min_images=1, max_images=1)


def make_record(number: int, **changes: Any) -> CalibrationRecord:
    """Both models right, on a picture of its own."""
    fields: dict[str, Any] = {
        "key": f"row-{number:05}",
        "kind": "words",
        "picture": f"picture-{number}",
        "images": 1,
        "score": 0.9,
        "parts": {"confidence": 0.9, "answer_probability": 0.8},
        "answer_tokens": 3,
        "small_answer": "yes",
        "large_answer": "yes",
        "agreed": True,
        "agreed_by_metric": True,
        "small_right": True,
        "large_right": True,
        "alone_right": True,
        "small_tflops": 1.0,
        "large_tflops": 4.0,
        "alone_tflops": 8.0,
        "small_ms": 10.0,
        "large_ms": 40.0,
        "alone_ms": 50.0,
    }
    return CalibrationRecord(**fields | changes)


def make_records(
    count: int, *, seed: int = 0, harm: float = 0.3, power: float = 1.0
) -> list[CalibrationRecord]:
    """Scores uniform in [0, 1]; P(the large model says something else) = harm * (1 - score)^power."""
    rng = np.random.default_rng(seed)
    scores = rng.random(count)
    disagree = rng.random(count) < harm * (1 - scores) ** power
    return [
        make_record(
            number,
            score=float(score),
            parts={"confidence": float(score), "answer_probability": float(score) ** 2},
            answer_tokens=1 + number % 5,
            kind=("words", "charts")[number % 2],
            agreed=not differs,
            agreed_by_metric=not differs,
            small_right=not differs,
            large_answer="no" if differs else "yes",
        )
        for number, (score, differs) in enumerate(zip(scores, disagree, strict=True))
    ]


def make_calibration(
    records: Sequence[CalibrationRecord], promise: Promise | None = None, **changes: Any
) -> Any:
    """Of the models above."""
    settings: dict[str, Any] = {"binding": BINDING, "conditions": CONDITIONS, "data": "invented"} | changes
    return calibrate(records, promise or Promise(targets=(0.02, 0.05, 0.1)), **settings)


def exact_cdf(errors: int, records: int, risk: Fraction) -> Fraction:
    """P(Binomial(records, risk) <= errors), without rounding."""
    terms = (math.comb(records, k) * risk**k * (1 - risk) ** (records - k) for k in range(errors + 1))
    return sum(terms, Fraction(0))
