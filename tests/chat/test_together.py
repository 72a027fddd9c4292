"""Features that are right alone, together: budgets and streams, caches and failures, decisions and both."""

import asyncio
import base64
import gc
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.decisions import Noul
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import ConfigurableField
from PIL import Image
from recording_model import PNG

from langchain_sgl import (
    ChatSGL,
    IncompleteIndexError,
    InMemoryPictureStore,
    LangChainModel,
    SGLDecisionModel,
    SGLImageIndexer,
    SGLUsageCallbackHandler,
    forget_engines,
    image_block,
)
from langchain_sgl.budget.gate import limit_escalation
from langchain_sgl.budget.ledger import Budget, Ledger
from langchain_sgl.chat.image_blocks import file_versions
from langchain_sgl.chat.pair import _MOST_OBJECTS, _slots
from langchain_sgl.reranking.reranker import _page, find_picture
from langchain_sgl.usage.callbacks import attached
from sgl_engine import (
    ConfigError,
    EngineConfig,
    ImageLimitError,
    InvalidRequestError,
    LimitsConfig,
    Request,
    SchedulerConfig,
    SGLEngine,
)
from sgl_engine.testing import FakeEngine, FakeHostedModel, tiny_vlm

SMALL, LARGE = tiny_vlm(size="small"), tiny_vlm(size="large")


def unsure(large: Any = LARGE, **settings: Any) -> ChatSGL:
    config = settings.pop("config", EngineConfig())
    engine = FakeEngine(lambda request: "small", score=0.1, small=SMALL, large=large, config=config)
    return ChatSGL(engine=engine, **settings)


def asked(question: str = "what?") -> list[BaseMessage]:
    return [HumanMessage([image_block(PNG), question])]


def routes(messages: list[Any]) -> list[str]:
    return [message.response_metadata["sgl"]["route"] for message in messages]


def ledger(escalations: int) -> Ledger:
    return Ledger(Budget({("run", "escalations"): escalations}))


@pytest.mark.parametrize("streaming", [None, True])
def test_calls_that_stream_inside_count_once(streaming: bool | None) -> None:
    chat, kept = unsure(streaming=streaming), ledger(3)
    with attached(kept), limit_escalation(kept):
        answers = [chat.invoke(asked(f"{number}?")) for number in range(4)]
    assert routes(answers) == ["large", "large", "large", "small"]
    assert kept.account().run.escalations == kept.take_unrecorded().escalations == 3


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.runs: list[Any] = []

    def on_chat_model_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.runs.append(run_id)

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **_: Any) -> None:
        self.events.append((name, run_id))


@pytest.mark.parametrize("given", ["to the call", "to the model"])
@pytest.mark.parametrize("call", ["invoke", "stream", "invoke that streams"])
def test_who_listens_hears_of_escalations_in_every_way_to_call(given: str, call: str) -> None:
    listener = Listener()
    streaming = True if call == "invoke that streams" else None
    chat = unsure(streaming=streaming, callbacks=[listener] if given == "to the model" else None)
    config: Any = {"callbacks": [listener]} if given == "to the call" else {}
    list(chat.stream(asked(), config)) if call == "stream" else chat.invoke(asked(), config)
    assert len(listener.runs) == 1
    assert listener.events == [("sgl_escalated", listener.runs[0])]


async def test_a_cancelled_call_is_heard_of() -> None:
    begun = asyncio.Event()
    loop, usage = asyncio.get_running_loop(), SGLUsageCallbackHandler()

    def slow(request: Request) -> str:
        loop.call_soon_threadsafe(begun.set)
        assert request.cancel is not None
        assert request.cancel.wait(60)
        return "late"

    chat = ChatSGL(engine=FakeEngine(slow, score=1.0, small=SMALL, large=LARGE))
    task = asyncio.create_task(chat.ainvoke(asked(), {"callbacks": [usage]}))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (usage.totals.cancelled, usage.totals.errors, usage._running) == (1, 0, set())


def flaky(**settings: Any) -> ChatSGL:
    return unsure(LangChainModel(FailsOnce()), config=EngineConfig(on_large_error="keep"), **settings)


class FailsOnce(BaseChatModel):
    failures: int = 1

    @property
    def _llm_type(self) -> str:
        return "fails once"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError  # LangChain wants the method; only the one below is called

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("down for a moment")
        yield ChatGenerationChunk(message=AIMessageChunk("eight", chunk_position="last"))


async def test_an_answer_kept_for_want_of_the_large_model_is_not_cached() -> None:
    for asynchronous in (False, True):
        chat = flaky(cache=InMemoryCache())
        said = [(await chat.ainvoke(asked()) if asynchronous else chat.invoke(asked())) for _ in range(3)]
        assert [message.text for message in said] == ["small", "eight", "eight"]
        assert said[1].response_metadata["sgl"]["stage_ms"] == said[2].response_metadata["sgl"]["stage_ms"]


