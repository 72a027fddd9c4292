import asyncio
import base64
import io
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.exceptions import ModelInvalidRequestError
from PIL import Image
from pydantic import ValidationError

from langchain_sgl.budget.gate import limit_escalation
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.reranking.reranker import SGLImageReranker, _page, find_picture
from langchain_sgl.usage.callbacks import get_sgl_usage_callback
from sgl_engine import LimitsConfig, Request, SGLEngine
from sgl_engine.demo import demo_engine
from sgl_engine.demo.pages import Page, PageDocument, draw_page
from sgl_engine.errors import (
    ConfigError,
    CorruptImageError,
    DeadlineError,
    InvalidRequestError,
    MissingImageError,
    ProcessorError,
    RequestCancelledError,
    UnsafePathError,
)
from sgl_engine.relevance import YES_OR_NO
from sgl_engine.response import AnswerScores
from sgl_engine.testing import tiny_vlm

SEEDS = (3, 5, 8, 11)


def drawn(seed: int) -> Page:
    return draw_page(seed, tiles=1, only=["document"])


def receipt(seed: int) -> PageDocument:
    """What the page says: a receipt or a note."""
    (document,) = drawn(seed).contents
    assert isinstance(document, PageDocument)
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipts")
    for seed in SEEDS:
        Image.fromarray(drawn(seed).pixels).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def documents() -> list[Document]:
    return [Document(f"text {seed}", id=f"id-{seed}", metadata={"source": f"{seed}.png"}) for seed in SEEDS]


@pytest.fixture(scope="module")
def tiny() -> SGLEngine:
    return SGLEngine(tiny_vlm(size="small"), tiny_vlm(size="large"))


def question_for(seed: int) -> str:
    """About a word that stands on this picture and on no other."""
    others = {label for other in SEEDS if other != seed for label, _ in receipt(other).lines}
    label = next(label for label, _ in receipt(seed).lines if label not in others)
    return f"{label} price" if receipt(seed).is_receipt else f"{label} value"


def order(documents: Any) -> list[str]:
    return [document.metadata["source"] for document in documents]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_picture_that_answers_comes_first(folder: Path, documents: list[Document], seed: int) -> None:
    ranked = SGLImageReranker(root=folder).compress_documents(documents, question_for(seed))
    assert order(ranked)[0] == f"{seed}.png"
    assert sorted(order(ranked)) == sorted(order(documents))
    scores = [document.metadata["relevance_score"] for document in ranked]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.5 > scores[-1]
    assert all(0 <= score <= 1 for score in scores)
    first = ranked[0]
    assert (first.id, first.page_content) == (f"id-{seed}", f"text {seed}")
    assert first.metadata["sgl_relevance"]["visual_tokens"] == 144
    assert "relevance_score" not in documents[0].metadata  # what was given stays as it was


bundled = cache(demo_engine)


def none_probability(folder: Path, document: Document, question: str, model: Any) -> float:
    request = Request.ask(question, folder / document.metadata["source"])
    return bundled().score_answers(request, ["none"], model=model).probabilities[0]


def test_the_bundled_pairs_score_is_how_unlikely_none_is(folder: Path, documents: list[Document]) -> None:
    question = question_for(SEEDS[0])
    for document in SGLImageReranker(root=folder).compress_documents(documents, question):
        model = document.metadata["sgl_relevance"]["route"]
        none = none_probability(folder, document, question, model)
        assert document.metadata["relevance_score"] == pytest.approx(1 - none, abs=1e-6)


