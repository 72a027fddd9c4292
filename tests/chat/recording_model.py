"""A chat model that reports like ChatSGL and remembers what it was asked; and ways to call a tool."""

import base64
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from pydantic import Field

from langchain_sgl.evidence import Evidence
from sgl_engine.demo import PICTURES

QUESTION = "How much is the total?"
PNG = (PICTURES / "receipt.png").read_bytes()
PNG_BASE64 = base64.b64encode(PNG).decode()
EVIDENCE = {
    "num_queries": 3,
    "spans": [{"image": 0, "box": (0, 0, 1, 1), "grid": (4, 4), "mass": [1.0] * 6 + [9.0] + [1.0] * 9}],
}
"""Token (1, 2) of 4 x 4 is hot."""


class RecordingModel(BaseChatModel):
    """Answers "42" with a report, and remembers what it was asked."""

    report: Any
    error: Exception | None = None
    escalate: str | None = None
    asked: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "recording"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.asked.append(messages)
        self.options.append(kwargs)
        if self.error is not None:
            raise self.error
        metadata = {"sgl": self.report, "finish_reason": "stop"}
        if kwargs.get("evidence"):
            metadata["sgl_evidence"] = Evidence.from_json(EVIDENCE).to_json()
        return ChatResult(generations=[ChatGeneration(message=AIMessage("42", response_metadata=metadata))])

    def block(self) -> dict[str, Any]:
        """The image block of the last call."""
        block, text = self.asked[-1][-1].content
        assert isinstance(block, dict)
        assert isinstance(text, dict)
        assert text["type"] == "text"
        return block


def call(tool: BaseTool, /, **arguments: Any) -> ToolMessage:
    message = tool.invoke({"name": tool.name, "args": arguments, "id": "call-1", "type": "tool_call"})
    assert isinstance(message, ToolMessage)
    assert message.tool_call_id == "call-1"
    return message


async def acall(tool: BaseTool, /, **arguments: Any) -> ToolMessage:
    message = await tool.ainvoke({"name": tool.name, "args": arguments, "id": "call-1", "type": "tool_call"})
    assert isinstance(message, ToolMessage)
    return message
