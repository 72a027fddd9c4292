"""Rows with made-up numbers, for what is computed from them; and the bundled pair, for what is measured."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sgl_engine.config import EngineConfig, GenerationConfig
from sgl_engine.demo import demo_engine
from sgl_engine.engine import SGLEngine
from sgl_engine.evaluation import runner, systems
from sgl_engine.evaluation.records import BenchAnswer, BenchOutcome, DataRow, Scored
from sgl_engine.testing import tiny_vlm

MakeRow = Callable[..., Scored]


@pytest.fixture(scope="session")
def bundled() -> SGLEngine:
    """The bundled pair, with answers of at most 12 tokens."""
    return demo_engine(EngineConfig(generation=GenerationConfig(max_new_tokens=12)))


@pytest.fixture(scope="session")
def tiny() -> SGLEngine:
    """A pair of random weights with answers of three tokens, for what becomes of rows, whatever they say."""
    config = EngineConfig(generation=GenerationConfig(max_new_tokens=3))
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"), config)


@pytest.fixture
def make_row() -> MakeRow:
    """Builds a row of which it is known who is right: small, large, guided at each point."""

    def build(
        index: int,
        *,
        score: float,
        small: float,
        large: float,
        guided: Sequence[float] = (1.0, 0.0),
        kind: str = "a",
        **outcome: Any,
    ) -> Scored:
        def answer(value: float, tflops: float, ms: float | None, retention: float = 1.0) -> BenchAnswer:
            return BenchAnswer(
                text=str(value), value=value, tokens=2, tflops=tflops, ms=ms, retention=retention
            )

        points = dict(zip(("35%", "9%"), guided, strict=True))
        return Scored(
            row=DataRow(
                index=index, id=f"row {index}", kind=kind, metric="exact", question="q?", answers=("a",)
            ),
            outcome=BenchOutcome(
                **{
                    "small": answer(small, 0.3, 30.0),
                    "large": answer(large, 1.0, 100.0),
                    "score": score,
                    "parts": {"confidence": score},
                    "small_pass_tflops": 0.4,
                    "small_pass_ms": 40.0,
                    "guided": {
                        p: answer(v, 0.5, 60.0, 0.35 if p == "35%" else 0.09) for p, v in points.items()
                    },
                    "pruned": {
                        ranker: {p: answer(v, 0.5, None) for p, v in points.items()}
                        for ranker in ("small-guided", "random")
                    },
                }
                | outcome
            ),
        )

    return build


@pytest.fixture
def no_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves studies out, which take most of a row's time."""
    monkeypatch.setattr(systems, "STUDIES", {})
    monkeypatch.setattr(runner, "STUDIES", {})
