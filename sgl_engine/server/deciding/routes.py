"""``/v1/decisions``."""

from __future__ import annotations

import threading
import time
from functools import partial

from fastapi import FastAPI, Request, Response

from sgl_engine import Request as State
from sgl_engine import RequestError, SGLEngine
from sgl_engine.decisions import DecisionConfig, DecisionQuestion, Decisions, RefusedAnswer, decide
from sgl_engine.demo import SMALL_NAME
from sgl_engine.server.answering import EscapedJSON, unless_gone
from sgl_engine.server.chat import engine_for
from sgl_engine.server.deciding.fields import DecisionsBody
from sgl_engine.server.deciding.translate import (
    answer_of,
    report_of_decisions,
    to_question,
    to_state,
    usage_of_decisions,
)
from sgl_engine.server.errors import HTTPError, code_of, status_of
from sgl_engine.server.metrics import Metrics
from sgl_engine.server.settings import ServerSettings
from sgl_engine.server.state import ServerState


class DecisionRoutes:
    """The handler of typed questions."""

    def __init__(self, state: ServerState, settings: ServerSettings, metrics: Metrics) -> None:
        self._state, self._settings, self._metrics = state, settings, metrics

    def add_to(self, app: FastAPI) -> None:
        """Puts the handler under OpenAI's path."""
        app.post("/v1/decisions")(self.decide)

    async def decide(self, body: DecisionsBody, request: Request) -> Response:
        """Answers every question, in order."""
        since, cancel = time.monotonic(), threading.Event()
        with self._metrics.failing():
            work = self._state.in_thread(partial(self._decide, self._state.engine, body, since, cancel))
            decisions = await unless_gone(work, cancel, request)
        answers = list(decisions.answers.values())
        reports = [decisions.reports.get(name) for name in decisions.answers]
        types, seconds = [field.type for field in body.questions], time.monotonic() - since
        self._metrics.count_decisions(types, reports, seconds=seconds)
        report = report_of_decisions(decisions, reports)
        headers = {
            "x-sgl-route": report["route"],
            "x-sgl-score": f"{report['score']:.4f}",
            "x-sgl-saved": f"{report['saved_fraction']:.4f}",
        }
        content = {
            "model": body.model or self._settings.model,
            "answers": [answer_of(field, each) for field, each in zip(body.questions, answers, strict=True)],
            "usage": usage_of_decisions(decisions),
            "sgl": report,
        }
        return EscapedJSON(content, headers=headers)

    def _decide(
        self, engine: SGLEngine, body: DecisionsBody, since: float, cancel: threading.Event
    ) -> Decisions:
        """Translates and decides, in a thread.

        Raises:
            RequestError: No question could be put: the fault is the input's.
        """
        engine = engine_for(engine, body, self._settings)
        config = self._config(engine, body)
        timeout_s = body.sgl.timeout_s or self._settings.timeout_s
        state = State(
            messages=to_state(body.input),
            deadline=None if timeout_s is None else since + timeout_s,
            cancel=cancel,
            cache_salt=body.cache_salt,
            max_pixels=body.sgl.max_pixels,
            max_visual_tokens=body.sgl.max_visual_tokens,
        )
        questions: dict[str, DecisionQuestion] = {}
        for index, field in enumerate(body.questions):
            place = f"questions.{index}"
            try:
                questions[str(index)] = to_question(field, place, is_bare=config.form == "bare")
            except RequestError as error:
                raise HTTPError(status_of(error), str(error), code=code_of(error), param=place) from error
        decisions = decide(engine, state, questions, config)
        refused = [each.error for each in decisions.answers.values() if isinstance(each, RefusedAnswer)]
        if len(refused) == len(questions):
            raise refused[0]
        return decisions

    def _config(self, engine: SGLEngine, body: DecisionsBody) -> DecisionConfig:
        """How questions are put: as the server says, but for what the request says."""
        bare = engine.small.name == SMALL_NAME
        config = self._settings.decisions or DecisionConfig(form="bare" if bare else "instructed")
        own = {"labels": body.sgl.labels, "permutations": body.sgl.permutations}
        return config.model_copy(update={name: value for name, value in own.items() if value is not None})