def test_other_pairs_are_asked_yes_or_no(
    folder: Path, documents: list[Document], tiny: SGLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []
    original = SGLEngine.score_answers

    def spy(self: SGLEngine, request: Request, answers: list[str], **options: Any) -> AnswerScores:
        asked.append((str(request.messages[0].content[1]), list(answers)))
        return original(self, request, answers, **options)

    monkeypatch.setattr(SGLEngine, "score_answers", spy)
    reranker = SGLImageReranker(model=ChatSGL(engine=tiny, escalate="never"), root=folder)
    ranked = reranker.compress_documents(documents, "How much?")
    prompt = 'Can this picture answer the question "How much?"? Answer Yes or No.'
    assert asked == [(prompt, ["Yes", "No"])] * 4
    for document in ranked:
        request = Request.ask(prompt, folder / document.metadata["source"])
        yes, no = tiny.score_answers(request, ["Yes", "No"], model="small").probabilities
        assert document.metadata["relevance_score"] == pytest.approx(yes / (yes + no))
    assert len({document.metadata["relevance_score"] for document in ranked}) == 4


def test_prompt_and_answers_can_be_set(tiny: SGLEngine) -> None:
    model = ChatSGL(engine=tiny)
    default = SGLImageReranker(model=model)
    assert (default.prompt, default.positive, default.negative) == (YES_OR_NO, "Yes", "No")
    for bundled in (SGLImageReranker(), SGLImageReranker(model=ChatSGL(engine=demo_engine()))):
        assert (bundled.prompt, bundled.positive, bundled.negative) == ("{query}", None, "none")
    own = SGLImageReranker(prompt="{query}?", positive="ja", negative="nein")
    assert (own.prompt, own.positive, own.negative) == ("{query}?", "ja", "nein")


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "no place for it", "negative": "no"},
        {"negative": "no"},
        {"prompt": "{query}", "positive": "yes"},
        {"prompt": "{query}", "positive": "", "negative": "no"},
        {"top_n": 0},
        {"min_score": 1.5},
        {"max_concurrency": 0},
        {"unknown": 1},
    ],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SGLImageReranker(**options)


def test_a_store_that_is_none() -> None:
    with pytest.raises(ConfigError, match="picture store"):
        SGLImageReranker(store=3)


def test_how_many_and_how_good(folder: Path, documents: list[Document]) -> None:
    question = question_for(SEEDS[1])
    every = SGLImageReranker(root=folder).compress_documents(documents, question)
    few = SGLImageReranker(root=folder, top_n=2).compress_documents(documents, question)
    assert order(few) == order(every)[:2]
    assert [document.metadata["relevance_score"] for document in few] == pytest.approx(
        [document.metadata["relevance_score"] for document in every[:2]]
    )
    good = SGLImageReranker(root=folder, min_score=0.5).compress_documents(documents, question)
    assert order(good) == [d.metadata["source"] for d in every if d.metadata["relevance_score"] >= 0.5]
    assert 0 < len(good) < 4


def test_pictures_that_cannot_be_used_come_last(folder: Path, documents: list[Document]) -> None:
    bad = [
        Document("", metadata={"source": "gone.png"}),
        Document("no picture at all"),
        Document("https://example.com/text-is-not-fetched.png"),
        Document("", metadata={"source": "../outside.png"}),
        Document("", metadata={"image_url": "data:image/png;base64,iVBORw0KGgo="}),
        Document("", metadata={"image_url": "http://example.com/x.png"}),
    ]
    given = [bad[0], *documents, *bad[1:]]
    question = question_for(SEEDS[0])
    ranked = SGLImageReranker(root=folder).compress_documents(given, question)
    assert order(ranked[:4]) == order(SGLImageReranker(root=folder).compress_documents(documents, question))
    assert [document.metadata["relevance_score"] for document in ranked[4:]] == [None] * 6
    kinds = [document.metadata["relevance_error"].partition(":")[0] for document in ranked[4:]]
    assert kinds == [
        "MissingImageError",
        "MissingImageError",
        "MissingImageError",
        "UnsafePathError",
        "CorruptImageError",
        "UnsafeUrlError",
    ]
    dropping = SGLImageReranker(root=folder, unreadable="drop").compress_documents(given, question)
    assert order(dropping) == order(ranked[:4])
    strict = SGLImageReranker(root=folder, min_score=0.0, top_n=6).compress_documents(given, question)
    assert [document.metadata["relevance_score"] for document in strict[4:]] == [None, None]


def test_without_a_root_no_file_is_read(folder: Path, documents: list[Document]) -> None:
    absolute = [Document("", metadata={"source": str(folder / "3.png")})]
    for given in (documents, absolute):
        ranked = SGLImageReranker().compress_documents(given, "milk price")
        assert {document.metadata["relevance_score"] for document in ranked} == {None}
    assert SGLImageReranker(root=folder).compress_documents(absolute, "x")[0].metadata["relevance_score"]


