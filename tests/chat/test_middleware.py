"""EscalationBudgetMiddleware in real agents: what is refused, how a run goes on, what the model is told."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from budget_agents import (
    ASK,
    DONE,
    WAYS,
    Way,
    agent_of,
    answers,
    look_with,
    run_astream,
    run_async,
    run_sync,
    small,
    thread,
)
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from scripted_sgl import MakeReport, Meeting, ScriptedAgentModel, ScriptedSGL, StreamingSGL, calls

from langchain_sgl.budget.middleware import EscalationBudgetMiddleware
from sgl_engine.errors import BudgetSpentError, ConfigError


@pytest.fixture
def chat(make_report: MakeReport) -> ScriptedSGL:
    return ScriptedSGL(make_report=make_report)


@pytest.fixture
def look(chat: ScriptedSGL) -> BaseTool:
    return look_with(chat)


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize(("budget", "escalations"), [(None, 4), (small(run_escalations=2), 2)])
async def test_tools_in_turn_keep_to_the_budget(
    look: BaseTool, chat: ScriptedSGL, run: Way, budget: EscalationBudgetMiddleware | None, escalations: int
) -> None:
    script = [calls("hard 1"), calls("easy"), calls("hard 2"), calls("hard 3"), calls("hard 4"), DONE]
    result = await run(agent_of([look], *script, budget=budget), ASK)
    assert chat.escalated == [True, False, True, *[escalations == 4] * 2]
    assert answers(result)[-1] == ("large answer" if escalations == 4 else "small answer")


@pytest.mark.parametrize("run", WAYS)
@pytest.mark.parametrize(("budget", "escalations"), [(None, 4), (small(run_escalations=3), 3)])
async def test_tools_at_once_keep_to_the_budget_exactly(
    make_report: MakeReport, run: Way, budget: EscalationBudgetMiddleware | None, escalations: int
) -> None:
    # Nobody decides before all small models have answered.
    chat = ScriptedSGL(make_report=make_report, before_decision=Meeting(5).wait)
    look = look_with(chat)
    script = [calls("hard", "hard", "easy", "hard", "hard"), DONE]
    await run(agent_of([look], *script, budget=budget), ASK)
    assert sum(chat.escalated) == escalations
    assert len(chat.escalated) == 5


async def test_async_tools_at_once_keep_to_the_budget(chat: ScriptedSGL) -> None:
    @tool
    async def look(question: str) -> str:
        """Looks at the picture."""
        return (await chat.ainvoke(question)).text

    agent = agent_of([look], calls(*["hard"] * 6), calls("hard"), DONE, budget=small(run_escalations=4))
    await agent.ainvoke(ASK)
    assert (sum(chat.escalated), len(chat.escalated)) == (4, 7)


@pytest.mark.parametrize("run", [run_sync, run_async])
async def test_the_agents_own_model_counts_and_obeys(chat: ScriptedSGL, run: Way) -> None:
    agent = create_agent(chat, [], middleware=[small(thread_escalations=2)], checkpointer=InMemorySaver())
    for _ in range(3):
        result = await run(agent, {"messages": [("user", "hard")]}, thread())
    assert chat.escalated == [True, True, False]
    assert result["messages"][-1].text == "small answer"
    assert not result["messages"][-1].response_metadata["sgl"]["escalated"]


async def test_a_streaming_model_of_the_agent_counts_once(make_report: MakeReport) -> None:
    chat = StreamingSGL(make_report=make_report)
    agent = create_agent(chat, [], middleware=[small(thread_escalations=2)], checkpointer=InMemorySaver())
    for _ in range(3):
        await run_astream(agent, {"messages": [("user", "hard")]}, thread())
    assert chat.escalated == [True, True, False]


def test_runs_begin_anew_and_threads_do_not(look: BaseTool, chat: ScriptedSGL) -> None:
    checkpointer = InMemorySaver()

    def escalations(config: dict[str, Any], **limits: int) -> int:
        agent = agent_of(
            [look], calls("hard"), calls("hard"), DONE, budget=small(**limits), checkpointer=checkpointer
        )
        del chat.escalated[:]
        agent.invoke(ASK, config)
        return sum(chat.escalated)

    assert escalations(thread("runs"), run_escalations=1) == 1
    assert escalations(thread("runs"), run_escalations=1) == 1
    assert escalations(thread("thread"), thread_escalations=3) == 2
    assert escalations(thread("thread"), thread_escalations=3) == 1
    assert escalations(thread("thread"), thread_escalations=3) == 0
    assert escalations(thread("another"), thread_escalations=3) == 2


@pytest.mark.parametrize(
    ("limits", "escalations"),
    [
        ({"run_tflops": 0.005}, 2),  # 0.003 per escalation
        ({"run_tflops": 0.006}, 2),
        ({"run_tflops": 0.0061}, 3),
        ({"run_ms": 15.0}, 1),
        ({"run_ms": 16.0}, 2),
        ({"run_escalations": 0}, 0),
        ({"run_escalations": 3, "run_ms": 15.0}, 1),
    ],
)
def test_every_unit_is_counted(
    look: BaseTool, chat: ScriptedSGL, limits: dict[str, Any], escalations: int
) -> None:
    agent_of([look], *[calls("hard")] * 4, DONE, budget=small(**limits)).invoke(ASK)
    assert sum(chat.escalated) == escalations


def notices(model: ScriptedAgentModel) -> list[str]:
    """The system prompt of each call, as text."""
    return [messages[0].text if messages[0].type == "system" else "" for messages in model.seen]


@pytest.mark.parametrize(
    "prompt", [None, "Be brief.", SystemMessage([{"type": "text", "text": "Be brief."}])]
)
def test_the_model_is_told(look: BaseTool, prompt: Any) -> None:
    budget = small(run_escalations=3, notice_fraction=0.6)
    script = [calls("hard"), calls("hard"), calls("hard"), DONE]
    agent = agent_of([look], *script, budget=budget, system_prompt=prompt)
    agent.invoke(ASK)
    told = notices(agent.model_)
    own = "" if prompt is None else "Be brief."
    assert told[0] == told[1] == own
    assert told[2].startswith(own)
    assert "escalations in this run: 2 of 3" in told[2]
    assert "spent" not in told[2].split("once the budget")[0]
    assert "spent: escalations in this run: 3 of 3" in told[3]
    assert all(len([m for m in messages if m.type == "system"]) <= 1 for messages in agent.model_.seen)


@pytest.mark.parametrize(
    ("exit_behavior", "then"), [("small", "the small model answers alone"), ("end", "you are stopped")]
)
def test_the_model_is_told_what_comes_next(look: BaseTool, exit_behavior: Any, then: str) -> None:
    budget = small(run_escalations=3, notice_fraction=0, exit_behavior=exit_behavior)
    agent = agent_of([look], DONE, budget=budget)
    agent.invoke(ASK)
    assert f"once the budget is spent, {then}" in notices(agent.model_)[0]


def test_other_providers_models_get_no_options_of_ours(look: BaseTool) -> None:
    agent = agent_of([look], calls("hard"), DONE, budget=small(run_escalations=0))
    agent.invoke(ASK)
    assert agent.model_.options == [{"tool_choice": None}, {"tool_choice": None}]


@pytest.mark.parametrize("run", WAYS)
async def test_a_run_ends_when_its_budget_is_spent(look: BaseTool, chat: ScriptedSGL, run: Way) -> None:
    budget = EscalationBudgetMiddleware(run_escalations=1, exit_behavior="end")
    agent = agent_of([look], calls("hard", "hard"), calls("hard"), DONE, budget=budget)
    result = await run(agent, ASK)
    assert sorted(chat.escalated) == [False, True]
    assert len(agent.model_.seen) == 1
    last = result["messages"][-1]
    assert isinstance(last, AIMessage)
    assert last.text == (
        "Stopped: the budget for the large vision model is spent: escalations in this run: 1 of 1."
    )


@pytest.mark.parametrize("run", WAYS)
async def test_a_run_raises_when_its_budget_is_spent(look: BaseTool, run: Way) -> None:
    budget = EscalationBudgetMiddleware(run_escalations=1, exit_behavior="error")
    agent = agent_of([look], calls("hard"), DONE, budget=budget)
    with pytest.raises(BudgetSpentError, match="escalations in this run: 1 of 1. Raise the limit"):
        await run(agent, ASK)


def test_a_spent_thread_stays_spent_and_says_so(look: BaseTool) -> None:
    budget = EscalationBudgetMiddleware(thread_escalations=1, exit_behavior="end")
    agent = agent_of([look], calls("hard"), DONE, budget=budget, checkpointer=InMemorySaver())
    agent.invoke(ASK, thread())
    result = agent.invoke(ASK, thread())
    assert len(agent.model_.seen) == 1
    assert "in this conversation: 1 of 1" in result["messages"][-1].text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "limits nothing. Set at least one of run_escalations, run_tflops, run_ms, run_cost, thread_"),
        ({"run_escalations": -1}, "run_escalations=-1 is not a budget"),
        ({"run_ms": 1, "exit_behavior": "stop"}, "exit_behavior='stop' does not exist. Use"),
        ({"run_ms": 1, "notice_fraction": 80}, "notice_fraction=80 is not in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EscalationBudgetMiddleware(**arguments)


def test_without_langchain_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['langchain.agents'] = sys.modules['langchain'] = None\n"
        "import langchain_sgl.usage.callbacks\n"  # needs no agents
        "import langchain_sgl.budget.middleware"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 1
    assert "pip install '.[agents]'" in done.stderr.splitlines()[-1]


def test_human_messages_are_left_alone(look: BaseTool) -> None:
    agent = agent_of([look], calls("hard"), DONE, budget=small(run_escalations=1))
    result = agent.invoke(ASK)
    assert [m.text for m in result["messages"] if isinstance(m, HumanMessage)] == ["go"]
    assert not any(isinstance(m, SystemMessage) for m in result["messages"])
