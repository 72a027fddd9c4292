"""SGLDecisionModel: what becomes of states, questions and media; middleware that it drives."""

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AutoModeMiddleware, ModelChoice, ModelRouterMiddleware
from langchain_core.decisions import Box, Choice, Noul, NoulCriteria, Score
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool

import langchain_sgl.decisions.model as model_module
from langchain_sgl import ChatSGL, SGLDecisionModel, SGLDecisionResponse, image_block
from sgl_engine import ImagePart, RequestCancelledError
from sgl_engine.decisions import (
    DecisionConfig,
    Decisions,
    YesNoAnswer,
    YesNoQuestion,
)
from sgl_engine.demo import PICTURES

SCENE = image_block(PICTURES / "scene.png")
COLOR = Choice(
    instructions="What color is the shape with number 18?",
    criteria={"red": None, "orange": None, "blue": None},
)


@pytest.fixture(scope="module")
def decisions() -> SGLDecisionModel:
    return SGLDecisionModel()


def test_answers_reports_and_usage(decisions: SGLDecisionModel) -> None:
    count = Score(instructions="How many stars are there?", criteria=["0", "1", "2", "3"])
    asked = {"color": COLOR, "count": count, "where": Box(instructions=COLOR.instructions)}
    response = decisions.invoke({"state": {"page": [SCENE]}, "questions": asked})  # type: ignore[typeddict-item]
    assert isinstance(response, SGLDecisionResponse)
    assert list(response.answers) == list(response.reports) == ["color", "count", "where"]
    assert response.refusals == {}
    assert response.choices["color"].choice == "orange"
    assert response.scores["count"].legend == {0: "0", 1: "1", 2: "2", 3: "3"}
    assert response.boxes["where"].confidence is not None
    assert response.reports["color"]["route"] in {"small", "large"}
    assert response.usage is not None
    assert 0 < response.usage["input_token_details"]["cache_read"] < response.usage["input_tokens"]


def test_settings_of_the_pair_are_the_pairs() -> None:
    forced = SGLDecisionModel(escalate="always")  # type: ignore[call-arg]
    assert (forced.chat.escalate, forced.model) == ("always", "sgl-demo")
    response: Any = forced.invoke({"state": [SCENE], "questions": {"color": COLOR}})  # type: ignore[typeddict-item]
    assert response.reports["color"]["route"] == "large"
    assert response.reports["color"]["policy"] == "forced"
    with pytest.raises(ValueError, match="escalate"):
        SGLDecisionModel(chat=ChatSGL(), escalate="never")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="no ChatSGL"):
        SGLDecisionModel(chat="gpt")


@pytest.mark.parametrize("kind", ["audio", "video", "file"])
def test_other_media_are_refused(decisions: SGLDecisionModel, kind: str) -> None:
    sound = {"type": kind, "base64": "AAAA", "mime_type": f"{kind}/x"}
    with pytest.raises(ModelInvalidRequestError, match=f"{kind}/x"):
        decisions.invoke({"state": {"deep": [sound]}, "questions": {"color": COLOR}})  # type: ignore[dict-item, list-item]
    asked = {"heard": Noul(instructions=["What is it?", sound]), "color": COLOR}  # type: ignore[list-item]
    response: Any = decisions.invoke({"state": [SCENE], "questions": asked})  # type: ignore[typeddict-item]
    assert list(response.answers) == ["color"]
    assert f"{kind}/x" in response.refusals["heard"]


def test_a_box_without_a_picture(decisions: SGLDecisionModel) -> None:
    where = Box(instructions="The star.")
    response: Any = decisions.invoke({"state": "text", "questions": {"where": where, "color": COLOR}})
    assert "no picture" in response.refusals["where"]
    with pytest.raises(ModelInvalidRequestError, match="no picture"):
        decisions.invoke({"state": "text", "questions": {"where": where}})


def test_how_many_questions(decisions: SGLDecisionModel) -> None:
    for count in (0, 401):
        with pytest.raises(ModelInvalidRequestError, match=f"{count} questions"):
            decisions.invoke({"state": "text", "questions": {str(n): COLOR for n in range(count)}})


def answering(probability: float, seen: list[Any]) -> Any:
    """Stands for ``decide``: notes what it is asked, and answers."""

    def decide(_: Any, request: Any, questions: Any, config: DecisionConfig) -> Decisions:
        seen.append((request, questions, config))
        return Decisions(dict.fromkeys(questions, YesNoAnswer(probability, 0.5)), {})

    return decide


