"""A batch of requests is answered as the requests are one by one, and a bad one fails alone."""

import re
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import exploding, traces
from samples import REQUESTS, noise
from scheduling import held, only_the_worker_notices, watch
from tolerances import of_logprobs, relative_gap

from sgl_engine import EngineConfig, Request, Response, SGLEngine
from sgl_engine.config import NO_REUSE, ExitConfig
from sgl_engine.decoding.answer import AnswerTask
from sgl_engine.errors import (
    BudgetSpentError,
    ConfigError,
    CorruptImageError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    RequestCancelledError,
    SGLError,
)
from sgl_engine.passes.prefill import takes_padding
from sgl_engine.passes.small import run_small_batch
from sgl_engine.request import Decoding, ToolSpec
from sgl_engine.testing import FakeEngine, tiny_vlm

WITHIN = of_logprobs(tiny_vlm(size="large"))
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}
LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {}, "additionalProperties": False})

# Lengths, pictures, limits and forms of all kinds.
MIXED: tuple[Request, ...] = (
    replace(REQUESTS["one image"], max_new_tokens=9),
    replace(REQUESTS["several tiles"], max_new_tokens=3, logprobs=True),
    replace(Request.ask("No picture at all, but a longer question?"), max_new_tokens=6),
    replace(REQUESTS["images with text between"], max_new_tokens=12, temperature=0.7, seed=5),
    replace(Request.ask("A number?", noise(40, 40, 3)), max_new_tokens=40, response_schema=SCHEMA),
    replace(Request.ask("Call it.", noise(30, 60, 4)), max_new_tokens=60, tools=(LOOK,), tool_choice="any"),
)


def config(route: Any) -> EngineConfig:
    # Without reuse: what a batch has to compute must not depend on what ran before it.
    return EngineConfig(reuse=NO_REUSE).escalating(route)


@pytest.fixture(scope="module")
def pair() -> SGLEngine:
    tiles = {"max_tiles": 4, "side_tokens": 4}
    return SGLEngine(tiny_vlm(size="small", **tiles), tiny_vlm(size="large", **tiles))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["never", "always"])
def alone(request: pytest.FixtureRequest, pair: SGLEngine) -> tuple[SGLEngine, list[Response]]:
    """An engine of one route, and what it answers one by one."""
    engine = pair.with_config(config(request.param))
    return engine, [engine.run(each) for each in MIXED]


def same(got: Response | Exception, alone: Response) -> None:
    assert isinstance(got, Response)
    assert got.text == alone.text
    assert got.finish_reason == alone.finish_reason
    assert [(call.name, call.arguments) for call in got.tool_calls] == [
        (call.name, call.arguments) for call in alone.tool_calls
    ]
    assert [token.token for token in got.tokens] == [token.token for token in alone.tokens]
    assert [token.logprob for token in got.tokens] == pytest.approx(
        [token.logprob for token in alone.tokens], abs=WITHIN
    )
    ours, theirs = (response.report.model_dump(exclude={"stage_ms"}) for response in (got, alone))
    assert _equal_reports(ours, theirs)
    assert set(got.report.stage_ms) == set(alone.report.stage_ms)
    assert (got.importance is None) == (alone.importance is None)
    if got.importance is not None and alone.importance is not None:
        assert relative_gap(got.importance.mass, alone.importance.mass) < WITHIN
    if alone.plan is not None:
        assert got.plan is not None
        assert torch.equal(got.plan.keep, alone.plan.keep)


