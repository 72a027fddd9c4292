"""The tools in a larger program: callbacks, an agent with checkpoints, the toolkit, tool schemas."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from recording_model import PNG, PNG_BASE64, QUESTION, RecordingModel

from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.tools.toolkit import SGLToolkit, TranscribeTool, VisualQuestionTool
from sgl_engine.demo import PICTURES
from sgl_engine.errors import ConfigError


@pytest.fixture
def model(make_report: Any) -> RecordingModel:
    return RecordingModel(report=make_report().model_dump(mode="json"))


# Callbacks, agents


class Runs(BaseCallbackHandler):
    """Which run is below which."""

    def __init__(self) -> None:
        self.tools: list[UUID] = []
        self.models: list[UUID | None] = []

    def on_tool_start(self, *_: Any, run_id: UUID, **__: Any) -> None:
        self.tools.append(run_id)

    def on_chat_model_start(self, *_: Any, parent_run_id: UUID | None = None, **__: Any) -> None:
        self.models.append(parent_run_id)


async def test_callbacks_see_the_models_call_below_the_tools() -> None:
    for tool in SGLToolkit(model=ChatSGL(), root=PICTURES).get_tools():
        arguments = {"picture": "receipt.png"} | ({"question": QUESTION} if "question" in tool.args else {})
        runs = Runs()
        with get_usage_metadata_callback() as usage:
            tool.invoke(arguments, {"callbacks": [runs]})
            await tool.ainvoke(arguments, {"callbacks": [runs]})
        assert len(runs.tools) == 2
        assert runs.models == runs.tools
        (counted,) = usage.usage_metadata.values()
        assert counted["input_tokens"] >= 2 * 144


def test_metadata_and_tags_reach_the_models_call(model: RecordingModel) -> None:
    seen: list[Any] = []

    class Metadata(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, metadata: Any = None, **__: Any) -> None:
            seen.append(metadata)

    tool = VisualQuestionTool(model=model, root=PICTURES)
    config = {"callbacks": [Metadata()], "metadata": {"user": "u"}, "configurable": {"thread_id": "t"}}
    tool.invoke({"question": QUESTION, "picture": "receipt.png"}, config)  # type: ignore[arg-type]
    assert seen[0]["user"] == "u"


@pytest.mark.parametrize("evidence", ["box", "picture", "inline"])
def test_an_agent_keeps_reports_and_no_pictures_in_its_checkpoints(evidence: Any) -> None:
    tool_call = {"name": "look_at_picture", "args": {"question": QUESTION, "picture": "scan"}, "id": "1"}
    bad_call = {"name": "look_at_picture", "args": {"question": QUESTION, "picture": "scam"}, "id": "0"}

    class Scripted(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    answers: Iterator[Any] = iter(
        [
            AIMessage("", tool_calls=[bad_call]),
            AIMessage("", tool_calls=[tool_call]),
            AIMessage("It is 3.73."),
        ]
    )
    saver = InMemorySaver()
    toolkit = SGLToolkit(model=ChatSGL(), store={"scan": PNG}, evidence=evidence)
    agent = create_agent(Scripted(messages=answers), toolkit.get_tools(), checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "t"}}
    agent.invoke({"messages": [("user", "How much was it?")]}, config)
    messages = agent.get_state(config).values["messages"]
    wrong, right = (message for message in messages if isinstance(message, ToolMessage))
    assert wrong.status == "error"
    assert "Near that name: 'scan'" in wrong.content
    assert right.content.startswith("3.73\n[answered by the small model")
    assert right.artifact["report"]["route"] == "small"
    assert messages[-1].content == "It is 3.73."
    stored = repr(list(saver.list(config))) + repr(saver.blobs)
    assert "look_at_picture" in stored
    assert PNG_BASE64[:60] not in stored
    assert "\\x89PNG" not in stored
    assert ("iVBORw0KGgo" in stored) == (evidence == "inline")  # only the heat map, where it was asked for


# What models are told about the tools


def test_every_argument_is_described_and_nothing_else_is_one() -> None:
    expected = {
        "look_at_picture": ["question", "picture", "region", "escalate"],
        "transcribe_picture": ["picture", "region"],
    }
    tools = SGLToolkit(model=ChatSGL()).get_tools()
    assert [tool.name for tool in tools] == list(expected)
    for tool in tools:
        function = convert_to_openai_tool(tool)["function"]
        parameters = function["parameters"]["properties"]
        assert list(parameters) == expected[tool.name]
        assert all(parameter["description"] for parameter in parameters.values())
        assert function["parameters"]["required"] == [
            name for name in parameters if name in ("question", "picture")
        ]
        assert 100 < len(function["description"]) < 500


def test_the_toolkit_shares_its_settings() -> None:
    chat = ChatSGL()
    look, read = SGLToolkit(model=chat, root=PICTURES, store={"a": PNG}, evidence="map").get_tools()
    assert isinstance(look, VisualQuestionTool)
    assert isinstance(read, TranscribeTool)
    assert look.model is read.model is chat
    assert look.root == read.root == PICTURES
    assert look.store is read.store is not None
    assert look.evidence == "map"


def test_making_tools_loads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_sgl.chat.pair.shared_engine", lambda _: pytest.fail("loads"))
    monkeypatch.setattr("langchain_sgl.chat.settings.shared_engine", lambda _: pytest.fail("loads"))
    assert SGLToolkit(model=ChatSGL(), root=PICTURES).get_tools()


def test_importing_the_tools_imports_nothing_heavy() -> None:
    heavy = '{"numpy", "torch", "transformers", "PIL", "langgraph"}'
    code = f"import sys, langchain_sgl.tools.toolkit; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_store_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be used as a picture store"):
        VisualQuestionTool(model=ChatSGL(), store=[PNG])
