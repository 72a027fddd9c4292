"""What traces hold of pictures: those of ours nothing, LangChain's own nothing where they are hidden."""

import json
from typing import Any

import pytest
from hosted_models import Big, small
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tracers import LangChainTracer
from langsmith import Client
from langsmith.run_helpers import tracing_context
from PIL import Image

from langchain_sgl import (
    ChatSGL,
    EscalationBudgetMiddleware,
    LangChainModel,
    SGLFirstMiddleware,
    hide_pictures,
    image_block,
)
from sgl_engine.testing import FakeEngine

PICTURE = image_block(Image.effect_noise((40, 30), 80))
BYTES = PICTURE["base64"][40:80]
URL = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE['base64']}"}}
QUESTION = HumanMessage([PICTURE, URL, {"type": "text", "text": "How many, Rumpelstiltskin?"}])


class Post:
    """A session of LangSmith's client that keeps what would be sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def mount(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def request(self, method: str, url: str, **kwargs: Any) -> Any:
        if kwargs.get("data"):
            self.bodies.append(json.loads(kwargs["data"]))

        class Answer:
            status_code, text, content, headers = 200, "{}", b"{}", {}

            def json(self) -> dict[str, Any]:
                return {}

            def raise_for_status(self) -> None:
                pass

        return Answer()


def sent(*middleware: Any, anonymizer: Any = None) -> dict[str, str]:
    """What LangSmith is sent of one escalated call of an agent: by the run's name."""
    post: Any = Post()
    client = Client(
        "http://traces.invalid",
        api_key="key",
        session=post,
        auto_batch_tracing=False,
        anonymizer=anonymizer,
        info={},
    )
    agent: Any = create_agent(Big(), middleware=list(middleware))
    with tracing_context(enabled=True, client=client):
        agent.invoke({"messages": [QUESTION]}, {"callbacks": [LangChainTracer(client=client)]})
    names = {body["id"]: body["name"] for body in post.bodies if "id" in body and "name" in body}
    told: dict[str, str] = {}
    for body in post.bodies:
        name = names.get(body.get("id", ""), "update")
        told[name] = told.get(name, "") + json.dumps(body)
    return told


def first(**attributes: Any) -> SGLFirstMiddleware[Any, Any]:
    kind = type("First", (SGLFirstMiddleware,), attributes)
    return kind(  # type: ignore[no-any-return]
        chat=lambda model: ChatSGL(
            engine=FakeEngine(lambda _: "7", score=0.1, small=small(), large=LangChainModel(model))
        )
    )


BUDGET = EscalationBudgetMiddleware(run_escalations=3)
HOOKS = "before_agent before_model wrap_model_call after_agent".split()


def holders(told: dict[str, str], text: str = BYTES) -> set[str]:
    return {name for name, written in told.items() if text in written}


def test_middleware_and_child_runs_hold_no_picture() -> None:
    told = sent(BUDGET, first())
    ours = {"small model", "large model", "First.wrap_model_call"}
    ours |= {f"EscalationBudgetMiddleware.{hook}" for hook in HOOKS}
    assert ours < set(told)
    assert holders(told) == set(told) - ours == {"LangGraph", "model", "ChatSGL"}  # LangChain's own do


def test_without_the_policy_the_middleware_would_show_them() -> None:
    told = sent(first(trace_policy=None))
    assert "First.wrap_model_call" in holders(told)


def test_a_client_that_hides_pictures_is_sent_none_and_all_else() -> None:
    told = sent(BUDGET, first(), anonymizer=hide_pictures)
    assert holders(told) == set()
    assert holders(told, "data:image") == set()
    assert holders(told, "Rumpelstiltskin") == {"LangGraph", "model", "ChatSGL", "small model", "large model"}
    assert holders(told, "[picture]") >= {"LangGraph", "model", "ChatSGL"}


@pytest.mark.parametrize(
    "block",
    [
        *(PICTURE, URL, {"type": "input_image", "image_url": URL["image_url"]["url"]}),
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE["base64"]}},
        {"type": "file", "mime_type": "image/png", "base64": PICTURE["base64"]},
        {"type": "image", "url": "https://host/private.png"},
    ],
)
def test_pictures_of_every_form_are_hidden(block: Any) -> None:
    message = ToolMessage([block, {"type": "text", "text": "Look"}], tool_call_id="1")
    hidden = hide_pictures({"messages": [message]})["messages"][0]
    assert hidden.content == [{"type": "text", "text": "[picture]"}, {"type": "text", "text": "Look"}]
    assert message.content[0] == block  # the message itself is left alone
    assert hide_pictures(message.model_dump())["content"] == hidden.content


