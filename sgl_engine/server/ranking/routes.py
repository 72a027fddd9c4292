"""``/rerank`` and ``/score``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response

from sgl_engine import ImagePart, InvalidRequestError, Message, RequestError, SGLEngine
from sgl_engine import Request as Question
from sgl_engine.demo import SMALL_NAME
from sgl_engine.relevance import RelevanceQuestion, default_question
from sgl_engine.server.answering import EscapedJSON, unless_gone
from sgl_engine.server.chat import engine_for
from sgl_engine.server.errors import HTTPError, code_of, status_of
from sgl_engine.server.metrics import Metrics
from sgl_engine.server.ranking.answers import headers_of_list, list_report, rerank_answer, score_answer
from sgl_engine.server.ranking.documents import Parts, to_document, to_query
from sgl_engine.server.ranking.fields import ListBody, RankFields, RerankBody, ScoreBody
from sgl_engine.server.ranking.lists import AskedDocument, ListScorer, ScoredList
from sgl_engine.server.settings import ServerSettings
from sgl_engine.server.state import ServerState


class RankingRoutes:
    """The handlers that rank documents."""

    def __init__(self, state: ServerState, settings: ServerSettings, metrics: Metrics) -> None:
        self._state, self._settings, self._metrics = state, settings, metrics

    def add_to(self, app: FastAPI) -> None:
        """Puts every handler under the paths at which vLLM has it."""
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            app.post(path)(self.rerank)
        for path in ("/score", "/v1/score"):
            app.post(path)(self.score)

    async def rerank(self, body: RerankBody, request: Request) -> Response:
        """Orders documents by how well each answers a query."""
        lists, report = await self._scored(body, [body.query], request)
        answer = rerank_answer(body, body.model or self._settings.model, lists[0], report)
        return EscapedJSON(answer, headers=headers_of_list(report))

    async def score(self, body: ScoreBody, request: Request) -> Response:
        """Scores documents against one query, or against one each."""
        lists, report = await self._scored(body, body.queries, request)
        answer = score_answer(body.model or self._settings.model, lists, report)
        return EscapedJSON(answer, headers=headers_of_list(report))

    async def _scored(
        self, body: RerankBody | ScoreBody, queries: Sequence[Any], request: Request
    ) -> tuple[list[ScoredList], dict[str, Any]]:
        since, cancel = time.monotonic(), threading.Event()
        with self._metrics.failing():
            _check_count(len(queries), len(body.documents), self._settings.max_documents)
            engine = self._state.engine
            # In a thread, where long texts and base64 hold nobody up.
            engine, lists = await self._state.in_thread(
                partial(self._read, engine, body, queries, since, cancel)
            )
            scorer = ListScorer(self._state, engine, cancel, refuses=body.sgl.unreadable == "refuse")
            work = scorer.score(lists, max_rescored=body.sgl.max_rescored)
            scored = await unless_gone(work, cancel, request)
        report = list_report(scored, scorer.runs, engine.config.exit)
        seconds = time.monotonic() - since
        self._metrics.count_list(request.url.path, report, scorer.runs, seconds=seconds)
        return scored, report

    def _read(
        self,
        engine: SGLEngine,
        body: RerankBody | ScoreBody,
        queries: Sequence[Any],
        since: float,
        cancel: threading.Event,
    ) -> tuple[SGLEngine, list[list[AskedDocument]]]:
        """Translates: the engine that is wanted, and one list for each query."""
        engine = engine_for(engine, body, self._settings)
        timeout_s = body.sgl.timeout_s or self._settings.timeout_s
        deadline = None if timeout_s is None else since + timeout_s
        is_bundled = engine.small.name == SMALL_NAME
        many = isinstance(body, ScoreBody)
        texts = []
        for index, query in enumerate(queries):
            place = f"queries.{index}" if many else "query"
            with _about(place):
                texts.append(to_query(query, place))
        asked = []
        for index, document in enumerate(body.documents):
            place = f"documents.{index}"
            with _about(place):
                parts = to_document(document, place)
                question = _question(body.sgl, parts, place, is_bundled=is_bundled)
            text = question.about(texts[index if len(texts) > 1 else 0])
            asked.append(AskedDocument(_request(body, parts, text, deadline, cancel), question, place))
        return engine, [asked] if len(texts) == 1 else [[each] for each in asked]


@contextmanager
def _about(place: str) -> Iterator[None]:
    """Says which part of the body an error is about, unless it is about the settings of all."""
    try:
        yield
    except RequestError as error:
        raise HTTPError(status_of(error), str(error), code=code_of(error), param=place) from error


def _check_count(queries: int, documents: int, most: int) -> None:
    """Raises InvalidRequestError for too many documents, and for pairs that are none."""
    if documents > most:
        raise InvalidRequestError(
            f"The request has {documents} documents; the limit is {most}.", remedy="Send fewer at once."
        )
    if queries not in (1, documents):
        raise InvalidRequestError(
            f"There are {queries} queries and {documents} documents.",
            remedy="Send one query, or one for each document.",
        )


def _question(own: RankFields, parts: Parts, place: str, *, is_bundled: bool) -> RelevanceQuestion:
    """What is asked about a document: what the client says, or what the pair understands."""
    if own.prompt is not None or own.positive is not None or own.negative is not None:
        return RelevanceQuestion(own.prompt or "", own.positive, own.negative or "")
    only_pictures = all(isinstance(part, ImagePart) for part in parts)
    if is_bundled and not only_pictures:
        raise InvalidRequestError(
            f"{place} holds text, and the bundled pair has learnt to answer from pictures alone.",
            remedy="Send pictures, or serve a pair that reads texts by --small and --large.",
        )
    return default_question(is_bundled=is_bundled, of="picture" if only_pictures else "document")


def _request(
    body: ListBody, parts: Parts, text: str, deadline: float | None, cancel: threading.Event
) -> Question:
    """The engine's request: the document, then the question."""
    document = tuple(part if isinstance(part, ImagePart) else f"{part}\n\n" for part in parts)
    return Question(
        messages=(Message("user", (*document, text)),),
        deadline=deadline,
        cancel=cancel,
        cache_salt=body.cache_salt,
        max_pixels=body.sgl.max_pixels,
        max_visual_tokens=body.sgl.max_visual_tokens,
    )
