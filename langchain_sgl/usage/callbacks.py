"""What SGL models cost over a run, counted by a callback handler.

Every call of every ``ChatSGL`` in the run is counted once, wherever it happens: in chains, batches, threads,
tasks, tools and agents inside tools; streamed or not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook
from typing_extensions import override

from langchain_sgl.usage.usage import SGLUsage, usage_table
from sgl_engine import RequestCancelledError

# What `BaseChatModel` starts the id of a message with that it has just computed, before the run's own id.
_RUN_PREFIX = "lc_run-"
_CANCELLATIONS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, RequestCancelledError)

HandlerT = TypeVar("HandlerT", bound=BaseCallbackHandler)


class ReportHandler(BaseCallbackHandler):
    """Turns LangChain's callbacks into one of four per call: computed, cached, failed, other.

    A base for handlers that count, which override these four; here they do nothing. Several threads may call
    them at once.
    """

    # A few additions: cheaper than the hop to another thread that async runs would make for each event.
    run_inline = True

    def __init__(self) -> None:
        super().__init__()
        self._running: set[UUID] = set()

    def computed(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        """Is called when an SGL model has answered.

        Args:
            run_id: The call's run.
            report: The ``RunReport`` as plain JSON.
        """

    def cached(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        """Is called when LangChain's cache has answered; ``report`` is of the call that once computed it."""

    def failed(self, run_id: UUID, error: BaseException) -> None:
        """Is called when a call of an SGL model has raised, was cancelled, or its stream was left."""

    def other(self, run_id: UUID) -> None:
        """Is called when a model that is not an SGL model has answered."""

    @override
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remembers which runs are an SGL model's: an error does not say whose it is."""
        if (metadata or {}).get("ls_provider") == "sgl":
            self._running.add(run_id)

    @override
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Reads the report of the finished message; a stream ends here once, with its chunks merged."""
        self._running.discard(run_id)
        message = _only_message(response)
        report = message.response_metadata.get("sgl") if message else None
        if message is None or not isinstance(report, Mapping):
            self.other(run_id)
        elif _is_own(message, run_id):
            self.computed(run_id, report)
        elif _is_cached(message):
            self.cached(run_id, report)
        # Otherwise a model passes on what another call has computed, which is counted there.

    @override
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Passes errors of SGL models on; those of other models are not counted."""
        if run_id in self._running:
            self._running.discard(run_id)
            self.failed(run_id, error)


