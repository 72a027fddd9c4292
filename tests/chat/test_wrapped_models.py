"""What the indexer and the reranker take: wrapped models, and pictures in every form."""

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from picture_folders import FakeChat, picture
from PIL import Image
from pydantic import Field, ValidationError

from langchain_sgl import ChatSGL, SGLImageIndexer, SGLImageReranker
from langchain_sgl.indexing.indexer import TRANSCRIBE
from langchain_sgl.reranking import reranker as reranker_module
from sgl_engine import ConfigError, CorruptImageError, DeadlineError, LimitsConfig
from sgl_engine.demo import PICTURES


class Flaky(FakeChat):
    """Fails so many times on each picture before it answers; and always on some."""

    failures: int = 1
    tries: dict[str, int] = Field(default_factory=dict, exclude=True)

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **settings: Any) -> Any:
        result = super()._generate(messages, stop, run_manager, **settings)
        answer = result.generations[0].text
        self.tries[answer] = self.tries.get(answer, 0) + 1
        if self.tries[answer] <= self.failures:
            raise ConnectionError(f"attempt {self.tries[answer]}")
        return result


class Other(FakeChat):
    def _generate(self, *given: Any, **settings: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("the other one"))])


def retrying(model: Any, attempts: int = 3) -> Any:
    return model.with_retry(stop_after_attempt=attempts, wait_exponential_jitter=False)


def texts(indexer: SGLImageIndexer) -> list[str]:
    return [document.page_content.removeprefix(f"{TRANSCRIBE}: ") for document in indexer.load()]


PAIRS = [(str(width), picture(width, 5)) for width in (10, 20, 30)]
ALL = ["10 x 5", "20 x 5", "30 x 5"]


def test_an_indexer_retries() -> None:
    assert texts(SGLImageIndexer(PAIRS, model=Flaky())) == []  # the control
    assert texts(SGLImageIndexer(PAIRS, model=retrying(Flaky()))) == ALL


async def test_an_indexer_retries_asynchronously() -> None:
    documents = await SGLImageIndexer(PAIRS, model=retrying(Flaky())).aload()
    assert [document.page_content.removeprefix(f"{TRANSCRIBE}: ") for document in documents] == ALL


def test_a_picture_that_fails_for_good_has_nobody_elses_answer() -> None:
    """``RunnableRetry.batch`` of langchain-core gives it the answer of one that came out right at last."""
    chat = Flaky(fails_on={f"{TRANSCRIBE}: 20 x 5"}, failures=2)
    indexer = SGLImageIndexer(PAIRS, model=retrying(chat))
    found = {document.metadata["source"]: document.page_content for document in indexer.load()}
    assert found == {name: f"{TRANSCRIBE}: {name} x 5" for name in ("10", "30")}
    assert [failure.source for failure in indexer.errors] == ["20"]


def test_an_indexer_takes_fallbacks_bound_options_and_configurations() -> None:
    chat = FakeChat(fails_on={f"{TRANSCRIBE}: 20 x 5"})
    fallback = SGLImageIndexer(PAIRS, model=chat.with_fallbacks([Other()]))
    assert texts(fallback) == ["10 x 5", "the other one", "30 x 5"]
    chat = FakeChat()
    bound = chat.bind(temperature=0.5).with_config(tags=["index"]).with_retry()
    assert texts(SGLImageIndexer(PAIRS, model=bound)) == ALL
    assert chat.seen[0]["temperature"] == 0.5
    assert chat.seen[0]["retention"] == "100%"


def test_documents_change_with_what_is_inside(tmp_path: Path) -> None:
    def ids(model: Any, **options: Any) -> set[str | None]:
        return {document.id for document in SGLImageIndexer(PAIRS, model=model, **options).load()}

    plain = ids(FakeChat())
    assert ids(retrying(FakeChat())) == ids(FakeChat().with_config(tags=["x"])) == plain
    others = [
        ids(FakeChat().bind(temperature=0.5)),
        ids(retrying(FakeChat(version="2"))),
        ids(FakeChat().with_fallbacks([Other()])),
    ]
    assert not set.union(*others) & plain
    assert len(set.union(*others)) == 9
    manifest = tmp_path / "index.db"
    assert ids(retrying(FakeChat()), manifest=manifest) == plain
    indexer = SGLImageIndexer(PAIRS, model=FakeChat().with_retry(), manifest=manifest)
    assert (texts(indexer), indexer.progress.asked) == (ALL, 0)