def _equal_reports(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    # Of a draft that was wrong somewhere, rows that run side by side try less.
    tolerance = {"large_tflops": {"rel": 0.05}, "saved_fraction": {"abs": 0.05}}
    return all(
        ours[name]
        == (
            pytest.approx(value, **tolerance.get(name, {"rel": 60 * WITHIN}))  # of 60 tokens, at most
            if isinstance(value, float) or name == "score_parts"
            else value
        )
        for name, value in theirs.items()
    )


@pytest.mark.parametrize("max_batch_size", [32, 2, 1])
def test_a_batch_is_answered_as_its_requests_are(
    alone: tuple[SGLEngine, list[Response]], max_batch_size: int
) -> None:
    engine, expected = alone
    before = traces(engine.small), traces(engine.large)
    for got, response in zip(engine.run_batch(MIXED, max_batch_size=max_batch_size), expected, strict=True):
        same(got, response)
    assert (traces(engine.small), traces(engine.large)) == before


def test_only_those_escalate_that_should(pair: SGLEngine) -> None:
    scores = sorted(pair.run(request).report.score for request in MIXED)
    leaving = ExitConfig(threshold=sum(scores[2:4]) / 2)
    engine = pair.with_config(EngineConfig(exit=leaving, reuse=NO_REUSE))
    alone = [engine.run(request) for request in MIXED]
    assert {response.report.route for response in alone} == {"small", "large"}
    for got, response in zip(engine.run_batch(MIXED), alone, strict=True):
        same(got, response)


def test_the_large_model_runs_once_for_all(pair: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pair.with_config(config("always"))
    requests = [request for request in MIXED[:4] if request.images]
    rows: list[int] = []
    original = engine.large.forward_batch

    def counting(embeddings: torch.Tensor, **rest: Any) -> torch.Tensor:
        rows.append(len(embeddings))
        return original(embeddings, **rest)

    monkeypatch.setattr(engine.large, "forward_batch", counting)
    engine.run_batch(requests)
    assert rows[0] == len(requests)
    assert rows == sorted(rows, reverse=True)  # who has ended is not computed any further
    assert len(rows) <= max(request.max_new_tokens or 0 for request in requests)


class Budget:
    """May be asked once; then it says no, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.left = 1
        self.error = error

    def __call__(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.error is not None:
            raise self.error
        return self.left >= 0


def test_each_request_is_asked_whether_it_may_escalate(pair: SGLEngine) -> None:
    engine = pair.with_config(config("always"))
    budget = Budget()
    got = engine.run_batch([replace(request, may_escalate=budget) for request in MIXED[:3]])
    assert [response.report.route for response in got if isinstance(response, Response)] == [
        "large",
        "small",
        "small",
    ]
    strict = Budget(BudgetSpentError("Nothing is left.", remedy="Wait."))
    spent = engine.run_batch([replace(request, may_escalate=strict) for request in MIXED[:3]])
    assert [type(each) for each in spent] == [Response, BudgetSpentError, BudgetSpentError]


def bad_requests() -> list[tuple[Request, type[SGLError]]]:
    cancelled = threading.Event()
    cancelled.set()
    return [
        (Request.ask("?", b"no picture"), CorruptImageError),
        (replace(MIXED[0], temperature=-1.0), InvalidRequestError),
        (replace(MIXED[0], deadline=time.monotonic() - 1), DeadlineError),
        (replace(MIXED[0], cancel=cancelled), RequestCancelledError),
        (replace(MIXED[4], max_new_tokens=2), InvalidRequestError),  # no answer that short satisfies it
    ]


@pytest.mark.parametrize("route", ["never", "always"])
def test_a_bad_request_fails_alone(pair: SGLEngine, route: str) -> None:
    engine = pair.with_config(config(route))
    good, requests, expected = iter(MIXED), [], []
    for bad, kind in bad_requests():
        requests += [next(good), bad]
        expected += [Response, kind]
    got = engine.run_batch(requests)
    assert [type(each) for each in got] == expected
    for result, request in zip(got, requests, strict=True):
        if isinstance(result, Response):
            same(result, engine.run(request))
        else:
            assert isinstance(result, SGLError)
            with pytest.raises(type(result)):
                engine.run(request)
            assert result.__traceback__ is None


def at_step(engine: SGLEngine, model: str, step: int, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Calls `act` in a forward of one of the models."""
    vlm, steps = getattr(engine, model), iter(range(1_000))
    original = vlm.forward_batch

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(steps) == step:
            act()
        result: torch.Tensor = original(*args, **kwargs)
        return result

    monkeypatch.setattr(vlm, "forward_batch", forward)


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_request_that_is_cancelled_halfway_leaves_the_others_alone(
    pair: SGLEngine, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_worker_notices(monkeypatch)
    engine = pair.with_config(config("always"))
    alone = [engine.run(request) for request in MIXED]
    cancel = threading.Event()
    requests = [replace(MIXED[0], cancel=cancel), *MIXED[1:]]
    at_step(engine, model, 2, monkeypatch, cancel.set)
    got = engine.run_batch(requests)
    assert isinstance(got[0], RequestCancelledError)
    # How far it came depends on which others it runs beside: groups take turns.
    assert re.search("after [1-3] of 9 answer tokens", str(got[0]))
    for result, response in zip(got[1:], alone[1:], strict=True):
        same(result, response)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit(3), GeneratorExit, MemoryError])
@pytest.mark.parametrize("model", ["small", "large"])
def test_what_a_forward_raises_takes_no_other_row_along(
    pair: SGLEngine, model: str, raised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pair.with_config(config("always"))
    guilty = replace(MIXED[2], max_new_tokens=2)
    alone = [engine.run(request) for request in MIXED[:2]]
    vlm = getattr(engine, model)
    marked = vlm.encode(guilty).input_ids
    original = vlm.forward_batch

    def forward(*args: Any, batch: Any, **kwargs: Any) -> torch.Tensor:
        if any(torch.equal(prompt.input_ids, marked) for prompt in batch.prompts):
            raise raised
        result: torch.Tensor = original(*args, batch=batch, **kwargs)
        return result

    monkeypatch.setattr(vlm, "forward_batch", forward)
    first, wrong, last = engine.run_batch([MIXED[0], guilty, MIXED[1]])
    same(first, alone[0])
    same(last, alone[1])
    kind = MemoryError if raised is MemoryError else EngineError
    assert isinstance(wrong, kind)
    with pytest.raises(kind):
        engine.run(guilty)


def test_late_requests_fail_and_the_others_do_not(pair: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def later() -> None:
        now[0] += 10.0

    at_step(pair, "small", 1, monkeypatch, later)
    requests = [replace(MIXED[0], deadline=105.0), MIXED[1], replace(MIXED[2], deadline=200.0)]
    got = pair.run_batch(requests)
    assert [type(each) for each in got] == [DeadlineError, Response, Response]


@pytest.mark.parametrize("route", ["never", "always"])
def test_when_nobody_waits_any_longer_nothing_runs(
    pair: SGLEngine, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = pair.with_config(config(route))
    cancel = threading.Event()
    tasks = [AnswerTask(engine.small.encode(request), 9, Decoding(cancel=cancel)) for request in MIXED[:2]]
    with held(engine.small):
        threading.Timer(0.1, cancel.set).start()
        got = run_small_batch(engine.small, tasks)  # returns while somebody else has the model
    assert [type(each) for each in got] == [RequestCancelledError] * 2
    assert "before the small model began" in str(got[0])


def test_models_that_always_fail_fail_every_request_and_leave_nothing(pair: SGLEngine) -> None:
    engine = pair.with_config(config("always"))
    engine.run_batch(MIXED)
    before = traces(engine.small), traces(engine.large)
    for vlm in (engine.small, engine.large):
        layer = vlm.family.decoder_layers(vlm.model)[-1].mlp
        with exploding(layer):
            got = engine.run_batch(MIXED)
        assert [(type(each), str(each)) for each in got] == [(RuntimeError, "in the middle")] * len(MIXED)
        assert (traces(engine.small), traces(engine.large)) == before


def test_models_without_padding_answer_one_by_one(pair: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_engine.passes.prefill.takes_padding", lambda vlm: False)
    engine = pair.with_config(config("always"))
    rows: list[int] = []
    original = engine.large.forward_batch
    monkeypatch.setattr(
        engine.large, "forward_batch", lambda e, **rest: rows.append(len(e)) or original(e, **rest)
    )
    got = engine.run_batch(MIXED[:3])
    assert set(rows) == {1}
    for response, request in zip(got, MIXED[:3], strict=True):
        same(response, engine.run(request))


def test_which_models_take_padding() -> None:
    vlm = tiny_vlm()
    assert takes_padding(vlm)
    vlm.text_model.config._attn_implementation = "flash_attention_2"
    assert not takes_padding(vlm)


def test_times_are_shared_out(pair: SGLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but forwards takes time, a second each."""
    engine, now = pair.with_config(config("always")), [0.0]

    def forward(_: Any) -> None:
        now[0] += 1

    steps = [watch(vlm, monkeypatch, forward) for vlm in (engine.small, engine.large)]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    got = engine.run_batch(MIXED[:4])
    assert 1e3 * sum(map(len, steps)) == 1e3 * now[0] > 10_000
    reports = [response.report.stage_ms for response in got if isinstance(response, Response)]
    worked = sum(ms for report in reports for stage, ms in report.items() if stage not in {"queue", "total"})
    assert worked == pytest.approx(1e3 * now[0])
    assert max(report["total"] for report in reports) == pytest.approx(1e3 * now[0])
    for report in reports:
        total = report.pop("total")
        assert sum(report.values()) == pytest.approx(total)


def test_a_scripted_engine_answers_batches() -> None:
    engine = FakeEngine(lambda request: "word " * (500 if "long" in str(request.messages) else 1), score=0.9)
    got = engine.run_batch([Request.ask("?"), Request.ask("long?")])
    assert isinstance(got[0], Response)
    assert got[0].text.strip() == "word"
    assert isinstance(got[1], ConfigError)


def test_no_requests_and_no_rows(pair: SGLEngine) -> None:
    assert pair.run_batch([]) == []
    with pytest.raises(ConfigError, match="max_batch_size is 0"):
        pair.run_batch(MIXED, max_batch_size=0)
