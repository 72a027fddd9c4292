"""Defines what the engine returns: an answer, or scores of given answers, with a report; stream events."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sgl_engine.chat.tool_stream import Delta
from sgl_engine.exit.decision import ExitDecision, answer_shares
from sgl_engine.report.run_report import RunReport
from sgl_engine.request import InvalidToolCall, ToolCall

if TYPE_CHECKING:  # these load torch; a response holds them, and need not be made to be imported
    from sgl_engine.attention.importance import ImportanceMap
    from sgl_engine.decoding.answer import FinishReason, TokenLogprob
    from sgl_engine.hosted.model import HostedAnswer
    from sgl_engine.pruning.plan import PruningPlan


@dataclass(frozen=True, eq=False)
class Response:
    """The answer, and how it came about.

    Attributes:
        text: The answer, tool calls and thoughts left out.
        finish_reason: Why the answer ends: "stop" or "length"; of a hosted model also "content_filter".
        report: What it cost and how it was decided; JSON-safe.
        tool_calls: What the model wants to have run, in order.
        invalid_tool_calls: Calls that cannot be read.
        tokens: The answer's tokens, the end-of-sequence token included, where the request asked for them.
        importance: The small model's map; None when the request holds no image.
        plan: What the large model saw; None when it was not called.
        reasoning: What the model thought before it answered; empty where it did not.
        hosted: What a hosted large model has answered, as it said it; None where none has.
    """

    text: str
    finish_reason: FinishReason
    report: RunReport
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    tokens: tuple[TokenLogprob, ...] = ()
    importance: ImportanceMap | None = None
    plan: PruningPlan | None = None
    reasoning: str = ""
    hosted: HostedAnswer | None = None


StreamEvent: TypeAlias = ExitDecision | Delta | Response
"""``SGLEngine.stream`` yields the decision, then pieces of thoughts, text and calls, then one Response."""


@dataclass(frozen=True)
class AnswerScores:
    """How likely each answer is, in the order in which they were given.

    Attributes:
        answers: As given.
        logprobs: Natural log of the probability of each whole answer, its end included; at most 0.
        report: Which model's scores these are, and what they cost.
        token_logprobs: The same of each token of each answer, its end last.
    """

    answers: tuple[str, ...]
    logprobs: tuple[float, ...]
    report: RunReport
    token_logprobs: tuple[tuple[float, ...], ...] = ()

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Probability of each whole answer, in [0, 1]; the rest, up to 1, is that of answers not given."""
        return tuple(math.exp(logprob) for logprob in self.logprobs)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each answer's part of these probabilities: they sum to 1."""
        return answer_shares(self.logprobs)

    @property
    def best(self) -> str:
        """The likeliest answer; the first of equals."""
        return self.answers[self.logprobs.index(max(self.logprobs))]