def test_nor_is_it_remembered_by_an_index(tmp_path: Path) -> None:
    pictures = [("a", PNG)]
    indexer = SGLImageIndexer(pictures, model=flaky(), retention=None, manifest=tmp_path / "index.db")
    [first], [second], [third] = indexer.load(), indexer.load(), indexer.load()
    assert [each.page_content for each in (first, second, third)] == ["small", "eight", "eight"]
    assert first.id != second.id == third.id  # or a store would keep the first
    assert [removed.id for removed in indexer.removed()] == [first.id]
    assert indexer.progress.asked == 0


def test_nor_is_one_that_a_budget_refused_meanwhile() -> None:
    chat, spent = unsure(cache=InMemoryCache(), streaming=True), ledger(1)
    questions = [asked("one?"), asked("two?"), asked("three?")]
    with attached(spent), limit_escalation(spent):
        assert sorted(routes(chat.batch(questions))) == ["large", "small", "small"]
    fresh = ledger(3)
    with attached(fresh), limit_escalation(fresh):
        assert routes([chat.invoke(question) for question in questions]) == ["large"] * 3
    assert fresh.account().run.escalations == 2  # one was cached


def test_the_cache_knows_that_a_file_has_changed(tmp_path: Path) -> None:
    def color(request: Request) -> str:
        return str(request.images[0].source.getpixel((0, 0)))  # type: ignore[union-attr]

    engine = FakeEngine(color, score=1.0, small=SMALL, large=LARGE)
    chat = ChatSGL(engine=engine, image_root=tmp_path, cache=InMemoryCache())
    for block in (
        {"type": "image", "path": "latest.png"},
        {"type": "image_url", "image_url": "file:latest.png"},
    ):
        said = []
        for paint in ("red", "blue", None):
            if paint is not None:
                Image.new("RGB", (20, 20), paint).save(tmp_path / "latest.png")
            said.append(chat.invoke([HumanMessage([block, "?"])]))
        assert [message.text for message in said] == ["(255, 0, 0)", "(0, 0, 255)", "(0, 0, 255)"]
        assert said[1].id == said[2].id  # the last one from the cache


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": "AAAA"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    ],
)
def test_pictures_in_messages_are_not_decoded_to_see_whether_they_are_files(
    block: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    monkeypatch.setattr("langchain_sgl.chat.image_blocks.decode_base64", decoded.append)
    assert (file_versions([HumanMessage([block])], None), decoded) == ("", [])


def test_every_question_of_a_decision_counts() -> None:
    chat = ChatSGL(engine=SGLEngine(SMALL, LARGE), exit_threshold=1.0)
    kept, usage = ledger(2), SGLUsageCallbackHandler()
    questions = {f"{number}": Noul(instructions=f"is it {number}?") for number in range(4)}
    with attached(kept), limit_escalation(kept), attached(usage):
        model = SGLDecisionModel(chat=chat)
        response: Any = model.invoke({"state": {"it": image_block(PNG)}, "questions": questions})
        again: Any = model.invoke({"state": {"it": image_block(PNG)}, "questions": questions})
    assert sorted(report["route"] for report in response.reports.values()) == ["large"] * 2 + ["small"] * 2
    assert {report["route"] for report in again.reports.values()} == {"small"}
    spent = kept.take_unrecorded()
    assert spent.escalations == usage.totals.escalations == 2
    reports = [*response.reports.values(), *again.reports.values()]
    assert spent.tflops == pytest.approx(sum(each["small_tflops"] + each["large_tflops"] for each in reports))
    assert not kept._escalating


def test_decisions_keep_tenants_apart() -> None:
    engine = SGLEngine(SMALL, LARGE)
    picture = io.BytesIO()
    Image.new("RGB", (24, 20), "teal").save(picture, "PNG")
    state = {"it": image_block(picture.getvalue())}
    hits = []
    for salt in ("a", "b", "b"):
        model = SGLDecisionModel(chat=ChatSGL(engine=engine, escalate="never", cache_salt=salt))
        model.invoke({"state": state, "questions": {"q": Noul(instructions="is it?")}})
        hits.append(engine.cache_info()["small"].feature_hits)
    assert hits[0] == hits[1] < hits[2]


def test_a_ready_engine_can_be_configured_and_is_known_by_what_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGL_SMALL", "some/model")
    chat = unsure()
    threshold = ConfigurableField(id="threshold")
    adjustable = chat.configurable_fields(exit_threshold=threshold)
    assert routes([adjustable.invoke(asked())]) == ["large"]
    assert routes([adjustable.with_config(configurable={"threshold": 0.05}).invoke(asked())]) == ["small"]
    monkeypatch.delenv("SGL_SMALL")
    queued = unsure(config=EngineConfig(scheduler=SchedulerConfig(max_queue=7)))
    assert chat._get_llm_string() == unsure()._get_llm_string() == queued._get_llm_string()
    assert chat._get_llm_string() != unsure(config=EngineConfig.preset("9%"))._get_llm_string()


class TwoCalls(FailsOnce):
    """Streams two tool calls, whole, as providers do that give them no index."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self.bind(tools=tools, **options)

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        pieces: list[tuple[Any, Any, str]] = [
            ("c0", "f", '{"a": '),
            (None, None, "0}"),
            ("c1", "f", '{"a": 1}'),
        ]
        for name, tool, arguments in pieces:
            piece: Any = {
                "type": "tool_call_chunk",
                "id": name,
                "name": tool,
                "args": arguments,
                "index": None,
            }
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[piece]))
        yield ChatGenerationChunk(message=AIMessageChunk("", chunk_position="last"))


def test_calls_of_a_hosted_model_that_gives_them_no_index_stay_apart() -> None:
    def f(a: int) -> int:
        """Returns it."""
        return a

    message = unsure(LangChainModel(TwoCalls())).bind_tools([f]).invoke(asked())
    assert [(call["id"], call["args"]) for call in message.tool_calls] == [("c0", {"a": 0}), ("c1", {"a": 1})]
    assert not message.invalid_tool_calls


def test_hosted_models_share_a_small_one_and_are_forgotten_some_time() -> None:
    forget_engines()
    large = [FakeHostedModel("eight") for _ in range(_MOST_OBJECTS + 2)]
    chats = [ChatSGL(large=each) for each in large]
    engines = [chat.engine for chat in chats]
    assert len({id(engine.small) for engine in engines}) == 1
    assert len(_slots) == _MOST_OBJECTS
    assert chats[-1].engine is engines[-1]
    assert chats[0].engine is not engines[0]  # made anew, with the same small model
    assert chats[0].engine.small is engines[0].small
    del engines, chats, large
    forget_engines()
    gc.collect()


def test_kept_tokens_of_a_hosted_model_are_not_made_up() -> None:
    usage = SGLUsageCallbackHandler()
    unsure(FakeHostedModel("eight")).invoke(asked(), {"callbacks": [usage]})
    assert usage.totals.escalations == 1
    assert (usage.totals.kept_visual_tokens, usage.totals.pruned_visual_tokens) == (0, 0)


def test_text_that_begins_like_a_data_url_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for text in ("Data: 12/03/2026, totale 4,20", "data:12/03, totale"):
        document = Document(text, metadata={"source": "a.png"})
        assert find_picture(document, root=tmp_path) == tmp_path / "a.png"
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert find_picture(Document(url, metadata={"source": "a.png"}), root=tmp_path) == url


def test_the_page_of_a_file_in_a_data_url_is_found() -> None:
    file, pages = io.BytesIO(), [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    url = f"data:image/tiff;base64,{base64.b64encode(file.getvalue()).decode()}"
    for number, color in enumerate(((255, 0, 0), (0, 0, 255))):
        page: Any = _page(Document("", metadata={"page": number, "total_pages": 2}), url, LimitsConfig())
        assert Image.open(io.BytesIO(page)).convert("RGB").getpixel((0, 0)) == color


def test_an_index_takes_what_its_engine_takes() -> None:
    limits = LimitsConfig(max_image_side=10)
    indexer = SGLImageIndexer([("a", PNG)], model=unsure(config=EngineConfig(limits=limits)), retention=None)
    assert indexer.load() == []
    assert [type(failure.error) for failure in indexer.errors] == [ImageLimitError]


def test_an_iterator_of_pictures_serves_one_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    indexer = SGLImageIndexer(tmp_path.glob("*.png"), model=unsure(), retention=None)
    assert len(list(indexer.lazy_load())) == 1
    for again in (
        (indexer.lazy_load(), iter(indexer)) if hasattr(indexer, "__iter__") else (indexer.lazy_load(),)
    ):
        with pytest.raises(ConfigError, match="an iterator"):
            list(again)
    for nothing in (tmp_path.glob("*.jpg"), []):
        with pytest.raises(IncompleteIndexError, match="no picture among what was given"):
            list(SGLImageIndexer(nothing, model=unsure(), retention=None).lazy_load())


def test_a_tool_without_a_name_is_refused() -> None:
    for tool in ({"type": "function", "function": {"description": "x"}}, {"type": "function", "function": 3}):
        with pytest.raises(InvalidRequestError, match="has no name"):
            unsure().bind(tools=[tool]).invoke(asked())


def test_a_store_takes_bytes_of_both_kinds() -> None:
    store, changing = InMemoryPictureStore(), bytearray(PNG)
    name = store.add(changing)
    assert name == store.add(PNG)
    changing[:8] = b"\0" * 8
    assert store.get(name) == PNG
