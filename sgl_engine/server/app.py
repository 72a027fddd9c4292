"""The routes. Every handler translates, asks the engine, and translates back; errors have one way out."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from sgl_engine import Response as Answer
from sgl_engine import SGLEngine, SGLError, __version__
from sgl_engine.exit import ExitDecision
from sgl_engine.server import chat, errors
from sgl_engine.server.access import Guard
from sgl_engine.server.answering import EscapedJSON, unless_gone
from sgl_engine.server.deciding.routes import DecisionRoutes
from sgl_engine.server.fields import ChatBody, TokenizeBody
from sgl_engine.server.metrics import Metrics
from sgl_engine.server.ranking.routes import RankingRoutes
from sgl_engine.server.settings import ServerSettings
from sgl_engine.server.state import ServerState

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
log = logging.getLogger("sgl_engine.server")


def create_app(
    engine: SGLEngine | Callable[[], SGLEngine], settings: ServerSettings | None = None
) -> FastAPI:
    """Makes the ASGI app; ``app.state.sgl`` is its ``ServerState``.

    Args:
        engine: A ready engine, which stays open, or a function that loads one in the background.
        settings: What can be set; None is ``ServerSettings()``.
    """
    settings = settings or ServerSettings()
    state = ServerState(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.load()
        yield
        state.close()

    # FastAPI's own pages of documentation load scripts from another server; /openapi.json stays.
    app = FastAPI(
        title="langchain-sgl", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.sgl = state
    metrics = Metrics(settings.model, vllm_names=settings.vllm_metric_names)
    Routes(state, settings, metrics).add_to(app)
    RankingRoutes(state, settings, metrics).add_to(app)
    DecisionRoutes(state, settings, metrics).add_to(app)
    app.add_middleware(Guard, settings=settings, state=state, metrics=metrics)
    return app


class Routes:
    """The handlers of one server, but for those of its wings."""

    def __init__(self, state: ServerState, settings: ServerSettings, metrics: Metrics) -> None:
        self._state, self._settings, self._metrics = state, settings, metrics
        self._started = int(time.time())

    def add_to(self, app: FastAPI) -> None:
        """Puts every handler under its paths."""
        app.post("/v1/chat/completions")(self.complete)
        app.post("/tokenize")(self.tokenize)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name:path}")(self.model)
        app.get("/version")(self.version)
        for path in ("/health", "/ping"):
            app.get(path)(self.health)
        app.get("/ready")(self.ready)
        app.get("/metrics")(self.metrics)
        for kind in (RequestValidationError, HTTPException, SGLError, errors.HTTPError):
            app.add_exception_handler(kind, self._as_response)

    async def complete(self, body: ChatBody, request: Request) -> Response:
        """Answers, whole or piece by piece."""
        since, cancel = time.monotonic(), threading.Event()
        with self._metrics.failing():
            writer, events = await self._begin(body, since, cancel)
            if body.stream:
                # The decision comes before the first byte, so errors up to it have a status of their own.
                decision = await self._next(events, cancel, request)
                pieces = self._stream(writer, events, cancel)
                headers = chat.headers_of(decision) if isinstance(decision, ExitDecision) else {}
                headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
                return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
            answer = await unless_gone(self._state.in_thread(partial(_last_of, events)), cancel, request)
        self._metrics.count(answer)
        return EscapedJSON(writer.whole(answer), headers=chat.headers_of(answer.report))

    async def _begin(self, body: ChatBody, since: float, cancel: threading.Event) -> tuple[chat.Writer, Any]:
        """Translates in a thread, where long texts and base64 hold nobody up."""
        engine = self._state.engine
        writer = chat.Writer(
            body.model or self._settings.model,
            with_usage=body.stream_options.include_usage,
            with_logprobs=body.logprobs,
            with_metrics=self._settings.vllm_metric_names,
        )

        def begin() -> Any:
            chosen = chat.engine_for(engine, body, self._settings)
            return chosen.stream(chat.to_request(body, self._settings, since=since, cancel=cancel))

        return writer, await self._state.in_thread(begin)

    async def _next(self, events: Any, cancel: threading.Event, request: Request) -> Any:
        return await unless_gone(self._state.in_thread(partial(next, events, None)), cancel, request)

    async def _stream(self, writer: chat.Writer, events: Any, cancel: threading.Event) -> AsyncIterator[str]:
        """Server-sent events; whatever goes wrong now is one of them, as the status has been sent."""
        try:
            yield _event(writer.opening())
            while (event := await self._state.in_thread(partial(next, events, None))) is not None:
                if isinstance(event, Answer):
                    self._metrics.count(event, writer)
                for chunk in writer.chunks(event):
                    yield _event(chunk)
        except Exception as error:  # it ends this stream, and nothing else
            self._metrics.errors.labels(errors.code_of(error)).inc()
            if errors.status_of(error) == errors.FAILED:
                log.exception("A stream failed.")
            yield _event(errors.body_of(error))
        finally:
            cancel.set()
            # ValueError: a thread is inside; it finds itself cancelled before its next token, and closes.
            with suppress(ValueError):
                events.close()
        yield "data: [DONE]\n\n"

    async def tokenize(self, body: TokenizeBody) -> EscapedJSON:
        """Counts a conversation's tokens, visual ones too, as either model reads it."""
        engine = chat.engine_for(self._state.engine, body, self._settings)

        def count() -> dict[str, Any]:
            prompt = chat.bare_request(body)
            config = engine.config
            each = {"small": engine.small.encode(prompt, config.limits, config.reuse, config.small_pictures)}
            if engine.hosted is None:  # what a hosted model makes of a prompt is not known here
                pictures = config.large_pictures
                each["large"] = engine.large.encode(prompt, config.limits, config.reuse, pictures)
            is_small = engine.hosted is not None or body.model == self._settings.models[1]
            chosen, vlm = (each["small"], engine.small) if is_small else (each["large"], engine.large)
            counts = {
                name: {"count": len(encoded), "visual_tokens": encoded.num_visual_tokens}
                for name, encoded in each.items()
            }
            return {
                "count": len(chosen),
                "max_model_len": vlm.context_tokens,
                "tokens": chosen.input_ids.flatten().tolist(),
                "visual_tokens": chosen.num_visual_tokens,
                "sgl": counts,
            }

        return EscapedJSON(await self._state.in_thread(count))

    async def models(self) -> EscapedJSON:
        """The pair, and its two models by themselves."""
        return EscapedJSON({"object": "list", "data": [self._card(name) for name in self._settings.models]})

    async def model(self, name: str) -> EscapedJSON:
        """One of them."""
        if name not in self._settings.models:
            raise errors.HTTPError(
                404,
                f"There is no model {name!r:.100}. Use one of {', '.join(self._settings.models)}.",
                code="model_not_found",
                param="model",
            )
        return EscapedJSON(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        engine = self._state.engine
        vlm = engine.small if name == self._settings.models[1] else engine.hosted or engine.large
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "sgl",
            "root": vlm.name,
            # Of a hosted model it is not known.
            "max_model_len": getattr(vlm, "context_tokens", None),
        }

    async def version(self) -> EscapedJSON:
        """Of this package."""
        return EscapedJSON({"version": __version__})

    async def health(self) -> PlainTextResponse:
        """The process lives; whether it can answer is ``/ready``."""
        return PlainTextResponse("ok")

    async def ready(self) -> Response:
        """200 once both models have run; 503 before, after a failure, and while the server ends."""
        if self._state.is_ready:
            return PlainTextResponse("ready")
        if self._state.is_ending:
            raise errors.HTTPError(503, "The server is ending.", code="ending")
        _ = self._state.engine  # raises, and says why
        raise AssertionError("an engine that is loaded is ready")

    async def metrics(self) -> Response:
        """For Prometheus."""
        engine = self._state.engine if self._state.is_ready else None
        text = self._metrics.text(engine, is_ready=self._state.is_ready)
        return Response(text, media_type=PROMETHEUS)

    async def _as_response(self, _: Request, error: Exception) -> EscapedJSON:
        """Any error as OpenAI's body under its status."""
        if isinstance(error, RequestValidationError):
            faults = [{**fault, "loc": fault["loc"][1:]} for fault in error.errors()]  # all are of the body
            error = errors.first_fault(faults, error.body)
        elif isinstance(error, HTTPException):
            # The others are FastAPI's own about a body: nested too deeply, or no UTF-8.
            code = "no_such_route" if error.status_code in {404, 405} else "invalid_value"
            error = errors.HTTPError(error.status_code, f"{error.detail}.", code=code)
        self._metrics.errors.labels(errors.code_of(error)).inc()
        status = errors.status_of(error)
        return EscapedJSON(errors.body_of(error), status, headers=errors.headers_of(status))


def _last_of(events: Any) -> Any:
    """The response at the end of an engine's events."""
    last = None
    for last in events:  # noqa: B007  # the last one is what is wanted
        pass
    return last


def _event(data: dict[str, Any]) -> str:
    """One server-sent event; in ASCII: a piece may end inside a surrogate pair, which UTF-8 cannot hold."""
    return f"data: {json.dumps(data, allow_nan=False)}\n\n"
