"""Puts questions side by side: the small model scores all, and the large one those that it is not sure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sgl_engine import AnswerScores, InvalidRequestError, Request, RunReport, pruning_preset
from sgl_engine.decisions import boxes, shares
from sgl_engine.decisions.answers import (
    ChoiceAnswer,
    DecisionAnswer,
    DecisionReport,
    Decisions,
    ScoreAnswer,
    YesNoAnswer,
    totals,
)
from sgl_engine.decisions.asking import ask_about, refused
from sgl_engine.decisions.calibrated import DecisionCalibration, calibration_of
from sgl_engine.decisions.forms import PutQuestion, find_form
from sgl_engine.decisions.questions import (
    MAX_QUESTIONS,
    BoxQuestion,
    ChoiceQuestion,
    DecisionQuestion,
    ScoreQuestion,
    YesNoQuestion,
)
from sgl_engine.decisions.settings import DecisionConfig
from sgl_engine.decisions.state import as_request

if TYPE_CHECKING:
    from sgl_engine import SGLEngine

Route: TypeAlias = Literal["small", "large"]


def decide(
    engine: SGLEngine,
    state: Any,
    questions: Mapping[str, DecisionQuestion],
    config: DecisionConfig | None = None,
) -> Decisions:
    """Answers questions about one state; a question that cannot be put fails alone.

    The small model scores what each question allows. It is sure enough where its likeliest answer reaches the
    engine's exit threshold (``ExitConfig``; with a calibration of decisions, the certified one). Where not,
    the large model scores that question, guided as it is when it answers.

    Args:
        engine: The pair.
        state: What the questions are about: text, pictures, messages, or JSON with any of them in it
            (``as_request``).
        questions: 1 to ``MAX_QUESTIONS``, by name.
        config: How they are put; None is ``DecisionConfig()``.

    Raises:
        InvalidRequestError: There are no questions, or too many, or the state is none.
        DeadlineError: The state is a request whose deadline has passed.
        RequestCancelledError: It is one that was cancelled.
        ConfigError: A configuration contradicts itself, or the large model is a hosted one, which cannot
            score given answers.
        OverloadedError: Too many requests are under way.
        EngineClosedError: The engine was closed.
    """
    config = config or DecisionConfig()
    if not 1 <= len(questions) <= MAX_QUESTIONS:
        raise InvalidRequestError(
            f"{len(questions)} questions were asked.", remedy=f"Ask 1 to {MAX_QUESTIONS} in one call."
        )
    request = as_request(state)
    scored: dict[str, DecisionQuestion] = {}
    placed: dict[str, BoxQuestion] = {}
    for name, question in questions.items():
        if isinstance(question, BoxQuestion):
            placed[name] = question
        else:
            scored[name] = question
    found: dict[str, tuple[DecisionAnswer, DecisionReport | None]] = {}
    calibration = calibration_of(engine, config)
    runs: list[RunReport] = []
    found |= _Scored(engine, request, config, calibration, runs).answer(scored)
    found |= boxes.locate(engine, request, placed, config, calibration, runs)
    answers = {name: found[name][0] for name in questions}
    reports = {name: report for name in questions if (report := found[name][1]) is not None}
    return Decisions(answers, reports, tuple(runs))


@dataclass(frozen=True, eq=False)
class _Asked:
    """One question in all its orders, and what has become of it.

    Attributes:
        question: The question.
        puts: How it is put, once for each order that makes a difference.
    """

    question: DecisionQuestion
    puts: tuple[PutQuestion, ...]


@dataclass(frozen=True, eq=False)
class _Scored:
    """Answers questions whose answers are scored."""

    engine: SGLEngine
    request: Request
    config: DecisionConfig
    calibration: DecisionCalibration | None
    runs: list[RunReport]

    def answer(
        self, questions: Mapping[str, DecisionQuestion]
    ) -> dict[str, tuple[DecisionAnswer, DecisionReport | None]]:
        """Scores them with the small model, and with the large one where that is not sure."""
        found: dict[str, tuple[DecisionAnswer, DecisionReport | None]] = {}
        asked: dict[str, _Asked] = {}
        for name, question in questions.items():
            try:
                asked[name] = _Asked(question, self._put(question))
            except InvalidRequestError as error:
                found[name] = refused(error)
        small = self._score(asked, "small")
        unsure: dict[str, _Asked] = {}
        for name, each in asked.items():
            scores = small[name]
            if isinstance(scores, Exception):
                found[name] = refused(scores)
                continue
            report = self._exit(each, scores)
            found[name] = self._answer(each, scores, "small"), report
            if report.escalated:
                unsure[name] = each
        for name, scores in self._score(unsure, "large").items():
            found[name] = (
                refused(scores)
                if isinstance(scores, Exception)
                else self._revise(unsure[name], scores, found[name])
            )
        return found

    def _put(self, question: DecisionQuestion) -> tuple[PutQuestion, ...]:
        form, count = find_form(self.config.form), 2
        if isinstance(question, ChoiceQuestion):
            count = len(question.labels)
        elif isinstance(question, ScoreQuestion):
            count = len(question.levels)
        # A score's levels are listed up or down: any other order would be no scale.
        wanted = (
            min(self.config.permutations, 2)
            if isinstance(question, ScoreQuestion)
            else self.config.permutations
        )
        puts = [form.put(question, order, self.config.labels) for order in shares.orders(count, wanted)]
        return tuple(dict.fromkeys(puts))

    def _score(self, asked: Mapping[str, _Asked], model: Route) -> dict[str, list[AnswerScores] | Exception]:
        """Has a model score all texts of all questions in all orders."""
        engine = self.engine
        if model == "large" and len(asked) >= self.config.whole_from:
            # A calibration of generated answers is one of other pruning, and has no say in the route here.
            whole = {"pruning": pruning_preset("100%"), "exit": engine.config.exit.uncalibrated()}
            engine = engine.with_config(engine.config.model_copy(update=whole))
        requests = [ask_about(self.request, put) for each in asked.values() for put in each.puts]
        texts = [
            [text for option in put.options for text in option.texts]
            for each in asked.values()
            for put in each.puts
        ]
        outcomes = iter(engine.score_batch(requests, texts, model=model))
        found: dict[str, list[AnswerScores] | Exception] = {}
        for name, each in asked.items():
            of_orders = [next(outcomes) for _ in each.puts]
            failed = [outcome for outcome in of_orders if isinstance(outcome, Exception)]
            scores = [outcome for outcome in of_orders if isinstance(outcome, AnswerScores)]
            found[name] = failed[0] if failed else scores
            self.runs.extend(each.report for each in scores)
        return found

    def _exit(self, asked: _Asked, scores: Sequence[AnswerScores]) -> DecisionReport:
        """Decides whether the small model's answer is kept."""
        settings, calibration = self.engine.config.exit, self.calibration
        score, threshold = max(self._distribution(asked, scores, "small")), settings.threshold
        point = None if calibration is None else calibration.point(asked.question.type, self.config.risk)
        if point is not None and point.threshold is not None:
            threshold = point.threshold
        policy, escalated = "threshold", not score >= threshold
        if settings.escalate != "auto":
            policy, escalated = "forced", settings.escalate == "always"
        elif point is None and (calibration is not None or settings.calibration is not None):
            policy, escalated = "uncovered", True
        return DecisionReport.model_validate(
            {
                "route": "small",
                "escalated": escalated,
                "score": score,
                "threshold": threshold,
                "policy": policy,
                "calibration": None if calibration is None else calibration.id,
                "certified_risk": point.target_risk if point and policy == "threshold" else None,
                "orders": len(scores),
                **totals([each.report for each in scores]),
            }
        )

    def _revise(
        self,
        asked: _Asked,
        scores: Sequence[AnswerScores],
        small: tuple[DecisionAnswer, DecisionReport | None],
    ) -> tuple[DecisionAnswer, DecisionReport]:
        """Takes the large model's answer, if it was allowed to give one."""
        answer, report = small
        assert report is not None, "an answer was scored"
        runs = totals([each.report for each in scores])
        sums = {
            name: value + (getattr(report, name) or 0) for name, value in runs.items() if value is not None
        }
        sums["large_alone_tflops"] = runs["large_alone_tflops"] or 0.0
        if any(each.report.route == "small" for each in scores):  # a budget has said no
            return answer, report.model_copy(update={**sums, "escalated": False, "policy": "forced"})
        update = {**sums, "route": "large", "small_best": said(answer)}
        return self._answer(asked, scores, "large"), report.model_copy(update=update)

    def _distribution(self, asked: _Asked, scores: Sequence[AnswerScores], route: Route) -> list[float]:
        """The probability of each option, averaged over the orders."""
        logits = [
            shares.option_logits(put, each.token_logprobs)
            for put, each in zip(asked.puts, scores, strict=True)
        ]
        plain = shares.mean([shares.softmax(of_order) for of_order in logits])
        if self.calibration is None:
            return plain
        return self.calibration.calibrated(asked.question.type, route, plain)

    def _answer(self, asked: _Asked, scores: Sequence[AnswerScores], route: Route) -> DecisionAnswer:
        probabilities, question = self._distribution(asked, scores, route), asked.question
        confidence = shares.concentration(probabilities)
        if isinstance(question, YesNoQuestion):
            return YesNoAnswer(probabilities[0], confidence)
        if isinstance(question, ChoiceQuestion):
            best = question.labels[probabilities.index(max(probabilities))]
            return ChoiceAnswer(best, dict(zip(question.labels, probabilities, strict=True)), confidence)
        expected = sum(level * probability for level, probability in enumerate(probabilities))
        return ScoreAnswer(expected, tuple(probabilities), confidence)


def said(answer: DecisionAnswer) -> str | None:
    """The likeliest answer as a text, to compare two models by."""
    if isinstance(answer, YesNoAnswer):
        return "yes" if answer.probability >= 0.5 else "no"
    if isinstance(answer, ChoiceAnswer):
        return answer.choice
    if isinstance(answer, ScoreAnswer):
        return str(max(range(len(answer.probabilities)), key=answer.probabilities.__getitem__))
    return None
