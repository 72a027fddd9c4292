"""Child runs in traces: one for each model that was asked, with its name, its tokens and what it cost.

A trace's own run of a call has the tokens of the model that answered. Where money is counted, that is not
enough: the small model's tokens have another price. So tracers, and nobody else, are told of a run per model.
They are told when the answer is there; how long each model took is in the run's metadata. What was asked is
in them without its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks.manager import handle_event
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.base import BaseTracer

from langchain_sgl.chat.hosted import with_pictures
from sgl_engine import Response, RunReport

ROLE_KEY = "sgl_role"
"""Where a child run's metadata says which of the models it is of: "small" or "large"."""


class Run(Protocol):
    """The call's own run."""

    @property
    def handlers(self) -> Sequence[BaseCallbackHandler]:
        """Who listens."""

    @property
    def run_id(self) -> UUID:
        """What it is called."""


def tell_tracers(
    run: Run | None, messages: Sequence[BaseMessage], response: Response, provider: str = "sgl"
) -> None:
    """Tells the tracers of a call which models it has asked.

    Args:
        run: The call's run; None outside of any.
        messages: What was asked.
        response: The answer, with its report.
        provider: The large model's, as LangSmith calls it.
    """
    tracers = [] if run is None else [each for each in run.handlers if isinstance(each, BaseTracer)]
    report = response.report
    if run is None or not tracers or not (report.large_hosted or report.cost):
        return
    asked = _without_pictures(messages)
    small = response.text if report.route == "small" else report.small_answer or ""
    for tracer in tracers:
        _tell(tracer, run.run_id, asked, small, _metadata(report, "small", "sgl"), _usage(report, "small"))
        if report.escalated:
            said = response.text if report.route == "large" else ""
            metadata = _metadata(report, "large", provider)
            _tell(tracer, run.run_id, asked, said, metadata, _usage(report, "large"), report.large_error)


def _tell(
    tracer: BaseTracer,
    parent: UUID,
    asked: list[BaseMessage],
    said: str,
    metadata: dict[str, Any],
    usage: UsageMetadata | None,
    error: str | None = None,
) -> None:
    run_id, name = uuid4(), f"{metadata[ROLE_KEY]} model"
    about: dict[str, Any] = {"run_id": run_id, "parent_run_id": parent}
    # LangChain's own way to a handler: what one raises is logged, and does not end the call.
    start = {"name": name, "metadata": metadata, **about}
    handle_event([tracer], "on_chat_model_start", "ignore_chat_model", {"name": name}, [asked], **start)
    run = tracer.run_map.get(str(run_id))
    if run is not None:
        run.start_time -= timedelta(milliseconds=metadata["sgl_ms"])
    if error is not None:
        handle_event([tracer], "on_llm_error", "ignore_llm", RuntimeError(error), **about)
        return
    message = AIMessage(said)
    message.usage_metadata = usage  # assigned, as validation would drop the costs
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    handle_event([tracer], "on_llm_end", "ignore_llm", result, **about)


def _without_pictures(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages with a word in each picture's place."""

    class _Words(dict[int, list[dict[str, Any]]]):
        def get(self, key: int, default: Any = None) -> Any:
            del default
            return [{"type": "text", "text": f"[picture {key + 1}]"}]

    return with_pictures(messages, _Words())


def _metadata(report: RunReport, role: str, provider: str) -> dict[str, Any]:
    model = report.small_model if role == "small" else report.large_model
    stages = {name: ms for name, ms in report.stage_ms.items() if name.endswith(f"_{role}")}
    return {
        ROLE_KEY: role,
        "ls_provider": provider,
        "ls_model_name": model.name,
        "ls_model_type": "chat",
        "sgl_ms": sum(stages.values()),
    }


def _usage(report: RunReport, role: str) -> UsageMetadata | None:
    """Tokens, and what they cost, in the keys that LangSmith reads."""
    given, written = (getattr(report, f"{role}_{way}_tokens") for way in ("input", "output"))
    if given is None or written is None:
        return None
    usage: Any = {"input_tokens": given, "output_tokens": written, "total_tokens": given + written}
    if report.cost is not None:
        usage["total_cost"] = getattr(report.cost, role)
    found: UsageMetadata = usage
    return found
