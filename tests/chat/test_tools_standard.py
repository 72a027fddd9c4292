"""LangChain's standard suites for tools, offline, on the bundled pair."""

from typing import Any

from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.tools.toolkit import TranscribeTool, VisualQuestionTool
from sgl_engine.demo import PICTURES


class Look:
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return VisualQuestionTool

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"model": ChatSGL(), "root": PICTURES}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": "How much is the total?", "picture": "receipt.png"}


class Transcribe(Look):
    @property
    def tool_constructor(self) -> type[BaseTool]:
        return TranscribeTool

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"picture": "receipt.png"}


class TestLookUnit(Look, ToolsUnitTests):
    pass


class TestLookIntegration(Look, ToolsIntegrationTests):
    pass


class TestTranscribeUnit(Transcribe, ToolsUnitTests):
    pass


class TestTranscribeIntegration(Transcribe, ToolsIntegrationTests):
    pass