def test_what_is_no_picture_stays() -> None:
    payload = {
        "type": ["string", "null"],
        "n": 1,
        "text": "an image",
        "of": [None, {"type": "file", "id": "7"}],
    }
    assert hide_pictures(payload) == payload
    assert hide_pictures("data:image/png;base64,AAAA") == "[picture]"


ROW = "QUJD" * 19
LINES = f"data:image/png;base64,{ROW}\n{ROW}\nQQ=="


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("What is data:image/png;base64,QUJD/+== here?", "What is [picture] here?"),
        ("<img src='DATA:image/gif,R0lG'>", "<img src='[picture]'>"),
        ("![a](data:image/x;charset=utf-8,%41b)", "![a]([picture])"),
        (f"Look: {LINES}\nWhat is it?", "Look: [picture]\nWhat is it?"),
        (f"![a]({LINES}) and more", "![a]([picture]) and more"),
        (f"a data:image/png;base64,\n{ROW}\n{ROW} b", "a [picture] b"),
        (f"a data:image/png; base64, {ROW}\r\n  {ROW}\r\n  QUI=\r\nb", "a [picture]\r\nb"),
        (f"a data:image/png;base64,{ROW}\nHello\nWhat?", "a [picture]\nHello\nWhat?"),
        (f'{{"url": "data:image\\/png;base64,QU\\/D{ROW}\\n{ROW}\\nQQ=="}}', '{"url": "[picture]"}'),
        ('a data:image/svg+xml;charset="utf-8",<svg a="b">\n<g/></svg> b', "a [picture] b"),
        ("a data:image/svg+xml,%3Csvg a='b(c)'%3E%3Cg/%3E%3C/svg%3E b", "a [picture] b"),
        ("data:image/png;base64,QUJD What is it?", "[picture] What is it?"),
        ("the type data:image/png is no picture", "the type data:image/png is no picture"),
        ("data:image/png is a type, and no picture", "data:image/png is a type, and no picture"),
    ],
)  # fmt: skip
def test_data_urls_within_a_text_are_hidden(text: str, hidden: str) -> None:
    assert hide_pictures(HumanMessage(text)).content == hide_pictures(text) == hidden


def test_long_texts_take_no_long_time() -> None:
    """Alternatives that could each take the same characters would take hours here."""
    url = "data:image/png;base64,"
    for text in (url + "A" * 10**6, "data:image/a;" * 10**5, f"{LINES[:-4]}\n" * 5000, url + "\n" * 10**5):
        assert len(hide_pictures(text)) <= len(text)
    assert hide_pictures(f"{url}{ROW}\n" + "\n \t" * 10**5).startswith("[picture]")


def test_tool_calls_artifacts_and_documents_are_looked_through() -> None:
    url = "data:image/png;base64,QUJD"
    call = {"name": "look", "args": {"picture": url, "question": "What?"}, "id": "1", "type": "tool_call"}
    hidden = hide_pictures(AIMessage("", tool_calls=[call]))
    assert hidden.tool_calls[0]["args"] == {"picture": "[picture]", "question": "What?"}
    piece = {"name": "look", "args": f'{{"picture": "{url}', "id": "1", "index": 0, "type": "tool_call_chunk"}
    chunk = hide_pictures(AIMessageChunk("", tool_call_chunks=[piece]))
    assert chunk.tool_call_chunks[0]["args"] == '{"picture": "[picture]'
    block = {"type": "image_url", "image_url": {"url": url}}
    page = Document(f"see {url}", metadata={"thumbnail": url, "page": 3})
    answer = ToolMessage("8", tool_call_id="1", artifact={"crop": block, "pages": [page], "raw": b"\x89PNG"})
    told = hide_pictures(answer).artifact
    assert told["crop"] == {"type": "text", "text": "[picture]"}
    assert (told["pages"][0].page_content, told["raw"]) == ("see [picture]", "[bytes]")
    assert told["pages"][0].metadata == {"thumbnail": "[picture]", "page": 3}
    assert (answer.artifact["crop"], page.page_content) == (block, f"see {url}")  # themselves as they were
