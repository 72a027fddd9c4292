"""What counts against a budget: every kind of tool, retries, interrupts, agents in tools, other processes."""

import json
from typing import Any

import pytest
from budget_agents import (
    ASK,
    DONE,
    Agent,
    agent_of,
    answers,
    look_with,
    small,
    thread,
)
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelRetryMiddleware,
    ToolCallRequest,
    ToolRetryMiddleware,
)
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from scripted_sgl import MakeReport, ScriptedAgentModel, ScriptedSGL, calls

from langchain_sgl.usage.callbacks import get_sgl_usage_callback


@pytest.fixture
def chat(make_report: MakeReport) -> ScriptedSGL:
    return ScriptedSGL(make_report=make_report)


@pytest.fixture
def look(chat: ScriptedSGL) -> BaseTool:
    return look_with(chat)


def test_the_record_is_plain_json(look: BaseTool) -> None:
    agent = agent_of(
        [look], calls("hard", "easy"), DONE, budget=small(run_ms=1e6), checkpointer=InMemorySaver()
    )
    agent.invoke(ASK, thread())
    agent.model_.seen.clear()
    agent.invoke(ASK, thread())
    agent.model_.seen.clear()
    assert "sgl_budget" not in agent.invoke(ASK, thread("another"))
    record = agent.get_state(thread()).values["sgl_budget"]
    assert json.loads(json.dumps(record)) == record
    assert record["run"] == {
        "escalations": 1, "tflops": pytest.approx(0.004), "ms": pytest.approx(30.0), "cost": 0.0,
    }  # fmt: skip
    assert record["thread"]["escalations"] == 2


def test_it_counts_what_the_usage_handler_counts(look: BaseTool) -> None:
    agent = agent_of(
        [look], calls("hard", "easy"), calls("easy"), DONE, budget=small(run_ms=1e6),
        checkpointer=InMemorySaver(),
    )  # fmt: skip
    with get_sgl_usage_callback() as usage:
        agent.invoke(ASK, thread())
    record = agent.get_state(thread()).values["sgl_budget"]["run"]
    assert (usage.totals.calls, usage.totals.escalations) == (3, record["escalations"])
    assert record["tflops"] == pytest.approx(usage.totals.tflops)
    assert record["ms"] == pytest.approx(usage.totals.total_ms)


def test_answers_from_the_cache_are_free(make_report: MakeReport) -> None:
    chat = ScriptedSGL(make_report=make_report, cache=InMemoryCache())
    look = look_with(chat)
    script = [calls("hard 1"), calls("hard 1"), calls("hard 2"), DONE]
    result = agent_of([look], *script, budget=small(run_escalations=2)).invoke(ASK)
    assert chat.escalated == [True, True]
    assert answers(result) == ["large answer"] * 3


def test_agents_in_tools_count_for_both(chat: ScriptedSGL, look: BaseTool) -> None:
    inner_budget = small(run_escalations=2)

    @tool
    def delegate(question: str) -> str:
        """Has another agent do it."""
        inner = agent_of([look], *[calls(question)] * 3, DONE, budget=inner_budget)
        return str(len(inner.invoke(ASK)["messages"]))

    script = [calls("hard", tool="delegate"), calls("hard", tool="delegate"), DONE]
    agent = agent_of([delegate], *script, budget=small(run_escalations=3), checkpointer=InMemorySaver())
    agent.invoke(ASK, thread())
    assert chat.escalated == [True, True, False, True, False, False]
    assert agent.get_state(thread()).values["sgl_budget"]["run"]["escalations"] == 3


def test_tools_without_models_keep_their_messages(look: BaseTool) -> None:
    @tool
    def add(question: str) -> Command[Any]:
        """Writes to the state."""
        message = ToolMessage("added", tool_call_id=f"{question}-0")
        return Command(update={"messages": [message]})

    results: list[Any] = []

    class Spy(AgentMiddleware):
        def wrap_tool_call(self, request: ToolCallRequest, handler: Any) -> Any:
            results.append(handler(request))
            return results[-1]

    @tool
    def plain(question: str) -> str:
        """Says it."""
        return question

    script = [calls("a", tool="plain"), calls("b", tool="add"), DONE]
    budget = small(run_escalations=1)
    model = ScriptedAgentModel(script=list(script))
    result = create_agent(model, [plain, add], middleware=[Spy(), budget]).invoke(ASK)
    assert isinstance(results[0], ToolMessage)
    assert isinstance(results[1], Command)
    assert answers(result) == ["a", "added"]


@pytest.mark.parametrize("as_command", [True, False])
def test_tools_that_write_to_the_state_count(chat: ScriptedSGL, *, as_command: bool) -> None:
    @tool
    def look(question: str) -> Any:
        """Looks, and writes to the state."""
        message = ToolMessage(chat.invoke(question).text, tool_call_id=f"{question}-0")
        command: Command[Any] = Command(update={"messages": [message]})
        return command if as_command else [command]

    agent = agent_of([look], calls("hard"), calls("hard"), DONE, budget=small(run_escalations=1))
    assert answers(agent.invoke(ASK)) == ["large answer", "small answer"]


def test_tools_that_end_the_run_are_recorded(chat: ScriptedSGL) -> None:
    @tool(return_direct=True)
    def look(question: str) -> Any:
        """Looks, and that is it."""
        message = ToolMessage(chat.invoke(question).text, tool_call_id=f"{question}-0")
        return [Command(update={"messages": [message]})]

    agent = agent_of([look], calls("hard"), budget=small(thread_escalations=9), checkpointer=InMemorySaver())
    agent.invoke(ASK, thread())
    assert agent.get_state(thread()).values["sgl_budget"]["thread"]["escalations"] == 1


