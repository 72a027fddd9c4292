import math
from pathlib import Path
from typing import Any

import pytest
from samples import noise

from sgl_engine import VLM, EngineConfig, ExitConfig, Request, SGLEngine
from sgl_engine.exit import CallChoices
from sgl_engine.exit.decision import Confidence, decide_exit
from sgl_engine.testing import FakeEngine, tiny_vlm


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


def asked(engine: SGLEngine) -> Any:
    return engine.run(Request.ask("What is it?", noise(40, 40), max_new_tokens=8)).report


@pytest.mark.parametrize("says", ["", " ", "\n\t "])
def test_an_answer_without_a_word_escalates(says: str) -> None:
    fake = FakeEngine(lambda _: says, score=1.0)
    report = asked(fake)
    assert (report.route, report.score) == ("large", 0.0)
    assert report.score_parts["confidence"] == 1.0
    scored = fake.with_config(EngineConfig(exit=ExitConfig(empty_answers="score")))
    assert (asked(scored).route, asked(scored).score) == ("small", 1.0)
    assert asked(fake.with_config(EngineConfig(exit=ExitConfig(escalate="never")))).score == 0.0


def test_the_control_one_character_is_an_answer() -> None:
    assert asked(FakeEngine(lambda _: ".", score=1.0)).route == "small"


def ends_at_once(vlm: VLM) -> VLM:
    """A model that is sure of saying nothing."""
    [end, *_] = sorted(vlm.eos_token_ids)
    own = vlm.forward_batch

    def forward(*given: Any, **settings: Any) -> Any:
        logits = own(*given, **settings).clone()
        logits[..., end] = 1e4
        return logits

    vlm.forward_batch = forward  # type: ignore[method-assign]
    return vlm


def test_a_model_that_is_sure_of_saying_nothing_escalates() -> None:
    engine = SGLEngine(ends_at_once(tiny_vlm(size="small")), tiny_vlm(size="large"))
    request = Request.ask("What is it?", noise(40, 40), max_new_tokens=4)
    response = engine.run(request)
    assert (response.report.route, response.report.score, response.report.small_answer) == ("large", 0.0, "")
    assert response.report.score_parts["confidence"] == pytest.approx(1.0)
    [batched] = engine.run_batch([request])
    assert batched.report.route == "large"  # type: ignore[union-attr]


def test_a_call_beyond_the_calibration_keeps_no_small_answer() -> None:
    """Even where it says "auto", which the engine does by itself: no score of such a call is calibrated."""
    config = EngineConfig(exit=ExitConfig(calibration=Path("x"), risk=0.05))
    for choices, expected in (
        (CallChoices(retention="9%"), "always"),
        (CallChoices(retention="9%", escalate="auto"), "always"),
        (CallChoices(retention="9%", escalate="never"), "never"),
        (CallChoices(retention="9%", escalate="auto", threshold=0.5), "auto"),
    ):
        leaving = choices.changes(config)["exit"]
        assert (leaving.escalate, leaving.calibration) == (expected, None)
    assert CallChoices(escalate="auto").changes(config)["exit"].calibration == Path("x")
