"""Agents with an escalation budget, and the ways to run them."""

import json
from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from scripted_sgl import ScriptedAgentModel

from langchain_sgl.budget.middleware import EscalationBudgetMiddleware

Agent = Any
Way = Callable[..., Any]
DONE = AIMessage("done")
ASK = {"messages": [("user", "go")]}


def look_with(chat: BaseChatModel) -> BaseTool:
    """A tool that asks ``chat`` and hands nothing of its report on."""

    @tool
    def look(question: str) -> str:
        """Looks at the picture."""
        return chat.invoke(question).text

    return look


def thread(name: str = "1") -> dict[str, Any]:
    return {"configurable": {"thread_id": name}}


def agent_of(
    tools: list[BaseTool], *script: AIMessage, budget: EscalationBudgetMiddleware | None, **options: Any
) -> Agent:
    """An agent of another provider's model, and that model as ``agent.model_``."""
    model = ScriptedAgentModel(script=list(script))
    middleware = options.pop("middleware", [])
    agent: Agent = create_agent(
        model, tools, middleware=[*([budget] if budget else []), *middleware], **options
    )
    object.__setattr__(agent, "model_", model)
    return agent


def answers(result: dict[str, Any]) -> list[str]:
    return [message.text for message in result["messages"] if isinstance(message, ToolMessage)]


def small(**limits: Any) -> EscalationBudgetMiddleware:
    return EscalationBudgetMiddleware(**limits)


async def run_sync(agent: Agent, given: Any, config: Any = None) -> dict[str, Any]:
    result: dict[str, Any] = agent.invoke(given, config)
    return result


async def run_async(agent: Agent, given: Any, config: Any = None) -> dict[str, Any]:
    result: dict[str, Any] = await agent.ainvoke(given, config)
    return result


async def run_stream(agent: Agent, given: Any, config: Any = None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for mode, part in agent.stream(given, config, stream_mode=["values", "updates", "messages"]):
        if mode == "values":
            result = part
        elif mode == "updates":
            json.dumps(part, default=lambda message: message.model_dump(mode="json"))
    return result


async def run_astream(agent: Agent, given: Any, config: Any = None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    async for mode, part in agent.astream(given, config, stream_mode=["values", "messages"]):
        result = part if mode == "values" else result
    return result


WAYS = [run_sync, run_async, run_stream, run_astream]
Way = Callable[..., Any]
