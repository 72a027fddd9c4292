"""EscalationBudgetMiddleware: how much of the large model an agent may use.

Needs langchain's agents: ``pip install '.[agents]'`` in a checkout of langchain-sgl.

Around each model call and each tool call, the middleware attaches the run's ``Ledger`` to the context: as a
callback handler, which hears what every ChatSGL call has used, and as an escalation gate, which every ChatSGL
asks. Both reach models however deep they are called. Spending goes into the agent's state together with the
message that it paid for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from typing_extensions import override

from langchain_sgl.budget.gate import limit_escalation
from langchain_sgl.budget.ledger import Account, Budget, Ledger, Spending, update_record
from langchain_sgl.usage.callbacks import attached
from sgl_engine import BudgetSpentError, ConfigError

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
        ResponseT,
        ToolCallRequest,
        hook_config,
    )
    from langgraph.runtime import Runtime
    from langgraph.types import Command, TracePolicy, omit_payload
except ImportError as error:
    raise ImportError(
        "langchain_sgl.budget.middleware needs langchain's agents, which are not installed. "
        "Install them, in a checkout of langchain-sgl: pip install '.[agents]'"
    ) from error

ExitBehavior: TypeAlias = Literal["small", "end", "error"]

_CONSEQUENCES: dict[ExitBehavior, str] = {
    "small": "the small model answers alone, however unsure it is",
    "end": "you are stopped",
    "error": "you are stopped",
}
_RECORD = "sgl_budget"
# Runs that were broken off in the middle of a step leave their ledger behind; the oldest are forgotten.
_MAX_LEDGERS = 1024


class EscalationBudgetState(AgentState[ResponseT]):
    """The agent's state and the budget's record: plain numbers, private to the middleware."""

    sgl_budget: NotRequired[Annotated[dict[str, Any], PrivateStateAttr, update_record]]


class EscalationBudgetMiddleware(AgentMiddleware[EscalationBudgetState[ResponseT], ContextT, ResponseT]):
    """Limits what an agent spends on the large model, per run and per thread.

    Every ChatSGL call inside the agent counts: the agent's own model, models that tools call, and agents in
    tools. Once a limit is reached no call escalates any more. What happens then to the run is
    ``exit_behavior``; the model is told in the system prompt of its next call.

    A run is one ``invoke``, resumed ones included; a thread is what the checkpointer keeps together. Put this
    middleware first, so that what others retry inside it is counted.

    How exact: of calls that run at once, never more escalate than are left. TFLOPs, time and money are known
    when a call ends; so those limits are overshot by what the calls use that are running when they are
    reached, and by small answers afterwards, which are counted but never refused. Answers from LangChain's
    cache cost nothing. Not seen are calls in threads that a tool starts without its context, and what a call
    had used when it failed, apart from its escalation.

    Args:
        run_escalations: Calls of the large model per run; 0 never escalates, None is no limit.
        run_tflops: Of both models per run; 1e12 floating-point operations.
        run_ms: Milliseconds of ChatSGL calls per run; calls that run at once add up.
        run_cost: Money of both models per run, in the currency of ``ChatSGL(prices=...)``; calls of models
            without prices cost nothing.
        thread_escalations: As above, per thread.
        thread_tflops: As above, per thread.
        thread_ms: As above, per thread.
        thread_cost: As above, per thread.
        exit_behavior: When the budget is spent: "small" goes on, and the small model answers alone; "end"
            ends the run before its next model call, with an ``AIMessage`` that says which limit was reached;
            "error" raises there.
        notice_fraction: The model is told what is used of a limit from this fraction of it on, in [0, 1]; 0
            tells it always, 1 only when the limit is reached.

    Raises:
        ConfigError: There is no limit, or an argument is out of its range.
        BudgetSpentError: From the agent, with ``exit_behavior="error"``.

    Example:
        ```python
        agent = create_agent(
            "some-tool-calling-model",
            tools=SGLToolkit(model=ChatSGL()).get_tools(),
            middleware=[EscalationBudgetMiddleware(run_escalations=3, thread_tflops=50)],
        )
        ```
    """

    # The state holds the conversation, and so its pictures: hooks' spans in traces go without.
    trace_policy = TracePolicy(process_inputs=omit_payload)
    state_schema = EscalationBudgetState  # type: ignore[assignment] # generic in what the base fixes

    def __init__(
        self,
        *,
        run_escalations: int | None = None,
        run_tflops: float | None = None,
        run_ms: float | None = None,
        run_cost: float | None = None,
        thread_escalations: int | None = None,
        thread_tflops: float | None = None,
        thread_ms: float | None = None,
        thread_cost: float | None = None,
        exit_behavior: ExitBehavior = "small",
        notice_fraction: float = 0.8,
    ) -> None:
        super().__init__()
        self.tools = []
        self.budget = Budget(
            {
                ("run", "escalations"): run_escalations,
                ("run", "tflops"): run_tflops,
                ("run", "ms"): run_ms,
                ("run", "cost"): run_cost,
                ("thread", "escalations"): thread_escalations,
                ("thread", "tflops"): thread_tflops,
                ("thread", "ms"): thread_ms,
                ("thread", "cost"): thread_cost,
            }
        )
        if exit_behavior not in _CONSEQUENCES:
            raise ConfigError(
                f"exit_behavior={exit_behavior!r} does not exist.", remedy='Use "small", "end" or "error".'
            )
        if not 0 <= notice_fraction <= 1:
            raise ConfigError(
                f"notice_fraction={notice_fraction!r} is not in [0, 1].", remedy="Use 0.8, for example."
            )
        self.exit_behavior: ExitBehavior = exit_behavior
        self.notice_fraction = notice_fraction
        self._ledgers: OrderedDict[str, Ledger] = OrderedDict()
        self._lock = threading.Lock()

    @override
    def before_agent(
        self, state: EscalationBudgetState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """Begins a run, with an id of its own in the state; a resumed run keeps its own."""
        return {_RECORD: {"begin": uuid4().hex}}

    @override
    async def abefore_agent(
        self, state: EscalationBudgetState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any]:
        """Calls ``before_agent``, which does not block."""
        return self.before_agent(state, runtime)

    @hook_config(can_jump_to=["end"])
    @override
    def before_model(
        self, state: EscalationBudgetState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """Ends the run when the budget is spent and ``exit_behavior`` says so.

        Raises:
            BudgetSpentError: The budget is spent, and ``exit_behavior`` is "error".
        """
        ledger = self._ledger(state)
        spent = self.budget.describe_spent(ledger.account())
        if spent and self.exit_behavior == "error":
            raise BudgetSpentError(
                f"The budget for the large vision model is spent: {spent}.",
                remedy='Raise the limit, or use exit_behavior="small" to go on with the small model alone.',
            )
        update = _record(ledger.take_unrecorded())
        if spent and self.exit_behavior == "end":
            message = AIMessage(f"Stopped: the budget for the large vision model is spent: {spent}.")
            update |= {"jump_to": "end", "messages": [message]}
        return update or None

    @hook_config(can_jump_to=["end"])
    @override
    async def abefore_model(
        self, state: EscalationBudgetState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """Calls ``before_model``, which does not block."""
        return self.before_model(state, runtime)

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Tells the model what is left, limits the call and records what it used."""
        ledger = self._ledger(request.state)
        with _watched(ledger):
            response = handler(self._told(request, ledger))
        return _recorded_response(response, ledger)

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
        """Does what ``wrap_model_call`` does around an asynchronous call."""
        ledger = self._ledger(request.state)
        with _watched(ledger):
            response = await handler(self._told(request, ledger))
        return _recorded_response(response, ledger)

    @override
    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Limits the models that the tool calls, and records what they used."""
        ledger = self._ledger(request.state)
        with _watched(ledger):
            result = handler(request)
        return _recorded_result(result, ledger)

    @override
    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Does what ``wrap_tool_call`` does around an asynchronous call."""
        ledger = self._ledger(request.state)
        with _watched(ledger):
            result = await handler(request)
        return _recorded_result(result, ledger)

    @override
    def after_agent(
        self, state: EscalationBudgetState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """Records what no message could carry, and forgets the run."""
        ledger = self._ledger(state)
        with self._lock:
            self._ledgers.pop(_run_id(state), None)
        return _record(ledger.take_unrecorded()) or None

    @override
    async def aafter_agent(
        self, state: EscalationBudgetState[ResponseT], runtime: Runtime[ContextT]
    ) -> dict[str, Any] | None:
        """Calls ``after_agent``, which does not block."""
        return self.after_agent(state, runtime)

    def _ledger(self, state: Mapping[str, Any]) -> Ledger:
        """Finds the run's ledger, or begins one where this process has not seen the run; reads the record."""
        run_id = _run_id(state)
        with self._lock:
            ledger = self._ledgers.pop(run_id, None) or Ledger(self.budget)
            if run_id:  # put at the end, so that the first is the one that was used longest ago
                self._ledgers[run_id] = ledger
            while len(self._ledgers) > _MAX_LEDGERS:
                self._ledgers.popitem(last=False)
        ledger.sync(Account.recorded(state.get(_RECORD, {})))
        return ledger

    def _told(self, request: ModelRequest[ContextT], ledger: Ledger) -> ModelRequest[ContextT]:
        """Adds the budget's notice to the end of the system prompt, where there is something to notice."""
        then = _CONSEQUENCES[self.exit_behavior]
        notice = self.budget.notice(ledger.account(), self.notice_fraction, then=then)
        if notice is None:
            return request
        prompt = request.system_message
        if prompt is None:
            return request.override(system_message=SystemMessage(notice))
        content: Any = (
            f"{prompt.content}\n\n{notice}"
            if isinstance(prompt.content, str)
            else [*prompt.content, {"type": "text", "text": notice}]
        )
        return request.override(system_message=prompt.model_copy(update={"content": content}))


@contextmanager
def _watched(ledger: Ledger) -> Iterator[None]:
    """Lets the ledger hear of all calls inside the context, and refuse their escalations."""
    with attached(ledger), limit_escalation(ledger):
        yield


def _run_id(state: Mapping[str, Any]) -> str:
    """Reads the run's id from the state; empty where the run began without this middleware."""
    return cast("str", state.get(_RECORD, {}).get("run_id", ""))


def _record(spending: Spending) -> dict[str, Any]:
    """Writes the state update; empty when there is nothing to record."""
    return {_RECORD: {"spent": asdict(spending)}} if spending else {}


def _recorded_response(
    response: ModelResponse[ResponseT], ledger: Ledger
) -> ModelResponse[ResponseT] | ExtendedModelResponse[ResponseT]:
    record = _record(ledger.take_unrecorded())
    return ExtendedModelResponse(response, Command(update=record)) if record else response


def _recorded_result(result: ToolMessage | Command[Any], ledger: Ledger) -> ToolMessage | Command[Any]:
    """Adds the record to the tool's result, so that the state gets both at once.

    A result that cannot carry a record is returned as it is; the next hook records then.
    """
    if isinstance(result, list):  # several commands and messages, which the types do not mention
        return result
    if isinstance(result, ToolMessage):
        record = _record(ledger.take_unrecorded())
        return Command(update={"messages": [result], **record}) if record else result
    if result.graph is None and isinstance(result.update, dict):  # a command to this very graph
        return replace(result, update={**result.update, **_record(ledger.take_unrecorded())})
    return result
