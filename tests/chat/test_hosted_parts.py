"""What a hosted LangChain model has of its own: options that reach it, parts of its answers, its settings."""

import json
from operator import itemgetter
from typing import Any

import httpx
import pytest
from hosted_models import Big, picture, small
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableMap, RunnablePassthrough
from pydantic import BaseModel
from test_hosted import QUESTION, chat

from langchain_sgl import ChatSGL
from langchain_sgl.chat.hosted import LangChainModel
from sgl_engine import ConfigError, OpenAIModel, SGLEngine

THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "SIG", "index": 0}
SAID = [THOUGHT, {"type": "text", "text": "eight", "citations": ["p. 3"], "index": 1}]


class Number(BaseModel):
    """A number."""

    number: int


class Formed(Big):
    """Answers in a schema by a chain like those of the providers' integrations."""

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        raw = self.bind(response_format=schema, **kwargs)
        return RunnableMap(raw=raw) | RunnablePassthrough.assign(
            parsed=itemgetter("raw") | JsonOutputParser()
        )


def test_options_reach_a_model_that_answers_in_a_schema() -> None:
    big = Formed(said='{"number": 8}')
    model = chat(big, temperature=0.0, max_tokens=77, seed=5, stop=["END"])
    model.invoke(QUESTION)
    assert model.with_structured_output(Number).invoke(QUESTION) == Number(number=8)
    plain, formed = big.options
    assert formed.pop("response_format")["title"] == "Number"
    assert formed == plain == {"stop": ["END"], "max_tokens": 77, "temperature": 0.0, "seed": 5}


class ThinkingBig(Big):
    """Streams blocks, as providers do: of a thought first its text, and then its signature."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        for block in (
            {"type": "thinking", "thinking": "h", "index": 0},
            {"type": "thinking", "thinking": "m", "index": 0},
            {"type": "thinking", "signature": "SIG", "index": 0},
            {"type": "text", "text": "ei", "index": 1},
            {"type": "text", "text": "ght", "citations": ["p. 3"], "index": 1},
        ):
            yield ChatGenerationChunk(message=AIMessageChunk([block]))
        last = AIMessageChunk(
            [{"type": "tool_use", "id": "c1", "name": "weather", "input": {}, "index": 2}],
            tool_call_chunks=[
                {
                    "name": "weather",
                    "args": '{"city": "Rome"}',
                    "id": "c1",
                    "index": 2,
                    "type": "tool_call_chunk",
                }
            ],
            additional_kwargs={"their": "field"},
            response_metadata={"system_fingerprint": "f"},
        )
        yield ChatGenerationChunk(message=last)


@pytest.mark.parametrize(
    "big", [ThinkingBig(), Big(said=AIMessage(SAID, additional_kwargs={"their": "field"}))]
)
def test_a_stream_keeps_all_that_the_provider_says(big: Any) -> None:
    """A thought's signature above all, without which some providers refuse the next turn."""
    chunks = list(chat(big).stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    asked = chat(big).invoke(QUESTION)
    assert whole.content == asked.content
    assert whole.content[: len(SAID)] == SAID
    assert whole.text == "eight"
    assert whole.additional_kwargs == {"their": "field"}  # and the thought is not said twice
    assert asked.tool_calls == whole.tool_calls
    if isinstance(big, ThinkingBig):
        assert [call["args"] for call in whole.tool_calls] == [{"city": "Rome"}]
        assert chunks[-1].response_metadata["system_fingerprint"] == "f"


class SearchingBig(Big):
    """Thinks beside its content, and searches: what a server's own tool is given comes in pieces, too."""

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        about = {"model_provider": "anthropic"}
        for block in (
            {"type": "thinking", "thinking": "hm", "signature": "SIG", "index": 0},
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}, "index": 1},
            {"type": "input_json_delta", "partial_json": '{"query": "x"}', "index": 1},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {}, "index": 2},
            {"type": "input_json_delta", "partial_json": '{"city": "Rome"}', "index": 2},
        ):
            calls = []
            if block["index"] == 2:
                first = block["type"] == "tool_use"
                arguments = "" if first else block["partial_json"]
                name = "weather" if first else None
                calls = [{"name": name, "args": arguments, "id": "c1" if first else None, "index": 2}]
            chunk = AIMessageChunk([block], response_metadata=about, tool_call_chunks=calls)  # type: ignore[arg-type]
            yield ChatGenerationChunk(message=chunk)