def test_where_pictures_are_found(folder: Path) -> None:
    data = (folder / "3.png").read_bytes()
    encoded = base64.b64encode(data).decode()
    assert find_picture(Document(encoded)) == data
    assert find_picture(Document(f"data:image/png;base64,{encoded}")) == f"data:image/png;base64,{encoded}"
    for url in ("https://example.com/a.png", {"url": "https://example.com/a.png"}):
        assert find_picture(Document("", metadata={"image_url": url})) == "https://example.com/a.png"
    inside = Document("text", metadata={"source": "5.png"})
    assert find_picture(inside, root=folder) == (folder / "5.png").resolve()
    reranker = SGLImageReranker(store={"5.png": data, "id-7": b"seven"})
    assert find_picture(inside, root=folder, store=reranker.store) == data  # the caller's names win
    assert find_picture(Document("text", id="id-7"), store=reranker.store) == b"seven"
    with pytest.raises(MissingImageError, match="names no picture"):
        find_picture(Document("text", id="id-8"), store=reranker.store)
    with pytest.raises(UnsafePathError):
        find_picture(Document("", metadata={"source": "/etc/passwd"}), root=folder)


@pytest.mark.parametrize(
    ("metadata", "page"),
    [
        ({"page": 1, "total_pages": 2}, 1),
        ({"page": 1.0, "total_pages": 2.0}, 1),  # of a store that returns all numbers as floats
        ({"page": 1}, 1),
        ({"page": 0}, 0),
        ({}, None),
        ({"page": 1.5}, None),
    ],
)
def test_the_page_of_a_document_is_looked_at(metadata: Any, page: int | None, tmp_path: Path) -> None:
    file = tmp_path / "x.tiff"
    colours = ["red", "blue"]
    first, second = (Image.new("RGB", (8, 8), colour) for colour in colours)
    first.save(file, save_all=True, append_images=[second])
    found = _page(Document("", metadata=metadata), file, LimitsConfig())
    if page is None:
        assert found is file
    else:
        assert isinstance(found, bytes)
        expected = Image.new("RGB", (1, 1), colours[page]).getpixel((0, 0))
        assert Image.open(io.BytesIO(found)).getpixel((0, 0)) == expected


def test_a_page_that_is_a_file_of_its_own_is_that_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "page-7.png")
    found = _page(Document("", metadata={"page": 7}), tmp_path / "page-7.png", LimitsConfig())
    assert found == (tmp_path / "page-7.png").read_bytes()


def test_a_bad_query_is_the_callers_fault(folder: Path, documents: list[Document]) -> None:
    reranker = SGLImageReranker(root=folder)
    with pytest.raises(InvalidRequestError) as caught:
        reranker.compress_documents(documents, "  ")
    assert isinstance(caught.value, ModelInvalidRequestError)
    assert reranker.compress_documents(documents, "milk <|end|> price")  # a control token's name is text
    with pytest.raises(ConfigError, match="is not a folder"):
        SGLImageReranker(root=folder / "nowhere").compress_documents(documents, "milk price")
    assert reranker.compress_documents([], "milk price") == []


def test_braces_in_a_query_are_text(folder: Path, documents: list[Document]) -> None:
    ranked = SGLImageReranker(root=folder).compress_documents(documents, "what is {0} {label}")
    assert all(document.metadata["relevance_score"] is not None for document in ranked)


def test_equal_scores_keep_their_order(folder: Path) -> None:
    same = [Document(str(n), metadata={"source": "3.png"}) for n in range(6)]
    ranked = SGLImageReranker(root=folder).compress_documents(same, "milk price")
    assert [document.page_content for document in ranked] == list("012345")


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.runs: list[str] = []
        self.errors: list[BaseException] = []

    def on_chain_start(self, *arguments: Any, name: str = "", **options: Any) -> None:
        self.runs.append(name)

    def on_chat_model_start(self, serialized: Any, messages: Any, **options: Any) -> None:
        self.runs.append(messages[0][0].text)

    def on_llm_error(self, error: BaseException, **options: Any) -> None:
        self.errors.append(error)