def test_limits_are_those_of_the_model_inside() -> None:
    chat = ChatSGL(limits=LimitsConfig(max_image_pixels=60))
    assert [failure.source for failure in failures(chat.with_retry())] == ["20", "30"]


def failures(model: Any) -> Any:
    indexer = SGLImageIndexer(PAIRS, model=model)
    indexer.load()
    return indexer.errors


@pytest.mark.parametrize(
    "model",
    [
        RunnableLambda(lambda _: AIMessage("text")),
        ChatPromptTemplate.from_messages([("user", "{x}")]) | FakeChat(),
        "a name",
    ],
)
def test_what_is_no_chat_model_is_refused_when_it_is_written(model: Any) -> None:
    with pytest.raises(ConfigError, match="is not a chat model.*with_retry"):
        SGLImageIndexer(PAIRS, model=model)
    with pytest.raises((ConfigError, ValidationError)):
        SGLImageReranker(model=model)


# Pictures.


def test_an_indexer_takes_bytes_and_pil_images() -> None:
    loaded = [Image.open(io.BytesIO(data)) for _, data in PAIRS]
    indexer = SGLImageIndexer([PAIRS[0][1], bytearray(PAIRS[1][1]), loaded[2]], model=FakeChat())
    assert texts(indexer) == ALL
    names = [document.metadata["source"] for document in indexer.load()]
    assert names == [document.metadata["source"] for document in indexer.load()]
    assert len(set(names)) == 3
    assert all(name.startswith("sha256:") for name in names)
    for single in (PAIRS[0][1], loaded[0], ("10", loaded[0])):
        assert texts(SGLImageIndexer(single, model=FakeChat())) == ["10 x 5"]
    (named,) = SGLImageIndexer([("invoice", loaded[0].convert("CMYK"))], model=FakeChat()).load()
    assert named.metadata["source"] == "invoice"
    assert named.metadata["mime_type"] == "image/png"


def test_a_pil_image_that_cannot_be_read_is_a_failure() -> None:
    broken = Image.open(io.BytesIO(picture(90, 90)[:3000]))
    indexer = SGLImageIndexer([PAIRS[0][1], broken, ("named", broken)], model=FakeChat())
    assert texts(indexer) == ["10 x 5"]
    assert [type(failure.error) for failure in indexer.errors] == [CorruptImageError] * 2


@pytest.mark.parametrize(
    "item", ["https://example.com/a.png", "data:image/png;base64,AAAA", 5, None, ("a", 1)]
)
def test_what_an_indexer_does_not_take_is_said(item: Any) -> None:
    for source in (item, [item]):
        with pytest.raises(ConfigError) as raised:
            SGLImageIndexer(source, model=FakeChat()).load()
        assert "PIL images" in str(raised.value)


# The reranker.

RECEIPT = Document("", metadata={"source": "receipt.png"})
QUESTION = "How much is the total?"


def rank(model: Any, documents: list[Document] | None = None) -> list[Document]:
    reranker = SGLImageReranker(model=model, root=PICTURES)
    return list(reranker.compress_documents(documents or [RECEIPT], QUESTION))


@pytest.mark.parametrize(("escalate", "route"), [("never", "small"), ("always", "large")])
def test_a_reranker_takes_bound_models(escalate: str, route: str) -> None:
    for model in (
        ChatSGL().bind(escalate=escalate),
        ChatSGL().bind(escalate=escalate).with_retry().with_config(tags=["rank"]),
        ChatSGL(escalate="never").bind(escalate=escalate),
    ):
        (document,) = rank(model)
        assert document.metadata["sgl_relevance"]["route"] == route
    (plain,) = rank(ChatSGL(escalate=escalate))
    assert plain.metadata["relevance_score"] == pytest.approx(document.metadata["relevance_score"], abs=1e-6)