class Flaky:
    """A tool that asks a model and then fails the first time."""

    def __init__(self, chat: ScriptedSGL) -> None:
        self.failed = False

        @tool
        def look(question: str) -> str:
            """Looks at the picture."""
            answer = chat.invoke(question).text
            if not self.failed:
                self.failed = True
                raise OSError("the disk is full")
            return answer

        self.tool = look


@pytest.mark.parametrize("first", [True, False], ids=["outside", "inside"])
def test_what_a_failed_attempt_used_counts(chat: ScriptedSGL, *, first: bool) -> None:
    retry = ToolRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
    budget = small(run_escalations=2)
    model = ScriptedAgentModel(script=[calls("hard"), calls("hard"), DONE])
    agent: Agent = create_agent(
        model,
        [Flaky(chat).tool],
        middleware=[budget, retry] if first else [retry, budget],
        checkpointer=InMemorySaver(),
    )
    agent.invoke(ASK, thread())
    assert chat.escalated == [True, True, False]
    assert agent.get_state(thread()).values["sgl_budget"]["run"]["escalations"] == 2


def test_what_a_failed_attempt_of_the_agents_model_used_counts(chat: ScriptedSGL) -> None:
    class Strict(AgentMiddleware):
        tries = 0

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            response = handler(request)
            self.tries += 1
            if self.tries == 1:
                raise ValueError("not what was asked for")
            return response

    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
    agent: Agent = create_agent(
        chat, [], middleware=[retry, small(run_escalations=1), Strict()], checkpointer=InMemorySaver()
    )
    agent.invoke({"messages": [("user", "hard")]}, thread())
    assert chat.escalated == [True, False]
    record = agent.get_state(thread()).values["sgl_budget"]["run"]
    assert (record["escalations"], record["tflops"]) == (1, pytest.approx(0.004))


@pytest.mark.parametrize("same_process", [True, False])
def test_a_resumed_run_goes_on_with_what_it_had_left(
    chat: ScriptedSGL, look: BaseTool, *, same_process: bool
) -> None:
    @tool
    def confirm(question: str) -> str:
        """Asks a person."""
        return str(interrupt(question))

    script = [calls("hard 1"), calls("sure?", tool="confirm"), calls("hard 2"), calls("hard 3"), DONE]
    checkpointer = InMemorySaver()

    def agent(*lines: AIMessage) -> Agent:
        return agent_of([look, confirm], *lines, budget=small(run_escalations=2), checkpointer=checkpointer)

    first = agent(*script)
    assert "__interrupt__" in first.invoke(ASK, thread())
    # Another process knows the checkpoints, and nothing else.
    second = first if same_process else agent(*script[2:])
    second.invoke(Command(resume="yes"), thread())
    assert chat.escalated == [True, True, False]


def test_a_tool_that_was_interrupted_beside_others_is_not_forgotten(
    chat: ScriptedSGL, look: BaseTool
) -> None:
    @tool
    def confirm(question: str) -> str:
        """Looks, then asks a person."""
        return chat.invoke(question).text + str(interrupt(question))

    both = calls("hard 1")
    both.tool_calls.append({**calls("hard 2", tool="confirm").tool_calls[0], "id": "x"})
    agent = agent_of(
        [look, confirm], both, calls("hard 3"), DONE,
        budget=small(run_escalations=2), checkpointer=InMemorySaver(),
    )  # fmt: skip
    agent.invoke(ASK, thread())
    assert chat.escalated == [True, True]
    agent.invoke(Command(resume="!"), thread())
    # The interrupted tool starts again, and its first attempt has used the budget.
    assert chat.escalated == [True, True, False, False]
    assert agent.get_state(thread()).values["sgl_budget"]["run"]["escalations"] == 2


def test_a_run_that_broke_off_goes_on(chat: ScriptedSGL) -> None:
    agent = agent_of(
        [Flaky(chat).tool], calls("hard"), calls("hard"), DONE,
        budget=small(thread_escalations=2), checkpointer=InMemorySaver(),
    )  # fmt: skip
    with pytest.raises(OSError, match="the disk is full"):
        agent.invoke(ASK, thread())
    agent.invoke(None, thread())
    assert chat.escalated == [True, True, False]


def test_runs_are_forgotten_when_they_end(look: BaseTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_sgl.budget.middleware._MAX_LEDGERS", 3)
    budget = small(run_escalations=1)
    agent_of([look], calls("hard"), DONE, budget=budget).invoke(ASK)
    assert len(budget._ledgers) == 0
    for _ in range(5):
        with pytest.raises(IndexError):
            agent_of([look], calls("hard"), budget=budget).invoke(ASK)
    assert len(budget._ledgers) == 3


def test_a_thread_that_began_without_the_middleware(chat: ScriptedSGL, look: BaseTool) -> None:
    @tool
    def confirm(question: str) -> str:
        """Asks a person."""
        return str(interrupt(question))

    checkpointer = InMemorySaver()
    before = agent_of([look, confirm], calls("sure?", tool="confirm"), budget=None, checkpointer=checkpointer)
    before.invoke(ASK, thread())
    script = [calls("hard"), calls("hard"), DONE]
    after = agent_of([look, confirm], *script, budget=small(run_escalations=1), checkpointer=checkpointer)
    after.invoke(Command(resume="yes"), thread())
    assert chat.escalated == [True, False]
