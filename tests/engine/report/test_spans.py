"""Spans of OpenTelemetry: what they say, whose children they are, and that without them nothing changes."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from PIL import Image

from sgl_engine import (
    VLM,
    ConfigError,
    EngineConfig,
    HostedUsage,
    PatchTokens,
    Price,
    Request,
    SendConfig,
    SGLError,
    instrument,
    uninstrument,
)
from sgl_engine.report.spans import watched
from sgl_engine.testing import FakeEngine, FakeHostedModel, tiny_vlm

ROOT = Path(__file__).parents[3]
PICTURE = Image.new("RGB", (280, 280), "white")
QUESTION = Request.ask("How many, Rumpelstiltskin?", PICTURE, max_new_tokens=2)
PRICES = {"big": Price(input=2.5, output=10), "tiny-internvl-small": Price(input=1)}

Spans = InMemorySpanExporter


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(provider)
    yield exporter
    uninstrument()


@cache
def small() -> VLM:
    return tiny_vlm(size="small")


def engine(*said: Any, score: float = 0.1, **settings: Any) -> FakeEngine:
    """The small model says "7"; the hosted one "8"."""
    large = FakeHostedModel(*(said or ("8",)), name="big", usage=HostedUsage(1000, 20, cached_tokens=400))
    config = EngineConfig(
        **{"prices": PRICES, "send": SendConfig(picture_tokens=PatchTokens(side=28)), **settings}
    )
    return FakeEngine(lambda _: "7", score=score, small=small(), large=large, config=config)


def local(score: float) -> FakeEngine:
    return FakeEngine(lambda _: "7", score=score, small=small())


def named(exporter: Spans) -> dict[str, ReadableSpan]:
    """The spans of one request by name."""
    finished = exporter.get_finished_spans()
    found = {span.name: span for span in finished}
    assert len(found) == len(finished)
    return found


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_has_a_span_and_each_model_that_was_asked_a_child(spans: Spans) -> None:
    report = engine().run(QUESTION).report
    found = named(spans)
    assert set(found) == {"invoke_workflow sgl", "chat tiny-internvl-small", "chat big"}
    request, first, second = (
        found[name] for name in ("invoke_workflow sgl", "chat tiny-internvl-small", "chat big")
    )
    assert request.parent is None
    assert {span.parent and span.parent.span_id for span in (first, second)} == {request.context.span_id}
    assert report.cost is not None
    assert report.sent is not None
    assert told(request) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.agent.name": "sgl",
        "gen_ai.provider.name": "sgl",
        "gen_ai.response.model": "big",
        "sgl.route": "large",
        "sgl.escalated": True,
        "sgl.forced": False,
        "sgl.score": report.score,
        "sgl.threshold": report.threshold,
        "sgl.sent_pixels": report.sent.sent_pixels,
        "sgl.full_pixels": report.sent.full_pixels,
        "sgl.cost": report.cost.total,
        "sgl.cost.large_alone": report.cost.large_alone,
        "sgl.cost.saved": report.cost.saved,
    }
    assert told(second) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "hosted",  # this one does not say
        "gen_ai.request.model": "big",
        "gen_ai.response.model": "big",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 400,
        "sgl.role": "large",
        "sgl.cost": report.cost.large,
    }
    assert told(first)["gen_ai.provider.name"] == "sgl"
    assert told(first)["gen_ai.usage.input_tokens"] == report.small_input_tokens
    assert told(first)["sgl.cost"] + told(second)["sgl.cost"] == pytest.approx(told(request)["sgl.cost"])
    assert (first.kind, second.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT)


def test_spans_lie_in_each_other_and_in_order(spans: Spans) -> None:
    engine().run(QUESTION)
    found = named(spans)
    times = [(span.start_time or 0, span.end_time or 0) for span in found.values()]
    first, second, request = (
        times[list(found).index(name)]
        for name in ("chat tiny-internvl-small", "chat big", "invoke_workflow sgl")
    )
    assert request[0] <= first[0] <= first[1] <= second[0] <= second[1] <= request[1]


@pytest.mark.parametrize("score", [0.9, 0.1])
def test_models_that_are_here(spans: Spans, score: float) -> None:
    report = local(score).run(QUESTION).report
    found = named(spans)
    assert told(found["invoke_workflow sgl"])["sgl.saved_fraction"] == report.saved_fraction
    children = [name for name in found if name.startswith("chat")]
    assert children == ["chat tiny-internvl-small", "chat tiny-internvl-large"][: 1 if score > 0.5 else 2]
    assert {told(found[name])["gen_ai.provider.name"] for name in children} == {"sgl"}


def test_every_way_into_the_engine(spans: Spans) -> None:
    asked = local(0.9)
    list(asked.stream(QUESTION))
    asked.submit(QUESTION).result()
    asked.run_batch([QUESTION, QUESTION])
    asked.score_answers(QUESTION, ["7", "8"])
    names = [span.name for span in spans.get_finished_spans()]
    assert names.count("invoke_workflow sgl") == 5
    assert names.count("chat tiny-internvl-small") == 4
    assert names.count("score tiny-internvl-small") == 1


@pytest.mark.parametrize("how", ["run", "stream", "submit", "run_batch"])
def test_the_parent_is_the_callers_span(spans: Spans, how: str) -> None:
    from opentelemetry import trace

    with TracerProvider().get_tracer("caller").start_as_current_span("around") as around:
        given = [QUESTION] if how == "run_batch" else QUESTION
        answer = getattr(local(0.9), how)(given)
        list(answer) if how == "stream" else answer.result() if how == "submit" else None
    parent = named(spans)["invoke_workflow sgl"].parent
    assert parent is not None
    assert parent.span_id == around.get_span_context().span_id
    assert trace.get_current_span().get_span_context().span_id == 0  # nothing stays


def test_errors_are_on_the_request_and_the_model_and_say_no_text(spans: Spans) -> None:
    with pytest.raises(SGLError, match="Rumpelstiltskin"):
        engine(ConfigError("Rumpelstiltskin", remedy="none")).run(QUESTION)
    found = named(spans)
    assert {name: told(span).get("error.type") for name, span in found.items()} == {
        "invoke_workflow sgl": "ConfigError",
        "chat tiny-internvl-small": None,
        "chat big": "ConfigError",
    }
    assert [span.status.is_ok for span in found.values()].count(False) == 2
    assert all(span.status.description is None and not span.events for span in found.values())


def test_a_model_that_failed_where_the_small_answer_was_kept(spans: Spans) -> None:
    engine(RuntimeError("gone"), on_large_error="keep").run(QUESTION)
    found = named(spans)
    assert told(found["chat big"])["error.type"] == "RuntimeError"
    assert found["invoke_workflow sgl"].status.is_ok
    assert told(found["invoke_workflow sgl"])["sgl.route"] == "small"


def test_a_bad_request_asks_no_model(spans: Spans) -> None:
    with pytest.raises(SGLError):
        local(0.9).run(Request.ask("What?", b"no picture"))
    [only] = spans.get_finished_spans()
    assert told(only)["error.type"].endswith("Error")


def test_a_stream_that_is_left_is_cancelled(spans: Spans) -> None:
    stream = local(0.1).stream(QUESTION)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert told(named(spans)["invoke_workflow sgl"])["error.type"] == "RequestCancelledError"


def test_no_text_and_no_picture(spans: Spans) -> None:
    engine("Once upon a time").run(QUESTION)
    written = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert "tiny-internvl-small" in written  # the control: names are
    for text in ("Rumpelstiltskin", "Once upon", '"7"', "base64", "PNG"):
        assert text not in written
    values = [value for span in spans.get_finished_spans() for value in told(span).values()]
    assert max(len(str(value)) for value in values) < 80


def test_where_it_is_switched_off_the_road_is_the_road_itself(spans: Spans) -> None:
    def answer(pair: Any) -> Any:
        return road

    road = (_ for _ in ())
    make = watched(answer)
    assert make(None) is not road  # the control
    uninstrument()
    assert make(None) is road
    local(0.9).run(QUESTION)
    assert spans.get_finished_spans() == ()


def test_opentelemetry_is_imported_where_it_is_switched_on() -> None:
    code = (
        "import sys, sgl_engine.cascade, sgl_engine\n"
        "before = 'opentelemetry' in sys.modules\n"
        "sgl_engine.instrument()\n"
        "print(before, 'opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True"]


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[otel\]'"):
        instrument()
