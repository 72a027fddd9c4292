"""Spans of OpenTelemetry: one for each request, and in it one for each model that was asked.

    invoke_workflow sgl
    +-- chat <small model>
    +-- chat <large model>

Names are those of the GenAI conventions, version 0.1.0 (open-telemetry/semantic-conventions-genai); what
these have no name for is ``sgl.*``. A request is a workflow, and not one more chat: whoever adds up the
tokens of chats gets what was used, once. No text, no picture and no error's message is in them.

The road is watched (``sgl_engine.cascade``), so every way into the engine is covered, and its context: a
span's parent is the one that is current where the caller is. Where nobody has called ``instrument``, a road
is returned as it is, and OpenTelemetry is not imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

from sgl_engine.errors import ConfigError
from sgl_engine.exit.decision import ExitDecision
from sgl_engine.report.version import engine_version
from sgl_engine.serving.job import Work

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from sgl_engine.report.run_report import RunReport

Params = ParamSpec("Params")
Step = TypeVar("Step")
Sent = TypeVar("Sent")
Result = TypeVar("Result")
Role: TypeAlias = Literal["small", "large"]

_OPERATIONS = {"answer": "chat", "score": "score"}  # the conventions have no name for scoring
_tracers: list[Tracer] = []  # one where spans are switched on


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Makes every engine of this process tell OpenTelemetry of its requests, from the next one on.

    For the whole process, as OpenTelemetry's own instrumentations are: chat models, tools and servers make
    their engines themselves. Called again, the new provider takes the place of the old one. Requests that are
    refused before they are let in (``OverloadedError``, ``EngineClosedError``) have no span.

    Args:
        tracer_provider: Where spans go; None is OpenTelemetry's own.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.trace import get_tracer
    except ImportError as error:
        raise ConfigError(
            "Spans need opentelemetry-api, which is not installed.",
            remedy="Install it, in a checkout of langchain-sgl: pip install '.[otel]'",
        ) from error
    _tracers[:] = [get_tracer("sgl_engine", engine_version(), tracer_provider)]


def uninstrument() -> None:
    """Ends what ``instrument`` has begun; spans of requests under way are still ended."""
    _tracers.clear()


def watched(
    make_road: Callable[Concatenate[Any, Params], Generator[Step, Sent, Result]],
) -> Callable[Concatenate[Any, Params], Generator[Step, Sent, Result]]:
    """Decorates what makes a road of a pair and a request: it is watched where spans are switched on."""
    operation = _OPERATIONS[make_road.__name__]

    @wraps(make_road)
    def make(pair: Any, /, *args: Params.args, **kwargs: Params.kwargs) -> Generator[Step, Sent, Result]:
        road = make_road(pair, *args, **kwargs)
        return _watch(road, _Spans(_tracers[0], pair, operation)) if _tracers else road

    return make


def _watch(road: Generator[Step, Sent, Result], spans: _Spans) -> Generator[Step, Sent, Result]:
    """Passes everything on between the road and its driver, and looks at it."""
    with spans.of_request(), closing(road):
        try:
            step = next(road)
            while True:
                spans.saw(step)
                step = road.send((yield step))
        except StopIteration as end:
            spans.answered(end.value)
            result: Result = end.value
            return result


class _Spans:
    """The spans of one request.

    Args:
        tracer: Makes them.
        pair: The models.
        operation: What the models are asked to do.
    """

    def __init__(self, tracer: Tracer, pair: Any, operation: str) -> None:
        self._tracer, self._pair, self._operation = tracer, pair, operation
        self._models: dict[Role, Span] = {}
        self._ended_ns: dict[Role, int] = {}  # of models that are done, when the request is not

    @contextmanager
    def of_request(self) -> Iterator[None]:
        """Begins the request's span; ends all of them, with the error if there is one."""
        about = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.agent.name": "sgl"}
        self._request = self._tracer.start_span(
            "invoke_workflow sgl", attributes={**about, "gen_ai.provider.name": "sgl"}
        )
        try:
            yield
        except BaseException as error:
            # A stream that is left is closed; a request that is cancelled otherwise raises.
            kind = "RequestCancelledError" if isinstance(error, GeneratorExit) else type(error).__name__
            for span in (self._request, *(span for role, span in self._models.items() if self._is_on(role))):
                _fail(span, kind)
            raise
        finally:
            for role, span in self._models.items():
                span.end(self._ended_ns.get(role))
            self._request.end()

    def saw(self, step: object) -> None:
        """Begins a model's span with its first work; the small one's ends where it is decided."""
        if isinstance(step, ExitDecision):
            self._ended_ns["small"] = time.time_ns()
        elif isinstance(step, Work):
            role: Role = "small" if step.model == "small" else "large"
            if role not in self._models:
                self._models[role] = self._begin(role)

    def answered(self, result: Any) -> None:
        """Writes down what the report of a response, or of scores, says."""
        report: RunReport = result.report
        _set(self._request, _of_request(report))
        for role, span in self._models.items():
            _set(span, _of_model(report, role, getattr(result, "finish_reason", None)))
            if role == "large" and report.large_error is not None:
                _fail(span, report.large_error.partition(":")[0])

    def _is_on(self, role: Role) -> bool:
        return role not in self._ended_ns

    def _begin(self, role: Role) -> Span:
        from opentelemetry.trace import SpanKind, set_span_in_context

        model = self._pair.small if role == "small" else self._pair.large
        is_here = role == "small" or self._pair.local is not None
        return self._tracer.start_span(
            f"{self._operation} {model.name}",
            set_span_in_context(self._request),
            SpanKind.INTERNAL if is_here else SpanKind.CLIENT,
            {
                "gen_ai.operation.name": self._operation,
                "gen_ai.provider.name": "sgl" if is_here else getattr(model, "provider", "hosted"),
                "gen_ai.request.model": model.name,
                "sgl.role": role,
            },
        )


