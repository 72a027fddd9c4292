"""ChatSGL with a large model on another machine: LangChain's own chat models, names of them, and clients."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hosted_models import Big, StreamingBig, picture, small, weather
from hosted_servers import KEY, Script, never, says
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ModelAuthenticationError, ModelRateLimitError
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from PIL import Image
from pydantic import BaseModel

from langchain_sgl import ChatSGL, get_sgl_usage_callback
from langchain_sgl.chat.fields import as_hosted, is_hosted
from sgl_engine import ConfigError, EngineConfig, SendConfig, instrument, uninstrument
from sgl_engine.testing import FakeEngine


def chat(large: Any, *, score: float = 0.1, **fields: Any) -> ChatSGL:
    """The small model says "7", and is not sure."""
    model = as_hosted(large)
    config = EngineConfig(send=SendConfig(mode="full"))
    return ChatSGL(
        engine=FakeEngine(lambda _: "7", score=score, small=small(), large=model, config=config), **fields
    )


QUESTION = [HumanMessage([picture(), {"type": "text", "text": "How many?"}])]


def pixels(block: dict[str, Any]) -> tuple[int, ...]:
    image = Image.open(io.BytesIO(base64.b64decode(block["base64"])))
    return image.convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def test_the_messages_go_out_as_they_are_but_for_the_pictures() -> None:
    big = Big()
    system = SystemMessage("Be brief.", additional_kwargs={"cache_control": {"type": "ephemeral"}})
    before = AIMessage("6", additional_kwargs={"thoughts": "mine"}, response_metadata={"their": "own"})
    asked = HumanMessage(
        [
            {"type": "text", "text": "First"},
            picture("red"),
            {"type": "text", "text": "and", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": data_url("blue")}},
        ],
        id="h1",
    )
    chat(big, temperature=0.5, max_tokens=9).invoke([system, before, asked], stop=["\n"], seed=3)
    [sent] = big.seen
    assert sent[:2] == [system, before]
    first, red, text, blue = sent[2].content
    assert (sent[2].id, first, text) == ("h1", asked.content[0], asked.content[2])
    assert isinstance(red, dict)
    assert isinstance(blue, dict)
    assert [pixels(red), pixels(blue)] == [(255, 0, 0), (0, 0, 255)]
    assert big.options == [{"stop": ["\n"], "temperature": 0.5, "max_tokens": 9, "seed": 3}]


def data_url(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_nothing_is_sent_where_the_small_model_is_sure() -> None:
    big = Big()
    assert chat(big, score=0.9).invoke(QUESTION).text == "7"
    assert big.seen == []


def test_the_answer_comes_back_as_the_provider_has_written_it() -> None:
    said = AIMessage(
        [{"type": "text", "text": "eight", "citations": ["p. 3"]}],
        additional_kwargs={"their": "field"},
        response_metadata={"model_name": "big-2026", "finish_reason": "stop", "system_fingerprint": "f"},
        usage_metadata={"input_tokens": 900, "output_tokens": 4, "total_tokens": 904},
        id="msg_from_there",
    )
    answer = chat(Big(said=said)).invoke(QUESTION)
    assert answer.content == said.content
    assert answer.additional_kwargs == {"their": "field"}
    assert answer.response_metadata["system_fingerprint"] == "f"
    assert answer.response_metadata["model_name"] == "big-1"
    assert answer.usage_metadata == said.usage_metadata
    report = answer.response_metadata["sgl"]
    assert (report["route"], report["large_answered_as"], report["large_input_tokens"]) == (
        "large",
        "big-2026",
        900,
    )
    assert str(answer.id).startswith("lc_run-")


def test_streaming_passes_the_pieces_on() -> None:
    chunks = list(chat(StreamingBig(said="about eight")).stream(QUESTION))
    assert [each.text for each in chunks if each.text] == ["about ", "eight "]
    assert chunks[-1].chunk_position == "last"
    assert chunks[-1].response_metadata["finish_reason"] == "length"
    assert chunks[-1].usage_metadata == {"input_tokens": 900, "output_tokens": 4, "total_tokens": 904}


async def test_async_and_batches() -> None:
    model = chat(StreamingBig(said="about eight"))
    found = await model.abatch([QUESTION] * 3)
    assert [each.text for each in found] == ["about eight "] * 3
    stream: AsyncIterator[Any] = model.astream(QUESTION)
    assert "".join([each.text async for each in stream]) == "about eight "
    assert [each.text for each in model.batch([QUESTION] * 2)] == ["about eight "] * 2


async def test_leaving_an_asynchronous_call_does_not_wait_for_the_model() -> None:
    hold = threading.Event()
    task = asyncio.create_task(chat(StreamingBig(said="about eight", wait=hold)).ainvoke(QUESTION))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.set()


def test_tool_calls_pass_through() -> None:
    call = {"name": "weather", "args": {"city": "Bonn"}, "id": "c1", "type": "tool_call"}
    big = Big(said=AIMessage("", tool_calls=[call]))
    answer = chat(big).bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke(QUESTION)
    assert answer.tool_calls == [call]
    [options] = big.options
    assert (options["tool_choice"], options["parallel_tool_calls"]) == ("any", False)
    assert [each["function"]["name"] for each in options["tools"]] == ["weather"]
    history = [*QUESTION, answer, ToolMessage([picture("green")], tool_call_id="c1"), HumanMessage("So?")]
    chat(big).invoke(history)
    block = big.seen[-1][2].content[0]
    assert isinstance(block, dict)
    assert pixels(block) == (0, 128, 0)


class Total(BaseModel):
    """A sum."""

    total: int


def test_structured_output_passes_through() -> None:
    call = {"name": "Total", "args": {"total": 8}, "id": "c1", "type": "tool_call"}
    big = Big(said=AIMessage("", tool_calls=[call]))
    answer = chat(big).with_structured_output(Total).invoke(QUESTION)
    assert answer == Total(total=8)
    assert big.options[0]["tools"][0]["properties"]["total"]["type"] == "integer"


def test_errors_of_the_provider_come_through_as_they_are() -> None:
    class TheirError(Exception):
        pass

    with pytest.raises(TheirError):
        chat(Big(said=TheirError(f"bad key {KEY}"))).invoke(QUESTION)
    kept = chat(Big(said=TheirError(f"bad key {KEY}")), on_large_error="keep").invoke(QUESTION)
    assert kept.text == "7"
    assert kept.response_metadata["sgl"]["large_error"] == "TheirError"  # what it says may hold the key
    assert kept.response_metadata["sgl"]["route"] == "small"


@pytest.mark.parametrize(("status", "kind"), [(401, ModelAuthenticationError), (429, ModelRateLimitError)])
def test_errors_of_the_client_are_langchains_too(status: int, kind: type[Exception]) -> None:
    import httpx

    script = Script(httpx.Response(status))
    with script.model(max_retries=0) as model, pytest.raises(kind):
        chat(model).invoke(QUESTION)


def test_a_client_takes_the_place_of_a_chat_model() -> None:
    with Script(says("eight")).model() as model:
        answer = chat(model).invoke(QUESTION)
    assert answer.text == "eight"
    assert answer.usage_metadata == {"input_tokens": 1000, "output_tokens": 5, "total_tokens": 1005}


def test_a_call_is_cancelled_at_once() -> None:
    with Script(never).model() as model, pytest.raises(TimeoutError):
        chat(model).invoke(QUESTION, timeout=0.3)


def test_the_models_run_is_not_heard_of_twice() -> None:
    with get_sgl_usage_callback() as usage:
        heard = [each.text for each in chat(StreamingBig(said="about eight")).stream(QUESTION)]
    assert "".join(heard) == "about eight "
    assert (usage.totals.calls, usage.totals.escalations, usage.totals.other_calls) == (1, 1, 0)


def test_a_name_makes_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import langchain.chat_models

    made: list[str] = []

    def init(name: str) -> Big:
        made.append(name)
        return Big()

    monkeypatch.setattr(langchain.chat_models, "init_chat_model", init)
    model = ChatSGL(large="big:one", escalate="always")
    assert made == []  # nothing is made before it is used
    assert model.invoke(QUESTION).text == "eight"
    assert made == ["big:one"]
    assert model._identifying_params["model_name"] == "sgl-demo-small+big:one"


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="A int is no large model"):
        as_hosted(3)
    assert not is_hosted("org/model")
    assert not is_hosted(None)


def test_answers_of_different_models_are_different_cache_entries() -> None:
    cache_ = InMemoryCache()
    one, other = Big(said="eight"), Big(said="nine")

    class Hot(Big):
        temperature: float = 1.0

        @property
        def _identifying_params(self) -> dict[str, Any]:
            return {"temperature": self.temperature}

    keys = [ChatSGL(large=model)._identifying_params for model in (one, Hot(), Hot(temperature=0.5))]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == 3
    assert KEY not in json.dumps(keys)
    assert cache_ is not None
    assert other.said == "nine"


def test_no_key_is_shown() -> None:
    model = chat(Big())
    answer = model.invoke(QUESTION)
    assert KEY not in repr(model) + repr(model.engine) + repr(answer) + json.dumps(answer.response_metadata)


async def test_spans_of_calls_at_once_are_their_callers() -> None:
    """A chat model asks in other threads; spans find their parents all the same."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    model = chat(Big())

    async def ask(name: str) -> None:
        with provider.get_tracer("caller").start_as_current_span(name):
            await model.ainvoke(QUESTION)

    instrument(provider)
    try:
        await asyncio.gather(ask("a"), ask("b"))
    finally:
        uninstrument()
    spans = exporter.get_finished_spans()
    requests = [span for span in spans if span.name == "invoke_workflow sgl"]
    callers = {span.context.span_id for span in spans if span.name in {"a", "b"}}
    assert {span.parent.span_id for span in requests if span.parent} == callers
    assert len(callers) == 2
    large = [span for span in spans if span.name == "chat big-1"]
    assert [dict(span.attributes or {})["gen_ai.provider.name"] for span in large] == ["big", "big"]
