"""A small model that sees 16 x 16 tokens guides the bundled large one, which sees 12 x 12."""

import dataclasses

import pytest
import torch
from PIL import Image

from sgl_engine import VLM, EngineConfig, ExitConfig, Request, SGLEngine
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.demo import OTHER_GRID, SCORER, demo_engine
from sgl_engine.demo.generator import heldout_questions
from sgl_engine.passes import run_large_pass, run_small_pass


@pytest.fixture(scope="module")
def engine() -> SGLEngine:
    small = VLM.from_pretrained(OTHER_GRID, dtype="float32", name="small-16x16")
    config = EngineConfig(exit=ExitConfig(escalate="always", scorer=SCORER))
    return SGLEngine(small, demo_engine().large, config)


def test_the_report_speaks_of_the_answering_models_grid(engine: SGLEngine) -> None:
    sample, question = next(iter(heldout_questions(1)))
    request = Request.ask(question.text, Image.fromarray(sample.pixels))
    large = engine.run(request)
    assert (large.report.visual_tokens, large.report.kept_visual_tokens) == (144, 28)
    assert large.importance is not None
    assert large.importance.mass.shape == (256,)
    small = engine.with_config(engine.config.escalating("never")).run(request)
    assert small.report.visual_tokens == 256


def test_guidance_carries_over(engine: SGLEngine) -> None:
    """On short answers, against the map of the question before, which knows where things usually stand."""
    right = {"own": 0, "before": 0}
    before = None
    pairs = [pair for pair in heldout_questions(60) if pair[1].kind != "transcribe"][:36]
    for sample, question in pairs:
        request = Request.ask(question.text, Image.fromarray(sample.pixels))
        prompt = engine.large.encode(request)
        small = run_small_pass(engine.small, AnswerTask(engine.small.encode(request), 8))
        assert small.importance is not None
        uniform = dataclasses.replace(small.importance, mass=torch.ones_like(small.importance.mass))
        for name, importance in {"own": small.importance, "before": before or uniform}.items():
            answer = run_large_pass(
                engine.large, AnswerTask(prompt, 8), engine.plan(prompt, importance)
            ).generation
            right[name] += answer.text.strip() == question.answer
        before = small.importance
    assert right["own"] >= 0.7 * len(pairs)
    assert right["own"] >= right["before"] + 8
