"""Thoughts in LangChain: a field and a block of their own, streamed as such, and no part of the history."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from repositories import write

from langchain_sgl import ChatSGL
from langchain_sgl.chat.messages import to_engine_messages
from sgl_engine import VLM, SGLEngine

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatSGL:
    folder: Path = write("qwen3_5", tmp_path_factory.mktemp("models") / "thinking")
    vlm = VLM.from_pretrained(folder)
    return ChatSGL(engine=SGLEngine(vlm, vlm), max_tokens=5, max_reasoning_tokens=6, escalate="never")


def test_thoughts_are_a_block_of_their_own(chat: ChatSGL) -> None:
    message = chat.invoke(QUESTION)
    thoughts = message.additional_kwargs["reasoning_content"]
    assert thoughts
    assert {"type": "reasoning", "reasoning": thoughts} in message.content_blocks
    assert message.usage_metadata is not None
    details = message.usage_metadata["output_token_details"]
    assert 0 < details["reasoning"] < message.usage_metadata["output_tokens"]
    assert message.response_metadata["sgl"]["small_reasoning_tokens"] == details["reasoning"]


def test_template_arguments_and_budgets_reach_the_model(chat: ChatSGL) -> None:
    for quiet in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"max_reasoning_tokens": 0},
    ):
        message = chat.invoke(QUESTION, **quiet)
        assert "reasoning_content" not in message.additional_kwargs
        assert all(block["type"] != "reasoning" for block in message.content_blocks)
    longer = chat.invoke(QUESTION, max_reasoning_tokens=9)
    assert longer.response_metadata["sgl"]["small_reasoning_tokens"] == 12  # with the three that end them


class _Pieces(BaseCallbackHandler):
    def __init__(self) -> None:
        self.thoughts = ""

    def on_llm_new_token(self, token: str, *, chunk: Any = None, **_: Any) -> None:
        self.thoughts += chunk.message.additional_kwargs.get("reasoning_content", "")


def test_a_stream_has_thoughts_first(chat: ChatSGL) -> None:
    heard = _Pieces()
    chunks = list(chat.stream(QUESTION, config={"callbacks": [heard]}))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk  # type: ignore[assignment]
    expected = chat.invoke(QUESTION)
    assert whole.text == expected.text
    assert whole.additional_kwargs == expected.additional_kwargs
    assert heard.thoughts == expected.additional_kwargs["reasoning_content"]
    has_text = [bool(chunk.text) for chunk in chunks]
    thinks = [bool(chunk.additional_kwargs) for chunk in chunks]
    assert thinks.index(True) < has_text.index(True)
    assert not any(text and thought for text, thought in zip(has_text, thinks, strict=True))


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("Blue.", additional_kwargs={"reasoning_content": "hm"}),
        AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Blue."}]),
        AIMessage([{"type": "thinking", "thinking": "hm", "signature": "s"}, "Blue."]),
    ],
)
def test_history_tells_thoughts_from_text(message: AIMessage, chat: ChatSGL) -> None:
    [told] = to_engine_messages([message])
    assert (told.content, told.reasoning) == (("Blue.",), "hm")
    talk = [HumanMessage("Hi"), message, HumanMessage("Why?")]
    plain = [HumanMessage("Hi"), AIMessage("Blue."), HumanMessage("Why?")]
    assert chat.get_num_tokens_from_messages(talk) == chat.get_num_tokens_from_messages(plain)