def test_runs_are_seen_and_counted(folder: Path, documents: list[Document]) -> None:
    recorder = Recorder()
    question = question_for(SEEDS[2])
    bad = Document("", metadata={"image_url": "data:image/png;base64,iVBORw0KGgo="})
    with get_sgl_usage_callback() as usage:
        reranker = SGLImageReranker(root=folder, model=ChatSGL(escalate="never"))
        ranked = reranker.compress_documents([*documents, bad], question, callbacks=[recorder])
    assert recorder.runs[0] == "SGLImageReranker"
    assert recorder.runs[1:] == [f"{question} (likelihood of 'none')"] * 5
    assert [type(error).__name__ for error in recorder.errors] == ["CorruptImageError"]
    assert isinstance(recorder.errors[0], CorruptImageError)
    reports = [document.metadata["sgl_relevance"] for document in ranked[:4]]
    assert (usage.totals.calls, usage.totals.errors, usage.totals.escalations) == (4, 1, 0)
    assert usage.totals.tflops == pytest.approx(sum(report["small_tflops"] for report in reports))
    with get_sgl_usage_callback() as usage:
        unsettled = SGLImageReranker(root=folder, model=ChatSGL(exit_threshold=1.0))
        unsettled.compress_documents(documents, question)
    assert (usage.totals.calls, usage.totals.escalations) == (8, 4)  # each is scored again


def test_budgets_hold(folder: Path, documents: list[Document]) -> None:
    class OnlyOnce:
        def __init__(self) -> None:
            self.left = 1
            self.lock = threading.Lock()

        def is_open(self) -> bool:
            return self.left > 0

        def take(self, run_id: Any) -> bool:
            with self.lock:
                self.left -= 1
                return self.left >= 0

    reranker = SGLImageReranker(root=folder, model=ChatSGL(escalate="always"))
    free = reranker.compress_documents(documents, "milk price")
    assert [document.metadata["sgl_relevance"]["route"] for document in free] == ["large"] * 4
    with limit_escalation(OnlyOnce()):
        limited = reranker.compress_documents(documents, "milk price")
    routes = sorted(document.metadata["sgl_relevance"]["route"] for document in limited)
    assert routes == ["large", "small", "small", "small"]


def test_the_models_own_route_is_kept(folder: Path, documents: list[Document]) -> None:
    for model, route in ((ChatSGL(escalate="never"), "small"), (ChatSGL(model="sgl-demo-large"), "large")):
        ranked = SGLImageReranker(root=folder, model=model).compress_documents(documents, "milk price")
        assert {document.metadata["sgl_relevance"]["route"] for document in ranked} == {route}


def test_what_is_unsettled_goes_to_the_large_model(folder: Path, documents: list[Document]) -> None:
    question = question_for(SEEDS[2])
    small = {
        document.metadata["source"]: 1 - none_probability(folder, document, question, "small")
        for document in documents
    }
    first, second, third, _ = sorted(small, key=lambda source: -small[source])
    unsettled = [first, second]
    threshold = 1 - (small[second] + small[third]) / 2  # so that the other two are surely irrelevant
    for limit in (None, 1, 0):
        chat = ChatSGL(exit_threshold=threshold)
        reranker = SGLImageReranker(root=folder, model=chat, max_rescored=limit)
        ranked = reranker.compress_documents(documents, question)
        routes = {
            document.metadata["source"]: document.metadata["sgl_relevance"]["route"] for document in ranked
        }
        assert {source for source in routes if routes[source] == "large"} == set(unsettled[:limit])
        for document in ranked:
            source = document.metadata["source"]
            if source in unsettled[:limit]:
                none = none_probability(folder, document, question, "large")
            else:
                none = 1 - small[source]
            assert document.metadata["relevance_score"] == pytest.approx(1 - none, abs=1e-6)
    settled = SGLImageReranker(root=folder).compress_documents(documents, question)
    assert {document.metadata["sgl_relevance"]["route"] for document in settled} == {"small"}


