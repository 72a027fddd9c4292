"""The report reaches whoever needs it through LangGraph and `create_agent`, as it reaches a plain caller."""

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from langchain_sgl import ChatSGL, image_block
from sgl_engine.chat.tool_calls import render_call
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.request import Request, ToolCall
from sgl_engine.testing import FakeEngine

UNSURE = [HumanMessage([image_block(PICTURES / "scene.png"), "How many purple shapes are there?"])]


@pytest.fixture(scope="module")
def chat() -> ChatSGL:
    return ChatSGL()


def report(message: BaseMessage) -> dict[str, Any]:
    return {key: value for key, value in message.response_metadata["sgl"].items() if key != "stage_ms"}


def graph(chat: ChatSGL) -> Any:
    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await chat.ainvoke(state["messages"])]}

    def answer_in_sync(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chat.invoke(state["messages"])]}

    from langchain_core.runnables import RunnableLambda

    builder = StateGraph(MessagesState)
    builder.add_node("answer", RunnableLambda(answer_in_sync, afunc=answer))
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile()


async def test_langgraph_message_streaming(chat: ChatSGL) -> None:
    chat.invoke(UNSURE)  # the picture is known from here on, which reports say
    expected = chat.invoke(UNSURE)
    for streamed in (
        list(graph(chat).stream({"messages": UNSURE}, stream_mode="messages")),
        [item async for item in graph(chat).astream({"messages": UNSURE}, stream_mode="messages")],
    ):
        whole: Any = None
        for chunk, _ in streamed:
            whole = chunk if whole is None else whole + chunk
        assert whole.text == expected.text
        assert report(whole) == report(expected)
        assert json.dumps(whole.response_metadata)


async def test_custom_events_inside_a_graph(chat: ChatSGL) -> None:
    events = [event async for event in graph(chat).astream_events({"messages": UNSURE}, version="v2")]
    assert [event["name"] for event in events if event["event"] == "on_custom_event"] == ["sgl_escalated"]


async def test_create_agent(chat: ChatSGL) -> None:
    agent = create_agent(chat, tools=[])
    chat.invoke(UNSURE)  # the picture is known from here on, which reports say
    expected = report(chat.invoke(UNSURE))
    for result in (agent.invoke({"messages": UNSURE}), await agent.ainvoke({"messages": UNSURE})):
        message = result["messages"][-1]
        assert message.text == "3"
        assert report(message) == expected


@tool
def weigh(item: str) -> str:
    """Weighs an item."""
    return f"{item} weighs 3 kg"


def scripted(request: Request) -> str:
    last = request.messages[-1]
    if last.role != "tool":
        return "Let me see." + render_call(ToolCall(id="", name="weigh", arguments={"item": "tea"}))
    return f"It says: {last.content[0]}."


async def test_an_agent_calls_tools_and_reads_their_results() -> None:
    pair = demo_engine()
    chat = ChatSGL(engine=FakeEngine(scripted, small=pair.small, large=pair.large))
    agent = create_agent(chat, tools=[weigh])
    for result in (
        agent.invoke({"messages": UNSURE}),
        await agent.ainvoke({"messages": UNSURE}),
        list(agent.stream({"messages": UNSURE}, stream_mode="values"))[-1],
    ):
        question, calling, outcome, answer = result["messages"]
        assert isinstance(question, HumanMessage)
        assert isinstance(calling, AIMessage)
        assert calling.text == "Let me see."
        assert [call["args"] for call in calling.tool_calls] == [{"item": "tea"}]
        assert calling.response_metadata["finish_reason"] == "tool_calls"
        assert isinstance(outcome, ToolMessage)
        assert outcome.content == "tea weighs 3 kg"
        assert answer.text == "It says: tea weighs 3 kg."
        assert report(answer)["route"] == "small"


class Bill(BaseModel):
    """What a receipt says."""

    total: float
    paid: bool


@pytest.mark.parametrize("strategy", [Bill, ProviderStrategy(Bill), ToolStrategy(Bill)])
async def test_structured_answers_of_an_agent(chat: ChatSGL, strategy: Any) -> None:
    agent = create_agent(chat, tools=[], response_format=strategy)
    for result in (agent.invoke({"messages": UNSURE}), await agent.ainvoke({"messages": UNSURE})):
        assert isinstance(result["structured_response"], Bill)
