"""Custom events while a model runs: "sgl_exit" and "sgl_escalated", for user interfaces.

They reach ``on_custom_event`` of callback handlers, and ``astream_events``, as events of the model's own run;
inside of a LangGraph graph also ``stream_mode="custom"``, as ``{"type": "sgl_exit", "score": ..., ...}``.
LangChain hands ``_stream`` no run: ``stream`` names the one that it is about to begin (``StreamRun``), and
where ``invoke`` streams inside, its run is a context variable (``within``). Outside of any run nobody can
listen.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.callbacks.base import BaseCallbackHandler
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from sgl_engine import ExitDecision

EXITED, ESCALATED = "sgl_exit", "sgl_escalated"
_HANDLER = ("on_custom_event", "ignore_custom_event")


@dataclass(frozen=True)
class StreamRun:
    """The run of a stream that has not begun: who listens to it, and what it is called.

    Has what the rest of this module reads from LangChain's own run managers.
    """

    handlers: Sequence[BaseCallbackHandler]
    run_id: uuid.UUID
    tags: Sequence[str]
    metadata: dict[str, Any]

    @classmethod
    def prepare(cls, model: BaseChatModel, config: RunnableConfig | None) -> tuple[StreamRun, RunnableConfig]:
        """Chooses the id of the run that ``BaseChatModel.stream`` is about to begin, and who listens to it.

        LangChain does not tell ``_stream`` which run it belongs to, but takes the run's id and its handlers
        from the configuration.

        Returns:
            The run, and the configuration to pass on.
        """
        config = ensure_config(config)
        run_id = config.get("run_id") or uuid.uuid4()
        config["run_id"] = run_id
        # Handed on, so that LangChain makes no second tracer, which would know nothing of this one's runs.
        config["callbacks"] = inherited = get_callback_manager_for_config(config)
        manager = CallbackManager.configure(
            inherited,
            model.callbacks,
            model.verbose,
            local_tags=model.tags,
            local_metadata=model.metadata,
        )
        return cls(manager.handlers, run_id, manager.tags, manager.metadata), config


AnyRun = StreamRun | CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun
_run: ContextVar[AnyRun | None] = ContextVar("sgl_run", default=None)


@contextmanager
def within(run: AnyRun | None) -> Iterator[None]:
    """Makes ``current_run`` return this one: LangChain's ``invoke`` may stream, and then does not tell."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def current_run() -> AnyRun | None:
    """Returns the run of the call that is being answered, where LangChain has told it."""
    return _run.get()


def announce(decision: ExitDecision, run: AnyRun | None) -> None:
    """Sends who listens an event: the small answer is kept, or the large model is being asked."""
    name, data = _event(decision)
    _write_to_graph(name, data, run)
    if run is None:
        with suppress(RuntimeError):  # outside of any run, where nobody can listen
            dispatch_custom_event(name, data)
        return
    handle_event(list(run.handlers), *_HANDLER, name, data, **_about(run))


async def aannounce(decision: ExitDecision, run: AnyRun | None) -> None:
    """Does what ``announce`` does, without blocking the event loop."""
    name, data = _event(decision)
    _write_to_graph(name, data, run)
    if run is None:
        with suppress(RuntimeError):  # outside of any run, where nobody can listen
            await adispatch_custom_event(name, data)
        return
    await ahandle_event(list(run.handlers), *_HANDLER, name, data, **_about(run))


def _write_to_graph(name: str, data: dict[str, Any], run: AnyRun | None) -> None:
    """Writes the event to the custom stream of the LangGraph graph around the call, if there is one."""
    config = sys.modules.get("langgraph.config")  # no graph can run before it is imported
    if config is None:
        return
    # RuntimeError: outside of any runnable; KeyError: inside of one, and of no graph.
    with suppress(RuntimeError, KeyError):
        config.get_stream_writer()({"type": name, **data, "run_id": None if run is None else str(run.run_id)})


def _event(decision: ExitDecision) -> tuple[str, dict[str, Any]]:
    data = {
        "score": decision.score,
        "threshold": decision.threshold,
        "forced": decision.policy != "threshold",
    }
    return EXITED if decision.exit else ESCALATED, data


def _about(run: AnyRun) -> dict[str, Any]:
    return {"run_id": run.run_id, "tags": list(run.tags), "metadata": run.metadata}
