"""SGLImageReranker: retrieved documents of pictures, ordered by how likely each picture answers the query."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ContextThreadPoolExecutor, run_in_executor
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import override

from langchain_sgl.chat.local_files import resolve_folder
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.errors import as_langchain_errors
from langchain_sgl.indexing.blobs import is_picture
from langchain_sgl.indexing.pages import draw_page
from langchain_sgl.reranking.scored_run import score_picture
from langchain_sgl.reranking.scoring_model import ScoringModel
from langchain_sgl.tools.picture_store import PictureStore, as_picture_store
from langchain_sgl.tools.references import resolve_picture
from sgl_engine import ConfigError, Fraction, InvalidRequestError, MissingImageError
from sgl_engine.demo import SMALL_NAME
from sgl_engine.prompt import decode_data_url
from sgl_engine.relevance import (
    Judged,
    RelevanceQuestion,
    Round,
    default_question,
    judge,
    order,
    run_rounds,
    settle,
)

_DATA_URL = re.compile(r"\s*data:[^,\s]*;base64,", re.IGNORECASE)

if TYPE_CHECKING:
    from sgl_engine import AnswerScores, ImageSource, LimitsConfig, SGLEngine


class _Retrieved(TypedDict):
    query: str
    documents: list[Document]


class SGLImageReranker(BaseDocumentCompressor):
    """Orders documents by the probability that their picture answers the query, the likeliest first.

    The small model scores every picture. The list is settled when at most one picture is not surely
    irrelevant, and that one is surely relevant: scores of at most 1 - t and at least t, t being the exit
    threshold. Otherwise, the large model scores all pictures that are not surely irrelevant, guided as it is
    when it answers. A picture that the small model is sure and wrong about is noticed beside the right one.

    Each document comes back as a copy with metadata "relevance_score" in [0, 1], higher = more relevant, and
    "sgl_relevance", the run report of that score as JSON.

    A pair that follows instructions is asked ``YES_OR_NO``, and the score is P(Yes) / (P(Yes) + P(No)). The
    bundled pair does not know these words, but answers "none" where a picture does not hold the answer: it is
    asked the query itself, and the score is 1 - P("none"). Which of the two is chosen by the model, where
    ``prompt``, ``positive`` and ``negative`` are not set.

    Where a document's picture is: an id in ``store`` (metadata "source", or the document's id); metadata
    "image", encoded bytes or a PIL image; metadata "image_url"; base64 data or a data URL as text; or
    metadata "source" as a URL or a file under ``root``. Of a file of several pages, the one of metadata
    "page" is looked at (counted from 0, as ``SGLImageIndexer`` and LangChain's loaders write it).

    A document whose picture cannot be used never fails the others. It comes last, with a "relevance_score" of
    None and metadata "relevance_error".

    Attributes:
        model: Whose engine scores: a ``ChatSGL``, as it is or from its ``bind``, ``with_config`` or
            ``with_retry``. ``ChatSGL(escalate="never")`` leaves it to the small model; "always" has
            the large one score every picture.
        root: The only folder that files are read from; None reads none.
        store: Pictures by id: a mapping, a ``PictureStore``, a LangChain or a LangGraph store.
        prompt: What is asked; "{query}" stands for the query.
        positive: The answer that speaks for a picture; None: all but ``negative`` do.
        negative: The answer that speaks against it.
        top_n: At most so many documents are returned; None is all of them.
        min_score: Documents that score less are left out.
        unreadable: Whether documents whose picture cannot be used are kept, at the end, or dropped.
        max_rescored: At most so many pictures of a list go to the large model, the best ones; None is no
            limit.
        max_concurrency: Pictures that are in work, and in memory, at a time.

    Raises:
        pydantic.ValidationError: A prompt without "{query}", an empty answer, or a value out of its range.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: Runnable[Any, Any] = Field(default_factory=ChatSGL)
    root: Path | None = None
    store: Any = None
    prompt: str | None = None
    positive: str | None = None
    negative: str | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    min_score: Fraction | None = None
    unreadable: Literal["keep", "drop"] = "keep"
    max_rescored: Annotated[int, Field(ge=0)] | None = None
    max_concurrency: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Chooses the question for the pair where the caller has set none, and checks what is set."""
        with as_langchain_errors():
            chat = ScoringModel.of(self.model).chat
        if self.prompt is None and self.positive is None and self.negative is None:
            asked = default_question(is_bundled=_is_bundled(chat))
            self.prompt, self.positive, self.negative = asked.prompt, asked.positive, asked.negative
        try:
            _ = self._question
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.store is not None:
            self.store = as_picture_store(self.store)
        return self

    @property
    def _question(self) -> RelevanceQuestion:
        return RelevanceQuestion(self.prompt or "", self.positive, self.negative or "")

    @override
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Scores the documents' pictures and returns the documents, the likeliest first.

        Raises:
            InvalidRequestError: The query is empty.
            ModelError: The models cannot be loaded.
            ConfigError: ``root`` is not a folder.
        """
        rank = RunnableLambda(partial(self._rank, cancel=threading.Event()), name=type(self).__name__)
        with as_langchain_errors():
            return rank.invoke(_Retrieved(query=query, documents=list(documents)), {"callbacks": callbacks})

    @override
    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Does what ``compress_documents`` does, in a thread; cancelling stops the models within a pass."""
        cancel = threading.Event()

        async def arank(retrieved: _Retrieved, config: RunnableConfig) -> list[Document]:
            return await run_in_executor(config, self._rank, retrieved, config, cancel=cancel)

        rank = RunnableLambda(partial(self._rank, cancel=cancel), arank, name=type(self).__name__)
        try:
            with as_langchain_errors():
                retrieved = _Retrieved(query=query, documents=list(documents))
                return await rank.ainvoke(retrieved, {"callbacks": callbacks})
        finally:
            cancel.set()

    def _rank(
        self, retrieved: _Retrieved, config: RunnableConfig, *, cancel: threading.Event
    ) -> list[Document]:
        """Has the small model score every picture, and the large one what that leaves open."""
        query, documents = retrieved["query"], retrieved["documents"]
        if not query.strip():
            raise InvalidRequestError(
                "The query is empty, so no picture can answer it.", remedy="Pass the question of the user."
            )
        if not documents:
            return []
        if self.root is not None:
            resolve_folder(self.root)  # a wrong folder is an error of the set-up, not one of every document
        scoring = ScoringModel.of(self.model)
        engine = scoring.engine
        with ContextThreadPoolExecutor(self.max_concurrency) as pool:

            def run(step: Round) -> list[Judged]:
                one = partial(
                    self._judge, engine, scoring, query, model=step.model, config=config, cancel=cancel
                )
                return list(pool.map(one, [documents[index] for index in step.indices]))

            try:
                rounds = settle(len(documents), engine.config.exit, max_rescored=self.max_rescored)
                judged = run_rounds(rounds, run)
            except BaseException:
                cancel.set()  # leaving the pool waits for its threads; so they stop within one forward pass
                raise
        chosen = order(judged, min_score=self.min_score, top_n=self.top_n, unreadable=self.unreadable)
        return [_with(documents[index], judged[index]) for index in chosen]

    def _judge(
        self,
        engine: SGLEngine,
        scoring: ScoringModel,
        query: str,
        document: Document,
        *,
        model: Literal["small", "large"],
        config: RunnableConfig,
        cancel: threading.Event,
    ) -> Judged:
        """Scores one document's picture, or says why it cannot be used."""
        question = self._question

        def score() -> AnswerScores:
            picture = find_picture(document, root=self.root, store=self.store)
            once = partial(
                score_picture,
                engine,
                _page(document, picture, engine.config.limits),
                question.about(query),
                question.answers,
                model=model,
                timeout_s=scoring.timeout_s,
                cache_salt=scoring.cache_salt,
                cancel=cancel,
            )
            return scoring.score(lambda config: once(config=config), config)

        return judge(question, score)


def find_picture(
    document: Document, *, root: Path | None = None, store: PictureStore | None = None
) -> ImageSource:
    """Finds the picture that a document stands for; ``SGLImageReranker`` says where it is looked for.

    Raises:
        MissingImageError: There is none.
        UnsafePathError: It is a file outside ``root``.
    """
    source, url = document.metadata.get("source"), document.metadata.get("image_url")
    image = document.metadata.get("image")
    if store is not None:
        for name in (source, document.id):
            picture = store.get(name) if isinstance(name, str) else None
            if picture is not None:
                return picture
    if is_picture(image):
        return bytes(image) if isinstance(image, bytearray) else image
    if isinstance(url, Mapping):  # as in OpenAI's messages
        url = url.get("url")
    if isinstance(url, str):
        return resolve_picture(url)
    data = _picture_in(document.page_content)
    if data is not None:
        return data
    if isinstance(source, str):
        return resolve_picture(source, root=root, store=store)
    raise MissingImageError(
        f"The document {document.id!r} names no picture.",
        remedy='Set metadata "source", "image" or "image_url", or put base64 data into page_content.',
    )


def _page(document: Document, picture: ImageSource, limits: LimitsConfig) -> ImageSource:
    """Picks the page that a document is of, where its file has several.

    Raises:
        ImageError: There is no such page, or it cannot be read.
    """
    page, pages = (_whole(document.metadata.get(name)) for name in ("page", "total_pages"))
    if page is None or pages == 1:
        return picture
    from sgl_engine.prompt import count_pages, read_file

    if isinstance(picture, Path):
        picture = read_file(picture, limits)
    elif isinstance(picture, str) and _DATA_URL.match(picture):
        picture = decode_data_url(picture)
    if not isinstance(picture, bytes):
        return picture
    if pages is None and count_pages(picture, limits, most=2) == 1:  # a page that is a file of its own
        return picture
    return draw_page(picture, limits, page)


def _whole(number: object) -> int | None:
    """A number as it was written: some vector stores return all numbers as floats."""
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _picture_in(text: str) -> ImageSource | None:
    """Reads base64 data or a data URL; None for all other text, even where that is some other URL."""
    is_data = _DATA_URL.match(text) is not None
    if not is_data and text.lstrip()[:5].lower() == "data:":
        return None  # "Data: 12/3/2026", as receipts begin in Italy
    try:
        picture = resolve_picture(text)
    except MissingImageError:
        return None
    return picture if isinstance(picture, bytes) or is_data else None


def _with(document: Document, judged: Judged) -> Document:
    """A copy of the document with its score, or with why there is none."""
    found: dict[str, Any] = {"relevance_score": judged.score}
    if judged.report is not None:
        found["sgl_relevance"] = judged.report.model_dump(mode="json")
    if judged.error is not None:
        found["relevance_error"] = f"{type(judged.error).__name__}: {judged.error}"
    return document.model_copy(update={"metadata": {**document.metadata, **found}})


def _is_bundled(model: ChatSGL) -> bool:
    if model.ready_engine is not None:
        return bool(model.ready_engine.small.name == SMALL_NAME)
    return model.small is None