def test_a_stream_keeps_what_the_providers_own_tools_are_given() -> None:
    chunks = list(chat(SearchingBig()).stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == chat(SearchingBig()).invoke(QUESTION).content
    thought, search, _ = whole.content
    assert thought["signature"] == "SIG"  # type: ignore[index]
    assert search["partial_json"] == '{"query": "x"}'  # type: ignore[index]
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Rome"}]
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds[0] == "reasoning"  # LangChain knows whose blocks these are
    assert "tool_call" in kinds
    assert whole.response_metadata["model_provider"] == "anthropic"
    assert chat(SearchingBig()).invoke(QUESTION).response_metadata["model_provider"] == "anthropic"


def test_a_thought_beside_the_content_is_streamed() -> None:
    said = AIMessage([{"type": "text", "text": "eight"}], additional_kwargs={"reasoning_content": "hm"})
    chunks = list(chat(Big(said=said)).stream(QUESTION))
    assert sum(chunks[1:], chunks[0]).additional_kwargs == {"reasoning_content": "hm"}


def test_a_call_has_a_place_of_its_own_among_the_blocks() -> None:
    """LangChain merges chunks of one index, whatever they are."""
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "c1", "type": "tool_call"}
    for content in ("eight", [{"type": "text", "text": "eight", "index": 0}]):
        said = AIMessage(content, tool_calls=[call])  # type: ignore[arg-type]
        chunks = list(chat(Big(said=said), output_version="v1").stream(QUESTION))
        whole = sum(chunks[1:], chunks[0])
        assert [block["type"] for block in whole.content_blocks] == ["text", "tool_call"]
        assert whole.text == "eight"


def client(**settings: Any) -> OpenAIModel:
    return OpenAIModel("https://host/v1", "m", api_key="sk-secret", **settings)


def keys_of(*models: Any) -> list[str]:
    """Written out: what LangChain's caches, and indexes, tell models apart by."""
    return [json.dumps(model._identifying_params, sort_keys=True) for model in models]


def test_settings_that_change_answers_are_in_the_key() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"extra_body": {"reasoning_effort": "low"}},
        {"extra_body": {"reasoning_effort": "high"}},
        {"detail": "low"},
        {"limit_name": "max_completion_tokens"},
    ]
    named = [ChatSGL(large=client(**each)) for each in settings]
    ready = [ChatSGL(engine=SGLEngine(small(), client(**each))) for each in settings]
    for models in (named, ready):
        keys = keys_of(*models)
        assert len(set(keys)) == len(settings)
        assert "secret" not in "".join(keys)
    # What changes no answer does not.
    headers = {"x-team": "a"}
    assert keys_of(ChatSGL(large=client(headers=headers))) == keys_of(ChatSGL(large=client(timeout_s=5.0)))
    assert client().identity == client(transport=httpx.MockTransport(lambda _: httpx.Response(500))).identity


class Warm(Big):
    temperature: float = 1.0

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


def test_wrapped_chat_models_are_told_apart_like_bare_ones() -> None:
    bare = keys_of(*(ChatSGL(large=Warm(temperature=heat)) for heat in (0.0, 1.0)))
    wrapped = keys_of(*(ChatSGL(large=LangChainModel(Warm(temperature=heat))) for heat in (0.0, 1.0)))
    assert len(set(bare)) == 2
    assert wrapped == bare


def test_one_name_at_two_servers_is_two_models() -> None:
    openai = pytest.importorskip("langchain_openai", reason="needs the extra test")
    made = [
        ChatSGL(large=openai.ChatOpenAI(model="m", base_url=url, api_key="sk-secret"))
        for url in ("https://one/v1", "https://other/v1")
    ]
    one, other = keys_of(*made)
    assert one != other
    assert "secret" not in one


def test_a_provider_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'opnai:gpt-4o' is no chat model that LangChain can make"):
        ChatSGL(large="opnai:gpt-4o", escalate="always").invoke([HumanMessage([picture(), "q"])])
