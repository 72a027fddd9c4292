"""Scored answers as runs of a chat model: traces, usage and budgets treat them like any other call."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from langchain_core.callbacks import CallbackManager
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import RunnableConfig, ensure_config

from langchain_sgl.budget.gate import permission
from langchain_sgl.errors import as_langchain_errors
from sgl_engine import ImagePart, ImageSource, Message, Request, RunReport

if TYPE_CHECKING:
    from sgl_engine import AnswerScores, SGLEngine

_RUN_PREFIX = "lc_run-"  # so LangChain begins the id of a message that was computed, not read from a cache


def score_picture(
    engine: SGLEngine,
    picture: ImageSource,
    question: str,
    answers: Sequence[str],
    *,
    model: Literal["auto", "small", "large"] = "auto",
    timeout_s: float | None = None,
    cache_salt: str | None = None,
    cancel: threading.Event | None = None,
    config: RunnableConfig | None = None,
) -> AnswerScores:
    """Calls ``SGLEngine.score_answers`` for one picture, as a run; limits on escalation hold here too.

    Args:
        engine: The pair.
        picture: What the question is about.
        question: The question.
        answers: What it may be answered with.
        model: Whose scores are returned, as in ``SGLEngine.score_answers``.
        timeout_s: Seconds for the whole call; None is no limit.
        cache_salt: As in ``Request``.
        cancel: Once set, the call fails within one forward pass.
        config: Whose child the run is; None is the run around the call.

    Raises:
        SGLError: As an error of LangChain, too.
    """
    config = ensure_config(config)
    manager = CallbackManager.configure(
        config.get("callbacks"),
        inheritable_tags=config.get("tags"),
        inheritable_metadata={
            **(config.get("metadata") or {}),
            "ls_provider": "sgl",
            "ls_model_type": "chat",
        },
    )
    # The picture is left out of the run: documents name it, and traces need no copy.
    asked = HumanMessage(f"{question} (likelihood of {', '.join(map(repr, answers))})")
    (run,) = manager.on_chat_model_start({"name": "SGLEngine.score_answers"}, [[asked]])
    request = Request(
        messages=(Message("user", (ImagePart(picture), question)),),
        deadline=None if timeout_s is None else time.monotonic() + timeout_s,
        cancel=cancel,
        cache_salt=cache_salt,
        may_escalate=permission(run.run_id),
    )
    try:
        with as_langchain_errors():
            scores = engine.score_answers(request, answers, model=model)
    except BaseException as error:
        run.on_llm_error(error)
        raise
    message = to_message(scores.best, scores.report, run.run_id)
    run.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]))
    return scores


def to_message(answer: str, report: RunReport, run_id: UUID) -> AIMessage:
    """Writes an answer as the message of a run, with the metadata that ``ChatSGL`` would give it."""
    tokens_in, tokens_out = report.small_input_tokens, report.small_output_tokens
    model = report.small_model
    if report.escalated:
        model = report.large_model
        tokens_in, tokens_out = report.large_input_tokens or 0, report.large_output_tokens or 0
    return AIMessage(
        answer,
        id=f"{_RUN_PREFIX}{run_id}",
        response_metadata={
            "model_name": model.name,
            "model_provider": "sgl",
            "sgl": report.model_dump(mode="json"),
        },
        usage_metadata=UsageMetadata(
            input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out
        ),
    )
