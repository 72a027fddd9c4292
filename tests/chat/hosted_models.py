"""Chat models of another provider, a small model beside them, pictures and a tool."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from hosted_servers import KEY
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from PIL import Image
from pydantic import Field, SecretStr

from langchain_sgl import image_block
from sgl_engine import VLM
from sgl_engine.testing import tiny_vlm


class Big(BaseChatModel):
    """A chat model of another provider: says what it is told to, and keeps what it was sent."""

    said: Any = "eight"
    api_key: SecretStr = SecretStr(KEY)
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)
    wait: Any = None

    @property
    def _llm_type(self) -> str:
        return "big"

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {"ls_provider": "big", "ls_model_name": "big-1", "ls_model_type": "chat"}

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.seen.append(messages)
        self.options.append({"stop": stop, **kwargs})
        if isinstance(self.said, Exception):
            raise self.said
        message = self.said if isinstance(self.said, AIMessage) else AIMessage(self.said)
        return ChatResult(generations=[ChatGeneration(message=message.model_copy(deep=True))])


class StreamingBig(Big):
    """The same, word by word."""

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        self.seen.append(messages)
        self.options.append({"stop": stop, **kwargs})
        for word in self.said.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
            if self.wait is not None:
                self.wait.wait(10)
        usage = {"input_tokens": 900, "output_tokens": 4, "total_tokens": 904}
        last = AIMessageChunk("", usage_metadata=usage, response_metadata={"finish_reason": "length"})
        yield ChatGenerationChunk(message=last)


@cache
def small() -> VLM:
    return tiny_vlm(size="small")


def picture(colour: str = "white") -> Any:
    return image_block(Image.new("RGB", (64, 48), colour))


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    return city