class SGLUsageCallbackHandler(ReportHandler):
    """Adds up what the SGL models of a run have used; ``print(handler)`` shows it as a table.

    Thread-safe. Messages without ``response_metadata["sgl"]``, those of other models, count in
    ``totals.other_calls`` alone. Answers from LangChain's cache count in ``totals.cached`` alone.

    Example:
        ```python
        usage = SGLUsageCallbackHandler()
        chat.batch(questions, config={"callbacks": [usage]})
        print(usage)
        usage.totals.escalation_rate
        ```
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._pairs: dict[tuple[str, str], SGLUsage] = {}
        self._apart = SGLUsage()

    @property
    def totals(self) -> SGLUsage:
        """Everything so far; a snapshot that later calls do not change."""
        with self._lock:
            return sum(self._pairs.values(), self._apart)

    @property
    def by_pair(self) -> dict[tuple[str, str], SGLUsage]:
        """Computed and cached calls so far by (small model, large model); failed ones name no models."""
        with self._lock:
            return dict(self._pairs)

    @property
    def usage_metadata(self) -> dict[str, UsageMetadata]:
        """Tokens so far by model, small ones and large ones apart.

        In the form of LangChain's ``UsageMetadataCallbackHandler``, which reads messages, and so knows only
        the model that answered.
        """
        counts: dict[str, UsageMetadata] = {}
        for (small, large), usage in self.by_pair.items():
            for name, given, written in (
                (small, usage.small_input_tokens, usage.small_output_tokens),
                (large, usage.large_input_tokens, usage.large_output_tokens),
            ):
                if given or written:
                    new = UsageMetadata(
                        input_tokens=given, output_tokens=written, total_tokens=given + written
                    )
                    counts[name] = add_usage(counts.get(name), new)
        return counts

    def __repr__(self) -> str:
        totals = self.totals
        return (
            f"{type(self).__name__}(calls={totals.calls}, escalations={totals.escalations}, "
            f"saved={totals.saved_fraction:.0%})"
        )

    def __str__(self) -> str:
        pairs = {
            f"{_short(small)} + {_short(large)}": usage for (small, large), usage in self.by_pair.items()
        }
        if len(pairs) == 1:
            return usage_table(dict.fromkeys(pairs, self.totals))
        return usage_table({**pairs, "all": self.totals})

    @override
    def computed(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        """Adds the call to its pair of models."""
        self._add(report, SGLUsage.from_report(report))

    @override
    def cached(self, run_id: UUID, report: Mapping[str, Any]) -> None:
        """Counts the answer, and nothing that it once cost."""
        self._add(report, SGLUsage(cached=1))

    @override
    def failed(self, run_id: UUID, error: BaseException) -> None:
        """Counts the call; what it had computed is not known."""
        lost = SGLUsage(cancelled=1) if isinstance(error, _CANCELLATIONS) else SGLUsage(errors=1)
        with self._lock:
            self._apart += lost

    @override
    def other(self, run_id: UUID) -> None:
        """Counts the call."""
        with self._lock:
            self._apart += SGLUsage(other_calls=1)

    def _add(self, report: Mapping[str, Any], usage: SGLUsage) -> None:
        pair = report["small_model"]["name"], report["large_model"]["name"]
        with self._lock:
            self._pairs[pair] = self._pairs.get(pair, SGLUsage()) + usage


@contextmanager
def get_sgl_usage_callback() -> Generator[SGLUsageCallbackHandler, None, None]:
    """Counts every SGL call that starts inside the block, without passing callbacks along.

    Blocks may be nested; each counts what happens inside it. Threads and tasks are counted when they carry
    the block's context, as those of LangChain, LangGraph and asyncio do.

    Yields:
        The handler; it keeps its totals after the block.

    Example:
        ```python
        with get_sgl_usage_callback() as usage:
            agent.invoke({"messages": [("user", "Which receipt is the cheapest?")]})
        print(usage)
        ```
    """
    with attached(SGLUsageCallbackHandler()) as handler:
        yield handler


# Context variables that LangChain asks for handlers, one per depth of nesting. They are used again and again:
# a registered hook cannot be taken back, so a new one per block would make every later call slower.
_context_slots: list[ContextVar[BaseCallbackHandler | None]] = []
_context_slots_lock = threading.Lock()


@contextmanager
def attached(handler: HandlerT) -> Generator[HandlerT, None, None]:
    """Attaches a callback handler to all runs that start inside the block, and to their children."""
    slot = _free_slot()
    token = slot.set(handler)
    try:
        yield handler
    finally:
        slot.reset(token)


def _free_slot() -> ContextVar[BaseCallbackHandler | None]:
    """Finds a context variable that is not in use around this code, or registers another."""
    with _context_slots_lock:
        for slot in _context_slots:
            if slot.get() is None:
                return slot
        slot = ContextVar(f"sgl_callback_{len(_context_slots)}", default=None)
        register_configure_hook(slot, inheritable=True)
        _context_slots.append(slot)
        return slot


def _only_message(response: LLMResult) -> AIMessage | None:
    """Takes the first message out of a result; None where it is no chat model's."""
    generation = response.generations[0][0] if response.generations and response.generations[0] else None
    message = generation.message if isinstance(generation, ChatGeneration) else None
    return message if isinstance(message, AIMessage) else None


def _is_own(message: AIMessage, run_id: UUID) -> bool:
    """Tells whether this very run has computed the message.

    LangChain gives a new message its run's id, and a cached one keeps the id of the run that computed it. The
    zero cost that it marks cached messages with says the same, but later: a hit in another thread may mark a
    message before the run that computed it has reported it.
    """
    if message.id and message.id.startswith(_RUN_PREFIX):
        return str(run_id) in message.id
    return not _is_cached(message)


def _is_cached(message: AIMessage) -> bool:
    usage: Mapping[str, Any] = message.usage_metadata or {}
    return usage.get("total_cost") == 0


def _short(name: str) -> str:
    """Cuts the folder or organisation off a model's name."""
    return name.rstrip("/").rpartition("/")[2] or name
