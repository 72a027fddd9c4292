"""Bad calls of the tools: what an agent could mend is told to it, everything else is raised."""

import base64
import socket
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import ToolException
from recording_model import PNG, PNG_BASE64, QUESTION, RecordingModel, acall, call

from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.tools.toolkit import SGLToolkit, TranscribeTool, VisualQuestionTool
from sgl_engine.config import LimitsConfig
from sgl_engine.demo import PICTURES, demo_engine
from sgl_engine.errors import ConfigError, DeadlineError, OverloadedError, RequestCancelledError


@pytest.fixture
def model(make_report: Any) -> RecordingModel:
    return RecordingModel(report=make_report().model_dump(mode="json"))


# References


def test_pictures_come_from_a_store_and_a_folder(model: RecordingModel) -> None:
    tool = VisualQuestionTool(model=model, root=PICTURES, store={"scan-1": PNG})
    for reference in ("scan-1", "receipt.png", PNG_BASE64):
        assert call(tool, question=QUESTION, picture=reference).status == "success"
        assert base64.b64decode(model.block()["base64"]) == PNG


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("recept.png", "Near that name: 'receipt.png'"),
        ("../glyphs.npz", "leads out of the picture folder"),
        ("questions.json", "cannot be read as a picture"),
        ("http://example.com/a.png", "allowed: https"),
        ("https://inside.example/a.png", "127.0.0.1, which is not public"),
        ("data:image/png;base64,AAAA", "cannot be read as a picture"),
        ("gone", "does not exist"),
    ],
)
async def test_a_bad_picture_is_told_to_the_agent(
    reference: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    store = {"gone": PICTURES / "gone.png"}
    tool = VisualQuestionTool(model=ChatSGL(), root=PICTURES, store=store)
    for answer in (
        call(tool, question=QUESTION, picture=reference),
        await acall(tool, question=QUESTION, picture=reference),
    ):
        assert answer.status == "error"
        assert message in str(answer.content)
        assert answer.artifact is None


def test_a_picture_over_the_limits_is_not_read() -> None:
    for model in (
        ChatSGL(limits=LimitsConfig(max_image_bytes=100)),
        ChatSGL(limits=LimitsConfig(max_image_bytes=100)).bind(temperature=0.0),
        ChatSGL(engine=_small_limits()),
    ):
        tool = VisualQuestionTool(model=model, root=PICTURES)
        for region in (None, [0.0, 0.0, 0.5, 0.5]):
            answer = call(tool, question=QUESTION, picture="receipt.png", region=region)
            assert answer.status == "error"
            assert "the limit is 100" in str(answer.content)


def _small_limits() -> Any:
    engine = demo_engine()
    return engine.with_config(engine.config.model_copy(update={"limits": LimitsConfig(max_image_bytes=100)}))


# Errors


def test_wrong_arguments_are_explained(model: RecordingModel) -> None:
    message = call(VisualQuestionTool(model=model), question=QUESTION)
    assert message.status == "error"
    assert message.content == (
        "The call's arguments are wrong (picture: Field required). Correct them and call again."
    )


def test_errors_can_be_raised_instead() -> None:
    tool = VisualQuestionTool(model=ChatSGL(), root=PICTURES, handle_tool_error=False)
    with pytest.raises(ToolException, match="Near that name"):
        call(tool, question=QUESTION, picture="recept.png")


@pytest.mark.parametrize("kind", [RuntimeError, RequestCancelledError, ConfigError])
async def test_errors_that_no_agent_could_mend_are_raised(kind: Any, model: RecordingModel) -> None:
    model.error = kind("a.") if kind is RuntimeError else kind("a.", remedy="b.")
    for tool in SGLToolkit(model=model, root=PICTURES).get_tools():
        arguments = {"picture": "receipt.png"} | ({"question": QUESTION} if "question" in tool.args else {})
        with pytest.raises(kind):
            tool.invoke(arguments)
        with pytest.raises(kind):
            await tool.ainvoke(arguments)


def test_a_late_answer_is_told_to_the_agent(model: RecordingModel) -> None:
    model.error = DeadlineError("Too late.", remedy="Ask again.")
    message = call(TranscribeTool(model=model, root=PICTURES), picture="receipt.png")
    assert message.status == "error"
    assert "not enough time" in str(message.content)


def test_a_folder_that_does_not_exist_is_an_error_of_the_set_up(model: RecordingModel) -> None:
    tool = VisualQuestionTool(model=model, root=Path("/absent"))
    with pytest.raises(ConfigError, match="/absent"):
        call(tool, question=QUESTION, picture="receipt.png")


@pytest.mark.parametrize("evidence", ["none", "box"])
def test_another_model_is_an_error_of_the_set_up(evidence: Any) -> None:
    other = GenericFakeChatModel(messages=iter([AIMessage("42")]))
    with pytest.raises(ConfigError, match="answered without a report"):
        call(
            VisualQuestionTool(model=other, root=PICTURES, evidence=evidence),
            question=QUESTION,
            picture="receipt.png",
        )


async def test_an_agent_is_told_what_it_can_do_about_time_and_load(model: RecordingModel) -> None:
    for error, advice in (
        (DeadlineError("Late.", remedy="Set a later deadline."), "Ask for less"),
        (OverloadedError("Full.", remedy="Raise max_queue."), "Ask again later"),
    ):
        model.error = error
        for tool in SGLToolkit(model=model, root=PICTURES).get_tools():
            arguments = {"question": QUESTION} if isinstance(tool, VisualQuestionTool) else {}
            for answer in (
                call(tool, picture="receipt.png", **arguments),
                await acall(tool, picture="receipt.png", **arguments),
            ):
                assert answer.status == "error"
                assert advice in str(answer.content)
                assert error.remedy not in str(answer.content)  # nothing that an agent could do
