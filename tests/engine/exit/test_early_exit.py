import math

import pytest

from sgl_engine import ExitConfig
from sgl_engine.exit.decision import Confidence, decide_exit


@pytest.mark.parametrize(
    ("score", "escalate", "leaves", "policy"),
    [
        (0.81, "auto", True, "threshold"),
        (0.80, "auto", True, "threshold"),
        (0.79, "auto", False, "threshold"),
        (math.nan, "auto", False, "threshold"),
        (0.01, "never", True, "forced"),
        (0.99, "always", False, "forced"),
    ],
)
def test_decisions(score: float, escalate: str, leaves: bool, policy: str) -> None:
    config = ExitConfig.model_validate({"escalate": escalate})
    decision = decide_exit(Confidence(score, {"confidence": score}), config)
    assert (decision.exit, decision.policy, decision.threshold) == (leaves, policy, 0.8)
    assert decision.calibration is None