def _fail(span: Span, kind: str) -> None:
    """Marks a span; what the error says is left out, as it may repeat what was asked."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _set(span: Span, attributes: Mapping[str, Any]) -> None:
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def _of_request(report: RunReport) -> dict[str, Any]:
    sent, cost = report.sent, report.cost
    return {
        "gen_ai.response.model": _answered_as(report, report.route),
        "sgl.route": report.route,
        "sgl.escalated": report.escalated,
        "sgl.forced": report.forced,
        "sgl.score": report.score,
        "sgl.threshold": report.threshold,
        # a hosted model's operations are not known
        "sgl.saved_fraction": None if report.large_hosted else report.saved_fraction,
        "sgl.sent_pixels": sent and sent.sent_pixels,
        "sgl.full_pixels": sent and sent.full_pixels,
        "sgl.cost": cost and cost.total,
        "sgl.cost.large_alone": cost and cost.large_alone,
        "sgl.cost.saved": cost and cost.saved,
    }


def _of_model(report: RunReport, role: Role, finish_reason: str | None) -> dict[str, Any]:
    failed = role == "large" and report.large_error is not None
    known, thought = (getattr(report, f"{role}_{kind}_tokens") for kind in ("known", "reasoning"))
    return {
        "gen_ai.response.model": None if failed else _answered_as(report, role),
        # of the other model's answer, nothing was kept but its text
        "gen_ai.response.finish_reasons": [finish_reason] if finish_reason and role == report.route else None,
        "gen_ai.usage.input_tokens": getattr(report, f"{role}_input_tokens"),
        "gen_ai.usage.output_tokens": getattr(report, f"{role}_output_tokens"),
        "gen_ai.usage.cache_read.input_tokens": known or None,
        "gen_ai.usage.reasoning.output_tokens": thought or None,
        "sgl.cost": report.cost and getattr(report.cost, role),
    }


def _answered_as(report: RunReport, role: Role) -> str:
    model = report.small_model if role == "small" else report.large_model
    return (report.large_answered_as if role == "large" else None) or model.name
