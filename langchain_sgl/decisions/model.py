"""SGLDecisionModel: LangChain's decision model over a pair of local vision-language models.

Input: a state (text, JSON, messages, pictures anywhere) and questions -> ``convert`` -> ``decide``.
Output: answers with probabilities; usage; and, per question, a report or the reason for a refusal.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any, Self

from langchain_core.decisions import BaseDecisionModel, ClassifierResponse, Question
from langchain_core.decisions.types import State
from langchain_core.messages import UsageMetadata
from langchain_core.messages.ai import InputTokenDetails
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import override

from langchain_sgl.chat.input import in_thread
from langchain_sgl.chat_models import ChatSGL
from langchain_sgl.decisions.convert import to_answer, to_question, to_state
from langchain_sgl.decisions.runs import QuestionRuns
from langchain_sgl.errors import as_langchain_errors
from sgl_engine import RequestError
from sgl_engine.decisions import (
    DecisionConfig,
    DecisionQuestion,
    Decisions,
    RefusedAnswer,
    as_request,
    decide,
)


class SGLDecisionResponse(ClassifierResponse):
    """LangChain's response, and what this model tells beyond it.

    Attributes:
        response_metadata: "sgl": "reports", by the names of the questions, each a ``DecisionReport`` as JSON;
            and "refusals", the reason for each question that could not be put and has no answer.
    """

    response_metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """How each answer came about."""
        found: dict[str, dict[str, Any]] = self.response_metadata.get("sgl", {}).get("reports", {})
        return found

    @property
    def refusals(self) -> dict[str, str]:
        """Why questions have no answer."""
        found: dict[str, str] = self.response_metadata.get("sgl", {}).get("refusals", {})
        return found


class SGLDecisionModel(BaseDecisionModel):
    """Answers typed questions about text and pictures with a pair of local models, the small one first.

    ``SGLDecisionModel()`` is the bundled pair; ``SGLDecisionModel(small=..., large=...)`` any other: whatever
    ``ChatSGL`` takes is taken here and set there, as ``escalate``, ``exit_threshold`` or ``image_root``.

    ``Noul``, ``Choice`` and ``Score`` are scored, not generated: P(yes) is that of all ways to say yes among
    those to say yes or no. ``confidence`` is how concentrated a distribution is, 1 - entropy / log(n); of a
    ``Box``, 1 - area / share of the attention inside. Questions of one call share the state's pictures; each
    goes to the large model alone, where the small one's likeliest answer is below the threshold.

    A question that cannot be put (a recording in it, a box without a picture) is left out of the answers, and
    its reason is among ``SGLDecisionResponse.refusals``. Where that is so of all questions, it is raised.

    Attributes:
        model: What traces call it; None is the pair's name.
        chat: The pair, and what is set on it.
        settings: How questions are put; None suits the pair: bare questions for the bundled one, which
            follows no instructions.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: str = ""
    chat: Any = Field(default_factory=ChatSGL)
    settings: DecisionConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _set_the_pair(cls, given: Any) -> Any:
        """Hands everything that is not this model's to the pair's."""
        if not isinstance(given, dict):
            return given
        own = {name: value for name, value in given.items() if name in cls.model_fields}
        of_pair = {name: value for name, value in given.items() if name not in own}
        if of_pair and "chat" in own:
            raise ValueError(f"chat is given, and so are settings of a pair: {', '.join(sorted(of_pair))}")
        return {**own, "chat": ChatSGL(**of_pair)} if of_pair else own

    @model_validator(mode="after")
    def _name(self) -> Self:
        if not isinstance(self.chat, ChatSGL):
            raise ValueError(f"chat is a {type(self.chat).__name__}, and no ChatSGL")  # noqa: TRY004  # pydantic's
        self.model = self.model or self.chat._model_name  # noqa: SLF001  # of this package
        return self

    @property
    @override
    def _provider(self) -> str:
        return "sgl"

    @property
    def _config(self) -> DecisionConfig:
        form = "bare" if self.chat.is_bundled else "instructed"
        return self.settings or DecisionConfig(form=form)

    @override
    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        return self._decide(state, questions, threading.Event())

    @override
    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        """Decides in a thread; a cancelled task stops the models within a pass."""
        cancel = threading.Event()
        try:
            return await in_thread(partial(self._decide, state, questions, cancel))
        finally:
            cancel.set()

    def _decide(
        self, state: Any, questions: dict[str, Question], cancel: threading.Event
    ) -> ClassifierResponse:
        root = self.chat.image_root
        with as_langchain_errors():
            timeout = self.chat.timeout
            runs = QuestionRuns()
            request = replace(
                as_request(to_state(state, root)),
                cancel=cancel,
                deadline=None if timeout is None else time.monotonic() + timeout,
                may_escalate=runs.may_escalate,
                cache_salt=self.chat.cache_salt,
                chat_template_kwargs=self.chat.chat_template_kwargs,
            )
            asked, refusals = _readable(questions, root)
            made = Decisions({}, {})
            try:
                if asked or not questions:
                    made = decide(self.chat.engine, request, asked, self._config)
            except BaseException as error:
                runs.fail(error)
                raise
            runs.end(made.runs)
            for refused in made.answers.values():
                if isinstance(refused, RefusedAnswer):
                    runs.fail(refused.error)
            return self._response(made, questions, refusals)

    def _response(
        self, made: Decisions, questions: dict[str, Question], refusals: dict[str, RequestError]
    ) -> ClassifierResponse:
        """Gathers answers, reports and refusals, in the order of the questions."""
        refusals |= {n: each.error for n, each in made.answers.items() if isinstance(each, RefusedAnswer)}  # type: ignore[misc]
        if len(refusals) == len(questions):
            raise next(refusals[name] for name in questions)
        details = InputTokenDetails(cache_read=made.known_tokens)
        return SGLDecisionResponse(
            model=self.model,
            answers={n: to_answer(made.answers[n], questions[n]) for n in questions if n not in refusals},
            usage=UsageMetadata(
                input_tokens=made.input_tokens,
                output_tokens=made.output_tokens,
                total_tokens=made.input_tokens + made.output_tokens,
                input_token_details=details,
            ),
            response_metadata={
                "sgl": {
                    "reports": {
                        name: report.model_dump(mode="json") for name, report in made.reports.items()
                    },
                    "refusals": {name: str(refusals[name]) for name in questions if name in refusals},
                }
            },
        )


def _readable(
    questions: dict[str, Question], root: Any
) -> tuple[dict[str, DecisionQuestion], dict[str, RequestError]]:
    """Translates questions; those that cannot be read fail alone."""
    asked: dict[str, DecisionQuestion] = {}
    refusals: dict[str, RequestError] = {}
    for name, question in questions.items():
        try:
            asked[name] = to_question(question, root)
        except RequestError as error:
            refusals[name] = error
    return asked, refusals