def test_pictures_in_questions_go_along(decisions: SGLDecisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(model_module, "decide", answering(0.7, seen))
    criteria = NoulCriteria(true={"like": SCENE}, false="Anything else.")
    asked = Noul(instructions="Is it like that?", criteria=criteria)
    response = decisions.invoke({"state": HumanMessage(["Look: ", SCENE]), "questions": {"q": asked}})  # type: ignore[list-item]
    assert response.nouls["q"].noul == 0.7
    [(request, questions, config)] = seen
    assert config.form == "bare"
    assert [type(part) for part in request.messages[0].content] == [str, ImagePart]
    question = questions["q"]
    assert isinstance(question, YesNoQuestion)
    assert question.no == "Anything else."
    assert [type(part) for part in question.yes] == [str, ImagePart, str]  # type: ignore[union-attr]


def test_dictionaries_are_questions(decisions: SGLDecisionModel) -> None:
    asked: Any = {"color": COLOR.model_dump(), "bad": {"type": "guess"}}
    response: Any = decisions.invoke({"state": [SCENE], "questions": asked})  # type: ignore[typeddict-item]
    assert list(response.answers) == ["color"]
    assert "is no question" in response.refusals["bad"]


async def test_a_cancelled_task_stops(decisions: SGLDecisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def decide(_: Any, request: Any, *__: Any) -> Decisions:
        begun.set()
        assert request.cancel.wait(30)
        stopped.set()
        raise RequestCancelledError("It is over.", remedy="None.")

    monkeypatch.setattr(model_module, "decide", decide)
    task = asyncio.create_task(decisions.ainvoke({"state": "x", "questions": {"color": COLOR}}))
    assert await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(stopped.wait, 30)


def saying(text: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(text)] * 4))


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
@pytest.mark.parametrize(("number", "color"), [("18", "orange"), ("59", "purple")])
def test_a_router_goes_by_what_a_picture_shows(decisions: SGLDecisionModel, number: str, color: str) -> None:
    router = ModelRouterMiddleware(
        choices={name: ModelChoice(saying(name), None) for name in ("red", "orange", "purple")},
        instructions=f"What color is the shape with number {number}?",
        classifier=decisions,
    )
    agent: Any = create_agent(saying("nobody"), middleware=[router])
    state = agent.invoke({"messages": [HumanMessage([SCENE])]})  # type: ignore[list-item]
    assert state["messages"][-1].content == color
    assert state["model_route"].choice == color


class Calling(GenericFakeChatModel):
    """Calls a tool, and then is done."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        del tools
        return self


@pytest.mark.parametrize(("probability", "deleted"), [(0.9, []), (0.1, ["scan"])])
async def test_auto_mode_blocks_what_is_risky(
    decisions: SGLDecisionModel, monkeypatch: pytest.MonkeyPatch, probability: float, deleted: list[str]
) -> None:
    done: list[str] = []

    @tool
    def delete(name: str) -> str:
        """Delete a picture."""
        done.append(name)
        return "deleted"

    call = {"name": "delete", "args": {"name": "scan"}, "id": "1", "type": "tool_call"}
    for is_async in (False, True):
        done.clear()
        seen: list[Any] = []
        monkeypatch.setattr(model_module, "decide", answering(probability, seen))
        chat = Calling(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("Done.")]))  # type: ignore[list-item]
        guard = AutoModeMiddleware(tools=[delete], classifier=decisions)
        agent: Any = create_agent(chat, tools=[delete], middleware=[guard])
        given = {"messages": [HumanMessage([{"type": "text", "text": "Delete this."}, SCENE])]}  # type: ignore[list-item]
        state = await agent.ainvoke(given) if is_async else agent.invoke(given)
        assert done == deleted
        assert state["messages"][-1].content == "Done."
        [(request, questions, _)] = seen
        content = request.messages[0].content
        assert sum(isinstance(part, ImagePart) for part in content) == 1  # in a message, in an object
        assert '"tool_call": {"id": "1", "name": "delete"' in content[-1]
        assert isinstance(questions["is_risky"], YesNoQuestion)


def test_auto_mode_runs_on_the_real_pair(decisions: SGLDecisionModel) -> None:
    @tool
    def look(name: str) -> str:
        """Look at a picture."""
        return name

    call = {"name": "look", "args": {"name": "scan"}, "id": "1", "type": "tool_call"}
    chat = Calling(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("Done.")]))  # type: ignore[list-item]
    agent: Any = create_agent(
        chat, tools=[look], middleware=[AutoModeMiddleware(tools=[look], classifier=decisions)]
    )
    state = agent.invoke({"messages": [HumanMessage([SCENE])]})  # type: ignore[list-item]
    assert state["messages"][-1].content == "Done."


def test_the_pages_code_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "decisions.md"
    [code] = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    *most, last = code.strip().splitlines()
    scope: dict[str, Any] = {}
    exec("\n".join([*most[:-1], f"shown = [{most[-1]}, {last}]"]), scope)  # ours
    assert scope["response"].choices["color"].choice == "orange"
    assert not scope["response"].refusals
    assert len(scope["shown"]) == 6
