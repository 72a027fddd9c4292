"""The standard suite, passed by a model without any weights, by ours, and not by models that break it."""

import ast
import hashlib
from pathlib import Path
from typing import Any

import pytest
from langchain_core.decisions import BaseDecisionModel, ClassifierResponse

import langchain_sgl.decisions.suite as suite_module
from langchain_sgl import SGLDecisionModel
from langchain_sgl.decisions.suite import NOUL, STATE, DecisionModelTests


class StubDecisions(BaseDecisionModel):
    """Answers by a hash of what it is asked."""

    model: str = "stub"

    @property
    def _provider(self) -> str:
        return "stub"

    def _weights(self, *parts: Any, count: int) -> list[float]:
        digest = hashlib.sha256(repr(parts).encode()).digest()
        return [(1 + byte) / (count + sum(digest[:count])) for byte in digest[:count]]

    def _classify(self, state: Any, questions: Any) -> ClassifierResponse:
        answers: dict[str, Any] = {}
        for name, asked in questions.items():
            if asked.type == "box":
                box = {"top": 0.25, "bottom": 0.5, "left": 0.25, "right": 0.5}
                answers[name] = {"type": "box", "box": box}
                continue
            count = 2 if asked.type == "noul" else len(asked.criteria)
            shares = self._weights(state, asked, count=count)
            if asked.type == "noul":
                answers[name] = {"type": "noul", "noul": shares[0]}
            elif asked.type == "choice":
                labels = dict(zip(asked.criteria, shares, strict=True))
                best = max(labels, key=labels.__getitem__)
                answers[name] = {"type": "choice", "choice": best, "probabilities": labels, "confidence": 0.5}
            else:
                answers[name] = {
                    "type": "score",
                    "score": sum(level * share for level, share in enumerate(shares)),
                    "legend": dict(enumerate(asked.criteria)),
                    "probabilities": dict(enumerate(shares)),
                    "confidence": 0.5,
                }
        usage: Any = {"input_tokens": 7, "output_tokens": 0}
        return ClassifierResponse(model=self.model, answers=answers, usage=usage)


class TestStubDecisions(DecisionModelTests):
    decision_model_class = StubDecisions


class TestSGLDecisions(DecisionModelTests):
    decision_model_class = SGLDecisionModel


class Renaming(StubDecisions):
    """Loses the names of its questions."""

    def _classify(self, state: Any, questions: Any) -> ClassifierResponse:
        response = super()._classify(state, questions)
        return response.model_copy(update={"answers": {f"{n}!": a for n, a in response.answers.items()}})


class Improper(StubDecisions):
    """Its probabilities do not sum to 1."""

    def _weights(self, *parts: Any, count: int) -> list[float]:
        return [0.9] * count


def test_a_model_that_breaks_the_interface_does_not_pass() -> None:
    suite = DecisionModelTests()
    with pytest.raises(AssertionError):
        suite.ask(Renaming(), STATE, {"help": NOUL})
    with pytest.raises(AssertionError):
        suite.test_choice(Improper())
    with pytest.raises(AssertionError):
        suite.test_score(Improper())
    suite.test_choice(StubDecisions())


def test_the_suite_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(suite_module.__file__).read_text())
    named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert named
    assert not [name for name in named if "sgl" in name]