def test_a_bound_timeout_counts() -> None:
    (document,) = rank(ChatSGL().bind(timeout=1e-9))
    assert document.metadata["relevance_error"].startswith("DeadlineError")


@pytest.mark.parametrize("attempts", [2, 3])
def test_a_reranker_retries(monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    tried = []
    score = reranker_module.score_picture

    def flaky(*given: Any, **options: Any) -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise DeadlineError("Too late.", remedy="Wait.")
        return score(*given, **options)

    monkeypatch.setattr(reranker_module, "score_picture", flaky)
    (document,) = rank(retrying(ChatSGL(escalate="never"), attempts))
    assert len(tried) == attempts
    assert (document.metadata["relevance_score"] is None) == (attempts == 2)


def test_a_reranker_says_what_it_takes() -> None:
    with pytest.raises((ConfigError, ValidationError), match="ChatSGL"):
        SGLImageReranker(model=FakeChat())
    with pytest.raises((ConfigError, ValidationError), match="one ChatSGL"):
        SGLImageReranker(model=ChatSGL().with_fallbacks([ChatSGL(escalate="never")]))
    with pytest.raises(Exception, match="reatment"):
        SGLImageReranker(model=ChatSGL().bind(treatment="none"))


def test_a_reranker_takes_pictures_in_every_form() -> None:
    data = (PICTURES / "receipt.png").read_bytes()
    text = base64.b64encode(data).decode()
    broken = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    safe = base64.urlsafe_b64encode(data).decode().rstrip("=")
    forms: list[dict[str, Any]] = [
        {"image": data},
        {"image": bytearray(data)},
        {"image": Image.open(PICTURES / "receipt.png")},
        {"image_url": f"data:image/png;base64,{text}"},
        {"image_url": {"url": f"  DATA:image/png;BASE64,{broken}"}},
        {"image_url": f"data:;base64,{safe}"},
        {"image_url": f"data:image/png;base64,{quote(text, safe='')}"},
        {"source": f"data:image/png;base64,{broken}\n"},
    ]
    documents = [Document("", metadata=form) for form in forms]
    contents = (text, broken, safe, quote(text, safe=""), f"Data:image/png;base64,{safe}")
    documents += [Document(content) for content in contents]
    ranked = rank(ChatSGL(escalate="never"), documents)
    assert [document.metadata.get("relevance_error") for document in ranked] == [None] * len(documents)
    assert len({round(document.metadata["relevance_score"], 5) for document in ranked}) == 1


@pytest.mark.parametrize("kind", ["TIFF", "PDF"])
def test_a_page_of_a_file_is_looked_at_and_not_its_first(tmp_path: Path, kind: str) -> None:
    if kind == "PDF":
        pytest.importorskip("pypdfium2")
    pages = [Image.open(PICTURES / f"{name}.png").convert("RGB") for name in ("scene", "receipt")]
    pages[0].save(tmp_path / "scan", kind, save_all=True, append_images=pages[1:])
    indexer = SGLImageIndexer(tmp_path, model=FakeChat(), limits=LimitsConfig(pdf_dpi=72))
    chat = ChatSGL(escalate="never", limits=LimitsConfig(pdf_dpi=72))
    documents = indexer.load()
    documents.append(documents[0].model_copy(update={"metadata": {**documents[0].metadata, "page": 7}}))
    ranked = SGLImageReranker(model=chat, root=tmp_path).compress_documents(documents, QUESTION)
    assert [document.metadata["page"] for document in ranked] == [1, 0, 7]
    alone = rank(chat, [Document("", metadata={"source": f"{name}.png"}) for name in ("receipt", "scene")])
    scores = [document.metadata["relevance_score"] for document in alone]
    # A page of this PDF is a JPEG, so it is not quite the picture.
    tolerance = 0.05 if kind == "PDF" else 1e-5
    assert [document.metadata["relevance_score"] for document in ranked[:2]] == pytest.approx(
        scores, abs=tolerance
    )
    assert scores[0] - scores[1] > 2 * tolerance
    assert "no page 7" in ranked[2].metadata["relevance_error"]
