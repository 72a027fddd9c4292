"""SGLFirstMiddleware: which calls the small model sees first, and what the agent's model then is sent."""

from typing import Any

import pytest
from hosted_models import Big, picture, small, weather
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    wrap_model_call,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from PIL import Image
from pydantic import BaseModel

from langchain_sgl import ChatSGL, LangChainModel, SGLFirstMiddleware, image_block
from langchain_sgl.first import asks_about_pictures
from sgl_engine import EngineConfig, SendConfig
from sgl_engine.testing import FakeEngine

LOOK = HumanMessage([picture(), {"type": "text", "text": "How many?"}])
CALL = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1"}])


def first(score: float, **options: Any) -> SGLFirstMiddleware[Any, Any]:
    """The small model says "7"."""

    def chat(model: BaseChatModel) -> ChatSGL:
        config = EngineConfig(send=SendConfig(mode=options.pop("send", "full")))
        large = LangChainModel(model)
        return ChatSGL(
            engine=FakeEngine(lambda _: "7", score=score, small=small(), large=large, config=config)
        )

    return SGLFirstMiddleware(chat=chat, tools=options.pop("tools", False))


def answer(model: BaseChatModel, *middleware: Any, messages: Any = (LOOK,), tools: Any = ()) -> AIMessage:
    agent: Any = create_agent(model, tools=list(tools), middleware=list(middleware))
    message: AIMessage = agent.invoke({"messages": list(messages)})["messages"][-1]
    return message


def test_a_sure_small_model_answers_alone() -> None:
    big = Big()
    found = answer(big, first(0.9))
    assert (found.text, big.seen) == ("7", [])
    assert found.response_metadata["sgl"]["route"] == "small"


def test_else_the_agents_model_is_sent_the_evidence() -> None:
    big = Big()
    whole = HumanMessage(
        [image_block(Image.new("RGB", (600, 400), "white")), {"type": "text", "text": "How?"}]
    )
    system = SystemMessage("Be brief.")
    found = answer(big, first(0.1, send="crop"), messages=(system, whole))
    assert found.text == "eight"
    sent = found.response_metadata["sgl"]["sent"]
    assert (sent["pictures"][0]["mode"], sent["full_pixels"]) == ("crop", 240_000)
    assert (
        sent["sent_pixels"] < 40_001
    )  # the scripted small model looked nowhere: a small picture of the whole
    [messages] = big.seen
    assert messages[0].text == "Be brief."


@pytest.mark.parametrize(
    ("messages", "about"),
    [
        ([LOOK], True),
        ([HumanMessage("Hello")], False),
        ([LOOK, AIMessage("7"), HumanMessage("And why?")], False),
        ([HumanMessage("Look"), CALL, ToolMessage([picture()], tool_call_id="c1")], True),
        ([LOOK, CALL, ToolMessage("done", tool_call_id="c1")], True),
        ([], False),
    ],
)
def test_which_calls_are_about_pictures(messages: list[Any], about: bool) -> None:
    assert asks_about_pictures(messages) == about


def test_calls_with_tools_go_to_the_agents_model() -> None:
    big = Big()
    assert answer(big, first(0.9), tools=[weather]).text == "eight"
    assert "sgl" not in answer(big, first(0.9), tools=[weather]).response_metadata
    assert answer(big, first(0.9, tools=True), tools=[weather]).text == "7"


def test_answers_by_a_tool_are_the_agents_models_too() -> None:
    class Total(BaseModel):
        total: int

    made = []

    def chat(model: BaseChatModel) -> ChatSGL:
        made.append(model)
        return ChatSGL(
            engine=FakeEngine(lambda _: "7", score=0.9, small=small(), large=LangChainModel(model))
        )

    big = Big(said=AIMessage("", tool_calls=[{"name": "Total", "args": {"total": 7}, "id": "c1"}]))
    middleware: Any = [SGLFirstMiddleware(chat=chat)]
    agent: Any = create_agent(big, tools=[], middleware=middleware, response_format=ToolStrategy(Total))
    assert agent.invoke({"messages": [LOOK]})["structured_response"] == Total(total=7)
    assert (len(big.seen), made) == (1, [])  # no pair was made, so no small model was asked


def test_settings_of_the_agents_model_are_none_of_the_small_ones() -> None:
    @wrap_model_call
    def thinking(request: Any, handler: Any) -> Any:
        return handler(request.override(model_settings={"reasoning_effort": "low"}))

    assert SGLFirstMiddleware()._make(Big()).unknown_options == "warn"
    assert SGLFirstMiddleware(unknown_options="refuse")._make(Big()).unknown_options == "refuse"
    with pytest.warns(UserWarning, match="no option 'reasoning_effort'"):
        assert answer(Big(), thinking, SGLFirstMiddleware(escalate="always")).text == "eight"


def test_beside_the_middleware_of_others() -> None:
    class TheirError(Exception):
        pass

    broken, other = Big(said=TheirError("down")), Big(said="nine")
    around = [
        ModelCallLimitMiddleware(run_limit=3),
        ModelFallbackMiddleware(other),
        ModelRetryMiddleware(max_retries=1, initial_delay=0.0, on_failure="error"),
    ]
    assert answer(broken, *around, first(0.1)).text == "nine"
    assert (len(broken.seen), len(other.seen)) == (2, 1)
    assert answer(broken, *around, first(0.9)).text == "7"


def summarizing(trigger: int) -> SummarizationMiddleware[Any, Any]:
    return SummarizationMiddleware(
        Big(said="They talked."), trigger=("messages", trigger), keep=("messages", 1)
    )


@pytest.mark.parametrize(("score", "text"), [(0.9, "7"), (0.1, "eight")])
def test_beside_a_summary_of_what_was_said_before(score: float, text: str) -> None:
    """The question about the picture is kept, and is asked with the summary before it."""
    talk = [HumanMessage("Hello, Rumpelstiltskin"), AIMessage("Hi"), LOOK]
    big = Big()
    found = answer(big, summarizing(3), first(score), messages=talk)
    assert (found.text, found.response_metadata["sgl"]["route"]) == (
        text,
        "small" if score > 0.5 else "large",
    )
    for asked in big.seen:
        assert "They talked." in asked[0].text
        assert asked[-1].content[0]["type"] == "image"
        assert "Rumpelstiltskin" not in str(asked)
    answer(plain := Big(), summarizing(4), first(0.1), messages=talk)  # the control: nothing to summarize yet
    assert "Rumpelstiltskin" in str(plain.seen)


def test_a_picture_that_was_summarized_is_not_asked_about() -> None:
    talk = [LOOK, AIMessage("7"), HumanMessage("And why?")]
    big = Big()
    assert "sgl" not in answer(big, summarizing(3), first(0.9), messages=talk).response_metadata
    assert "image" not in str(big.seen)


async def test_asynchronously() -> None:
    big = Big()
    agent: Any = create_agent(big, middleware=[first(0.1)])
    found = await agent.ainvoke({"messages": [LOOK]})
    assert found["messages"][-1].text == "eight"


def test_hooks_keep_pictures_out_of_traces() -> None:
    from langgraph.types import omit_payload

    assert SGLFirstMiddleware.trace_policy.process_inputs is omit_payload