def test_a_large_model_that_fails_leaves_the_small_ones_score(
    folder: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SGLEngine.score_answers

    def fail(self: SGLEngine, request: Request, *arguments: Any, model: Any) -> AnswerScores:
        if model == "large":
            raise DeadlineError("Late.", remedy="Wait.")
        return original(self, request, *arguments, model=model)

    monkeypatch.setattr(SGLEngine, "score_answers", fail)
    reranker = SGLImageReranker(root=folder, model=ChatSGL(exit_threshold=1.0))
    ranked = reranker.compress_documents(documents, question_for(SEEDS[0]))
    assert order(ranked)[0] == f"{SEEDS[0]}.png"
    assert {document.metadata["sgl_relevance"]["route"] for document in ranked} == {"small"}


# Asynchronous.


async def test_the_async_twin_ranks_alike(folder: Path, documents: list[Document]) -> None:
    reranker = SGLImageReranker(root=folder, model=ChatSGL(escalate="never"))
    question = question_for(SEEDS[3])
    recorder = Recorder()
    ranked = await reranker.acompress_documents(documents, question, callbacks=[recorder])
    assert order(ranked) == order(reranker.compress_documents(documents, question))
    assert len(recorder.runs) == 5


async def test_async_does_not_block_the_loop(
    folder: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = SGLImageReranker(root=folder)
    resume = threading.Event()
    original = SGLEngine.score_answers

    def wait(self: SGLEngine, *arguments: Any, **options: Any) -> AnswerScores:
        assert resume.wait(300)
        return original(self, *arguments, **options)

    monkeypatch.setattr(SGLEngine, "score_answers", wait)
    ranking = asyncio.create_task(reranker.acompress_documents(documents, "milk price"))
    for _ in range(20):
        await asyncio.sleep(0.005)  # would never come back if the loop were blocked
    assert not ranking.done()
    resume.set()
    assert len(await ranking) == 4


async def test_cancelling_stops_the_models(
    folder: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = SGLImageReranker(root=folder, max_concurrency=1)
    started, stopped = threading.Event(), threading.Event()
    cancels: list[threading.Event] = []
    original = SGLEngine.score_answers

    def watch(self: SGLEngine, request: Request, *arguments: Any, **options: Any) -> AnswerScores:
        assert request.cancel is not None
        cancels.append(request.cancel)
        started.set()
        assert request.cancel.wait(300)
        try:
            return original(self, request, *arguments, **options)
        except RequestCancelledError:
            stopped.set()
            raise

    monkeypatch.setattr(SGLEngine, "score_answers", watch)
    ranking = asyncio.create_task(reranker.acompress_documents(documents, "milk price"))
    await asyncio.to_thread(started.wait, 300)
    ranking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ranking
    assert await asyncio.to_thread(stopped.wait, 300)
    assert len(set(cancels)) == 1


def test_pictures_of_any_kind_in_a_store() -> None:
    picture = Image.fromarray(drawn(3).pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    store = {"pil": picture, "bytes": buffer.getvalue()}
    given = [Document("", id=name) for name in store]
    scores = [
        document.metadata["relevance_score"]
        for document in SGLImageReranker(store=store).compress_documents(given, question_for(3))
    ]
    assert scores[0] == scores[1] > 0.5


ODD = [(1093, 5), (1, 100), (100, 1), (8, 8), (7, 5), (1, 1), (3000, 10)]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mistral3", "llava_next", "smolvlm"])
def test_a_picture_of_odd_size_fails_no_other(family: str) -> None:
    engine = SGLEngine(tiny_vlm(family), tiny_vlm(family, size="large"))
    pictures = {f"{width} x {height}": Image.new("RGB", (width, height), "red") for width, height in ODD}
    pictures |= {"first": Image.new("RGB", (64, 64), "red"), "last": Image.new("RGB", (64, 48), "blue")}
    documents = [Document("", metadata={"source": name, "image": each}) for name, each in pictures.items()]
    ranked = SGLImageReranker(model=ChatSGL(engine=engine)).compress_documents(documents, "total?")
    refused = {
        document.metadata["source"]: document.metadata["relevance_error"]
        for document in ranked
        if document.metadata["relevance_score"] is None
    }
    assert len(ranked) == len(documents)
    assert not {"first", "last"} & set(refused)
    assert all(f"{name} pixels" in error for name, error in refused.items())
    if family == "qwen2_5_vl":  # the control: here two of them are wider than any that the model takes
        assert set(refused) == {"1093 x 5", "3000 x 10"}


def test_a_picture_that_a_processor_does_not_take_fails_no_other(
    folder: Path, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    score = SGLEngine.score_answers

    def fail_for_one(engine: SGLEngine, request: Request, answers: Any, **options: Any) -> AnswerScores:
        if request.images[0].source == folder / "3.png":
            raise ProcessorError("It fails.", remedy="Send another.")
        return score(engine, request, answers, **options)

    monkeypatch.setattr(SGLEngine, "score_answers", fail_for_one)
    ranked = SGLImageReranker(root=folder).compress_documents(documents, "milk price")
    assert order(ranked)[-1] == "3.png"
    assert [document.metadata["relevance_score"] is None for document in ranked] == [False] * 3 + [True]
