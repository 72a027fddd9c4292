"""The report reaches whoever needs it through LangGraph and `create_agent`, as it reaches a plain caller."""

import json
from typing import Any, Literal

import pytest
from bundled import OVERRULED
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langchain_core.tracers.base import BaseTracer
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel
from scripted_sgl import ScriptedAgentModel

from langchain_sgl import ChatSGL, EscalationBudgetMiddleware, SGLUsageCallbackHandler, image_block
from langchain_sgl.chat.pair import warn_of_bundled_pair
from sgl_engine.chat.tool_calls import render_call
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.request import Request, ToolCall
from sgl_engine.testing import FakeEngine

UNSURE = [HumanMessage([image_block(PICTURES / "page.png"), OVERRULED.question])]


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
        assert message.text == OVERRULED.answer
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

    currency: Literal["euro", "pound"]
    paid: bool


@pytest.mark.parametrize("strategy", [Bill, ProviderStrategy(Bill), ToolStrategy(Bill)])
async def test_structured_answers_of_an_agent(chat: ChatSGL, strategy: Any) -> None:
    agent = create_agent(chat, tools=[], response_format=strategy)
    for result in (agent.invoke({"messages": UNSURE}), await agent.ainvoke({"messages": UNSURE})):
        assert isinstance(result["structured_response"], Bill)


def exit_events(stream: Any) -> list[Any]:
    return [(event["type"], event["forced"], event["score"] < event["threshold"]) for event in stream]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_custom_stream_of_a_graph_tells_the_decision(chat: ChatSGL, *, stream: bool) -> None:
    asked = ChatSGL(streaming=stream)
    app, question = graph(asked), {"messages": UNSURE}
    expected = [("sgl_escalated", False, True)]
    assert exit_events(app.stream(question, stream_mode="custom")) == expected
    assert exit_events([event async for event in app.astream(question, stream_mode="custom")]) == expected
    sure = graph(ChatSGL(streaming=stream, escalate="never"))
    assert exit_events(sure.stream(question, stream_mode="custom")) == [("sgl_exit", True, True)]
    both = list(app.stream(question, stream_mode=["custom", "values"]))
    assert [mode for mode, _ in both].index("custom") < len(both) - 1  # before the answer


async def test_tools_of_an_agent_write_to_its_custom_stream(chat: ChatSGL) -> None:
    @tool
    def look(question: str) -> str:
        """Looks."""
        return str(chat.invoke([("user", question)]).text)

    say = AIMessage("", tool_calls=[{"name": "look", "args": {"question": "hello"}, "id": "1"}])
    agent = create_agent(ScriptedAgentModel(script=[say, AIMessage("done")]), tools=[look])
    events = list(agent.stream({"messages": [("user", "go")]}, stream_mode="custom"))
    assert [event["type"][:4] for event in events] == ["sgl_"]
    assert events[0]["run_id"]


async def test_a_model_with_the_tag_nostream_is_left_out_of_messages(chat: ChatSGL) -> None:
    quiet = graph(chat.with_config(tags=["nostream"]))  # type: ignore[arg-type]
    for app, chunks in ((quiet, False), (graph(chat), True)):
        streamed = [message for message, _ in app.stream({"messages": UNSURE}, stream_mode="messages")]
        # The message that the node returns is passed on in any case.
        assert any(isinstance(message, AIMessageChunk) for message in streamed) is chunks


class Spans(BaseTracer):
    """Keeps what a trace would show."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, str] = {}

    def _persist_run(self, run: Any) -> None:
        self._keep(run)

    def _keep(self, run: Any) -> None:
        self.inputs[run.name] = json.dumps(run.inputs, default=str)
        for child in run.child_runs:
            self._keep(child)


def test_no_picture_enters_the_spans_of_the_middleware(chat: ChatSGL) -> None:
    spans = Spans()
    agent = create_agent(chat, middleware=[EscalationBudgetMiddleware(run_escalations=1)])
    agent.invoke({"messages": UNSURE}, config={"callbacks": [spans]})
    hooks = {name: inputs for name, inputs in spans.inputs.items() if "EscalationBudget" in name}
    assert hooks
    picture = UNSURE[0].content[0]["base64"][:200]  # type: ignore[index]
    assert not any(picture in inputs for inputs in hooks.values())
    assert any(picture in inputs for inputs in spans.inputs.values())  # the model's own


def test_the_profile_says_what_the_model_is() -> None:
    profile: Any = ChatSGL().profile
    assert profile["name"] == "sgl-demo"
    assert profile["max_output_tokens"] == profile["max_input_tokens"] == 4096
    assert profile["temperature"]
    assert not profile["reasoning_output"]
    named: Any = ChatSGL(small="o/a", large="o/b").profile
    assert named["name"] == "o/a+o/b"


def test_a_later_system_message_stays_where_it_is(chat: ChatSGL) -> None:
    said = [SystemMessage("red"), HumanMessage("circle"), AIMessage("blue"), SystemMessage("green")]
    said.append(HumanMessage("square"))
    assert chat.profile is not None
    assert chat.profile["mid_conversation_system_messages"]
    request = chat._options().request(chat._to_engine(said))
    engine = chat.engine
    text = engine.large.text(engine.large.encode(request, engine.config.limits).input_ids[0].tolist())
    places = [text.index(word) for word in ("red", "circle", "blue", "green", "square")]
    assert places == sorted(places)


def test_the_bundled_pair_warns_once_of_tools_and_schemas(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"title": "A", "enum": ["a"]}
    engine = demo_engine()
    warn_of_bundled_pair.cache_clear()
    ChatSGL().invoke("?")
    ChatSGL(engine=FakeEngine(lambda _: '"a"')).with_structured_output(schema).invoke("?")
    assert "follows no instructions" not in caplog.text
    for _ in range(2):
        ChatSGL(max_tokens=8).with_structured_output(schema).invoke("?")
        list(ChatSGL(engine=engine, max_tokens=8).bind_tools([schema_tool]).stream("?"))
    assert caplog.text.count("follows no instructions") == 1


@tool
def schema_tool(a: bool) -> str:
    """Does nothing."""
    return f"{a}"


def test_tokens_of_both_models_are_counted(chat: ChatSGL) -> None:
    usage = SGLUsageCallbackHandler()
    message = chat.invoke(UNSURE, config={"callbacks": [usage]})
    sgl = message.response_metadata["sgl"]
    assert usage.usage_metadata == {
        f"sgl-demo-{size}": {
            "input_tokens": sgl[f"{size}_input_tokens"],
            "output_tokens": sgl[f"{size}_output_tokens"],
            "total_tokens": sgl[f"{size}_input_tokens"] + sgl[f"{size}_output_tokens"],
        }
        for size in ("small", "large")
    }
    chat.invoke(UNSURE, config={"callbacks": [usage]}, escalate="never")
    assert usage.usage_metadata["sgl-demo-small"]["input_tokens"] == 2 * sgl["small_input_tokens"]
    assert usage.usage_metadata["sgl-demo-large"]["input_tokens"] == sgl["large_input_tokens"]
