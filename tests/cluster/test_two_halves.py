"""A road whose halves run apart: what crosses is copied as between machines; replicas end, or never begin.

Ray is not started here: each call of a deployment is a thread of this process (`test_on_ray.py` starts it).
"""

import asyncio
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="needs the extra cluster")

from PIL import Image  # noqa: E402  # after the check that it is installed
from ray.exceptions import RayActorError, TaskCancelledError  # noqa: E402
from ray.serve.exceptions import BackPressureError  # noqa: E402

from sgl_engine import (  # noqa: E402
    VLM,
    ConfigError,
    DeadlineError,
    EngineConfig,
    EngineError,
    ExitConfig,
    HostedServerError,
    InvalidRequestError,
    OverloadedError,
    Request,
    RequestCancelledError,
    Response,
    SGLEngine,
    TextDelta,
    ToolSpec,
)
from sgl_engine.cluster.deployments import HalfEngine, _in_thread  # noqa: E402
from sgl_engine.cluster.engine import ClusterEngine, Links  # noqa: E402
from sgl_engine.cluster.link import Link  # noqa: E402
from sgl_engine.cluster.parcels import BEGUN, Failed, Handed, Parcel, unpack  # noqa: E402
from sgl_engine.cluster.scaling import wanted_replicas  # noqa: E402
from sgl_engine.testing import tiny_vlm  # noqa: E402

ALWAYS = EngineConfig(exit=ExitConfig(escalate="always"))
PICTURE = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
ONCE: dict[str, Any] = {"start_s": 10.0, "tries": 1}
END_AFTER_TWO, FULL, NEVER = "ends after two pieces", "full", "never begins"


class Stream:
    """One call of a deployment, as Ray's generators are: it blocks, and can be cancelled from elsewhere."""

    def __init__(self, pieces: Iterator[Any], fault: str | None, cancel: threading.Event) -> None:
        self._mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancel = cancel
        if fault != NEVER:
            threading.Thread(target=self._run, args=(pieces, fault), daemon=True).start()

    def _run(self, pieces: Iterator[Any], fault: str | None) -> None:
        if fault == FULL:
            self._mail.put(BackPressureError(1, 1))
            return
        try:
            for number, piece in enumerate(pieces):
                if fault == END_AFTER_TWO and number == 2:
                    self._mail.put(RayActorError())
                    return
                self._mail.put(pickle.loads(pickle.dumps(piece)))
        except Exception as error:  # noqa: BLE001
            self._mail.put(pickle.loads(pickle.dumps(Failed(error.with_traceback(None)))))

    def __next__(self) -> Any:
        piece = self._mail.get(timeout=60)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def cancel(self) -> None:
        self._cancel.set()
        self._mail.put(TaskCancelledError())


class Machines:
    """Both deployments, the store between them, and what crosses."""

    def __init__(self, small: VLM, large: VLM, config: EngineConfig) -> None:
        self.config = config
        self.halves = {"begin": HalfEngine(small, large, config), "go_on": HalfEngine(small, large, config)}
        self.store: dict[str, Any] = {}
        self.sent: list[tuple[str, bytes]] = []
        self.faults: list[str | None] = []

    def put(self, source: Any) -> str:
        name = f"object {len(self.store)}"
        self.store[name] = pickle.dumps(source)
        return name

    def call(self, method: str, *given: Any) -> Stream:
        fault = self.faults.pop(0) if self.faults else None
        data = pickle.dumps(given)
        self.sent.append((method, data))
        parcel, *handed = pickle.loads(data)
        cancel = threading.Event()
        return Stream(self._run(method, parcel, handed, cancel), fault, cancel)

    def _run(
        self, method: str, parcel: Parcel, handed: list[Handed], cancel: threading.Event
    ) -> Iterator[Any]:
        sources = {name: pickle.loads(data) for name, data in self.store.items()}
        engine = self.halves[method].configured(parcel.config)
        yield from getattr(engine, method)(unpack(parcel, sources, cancel), *handed, parcel.answers)

    def engine(self, *, start_s: float = 60.0, tries: int = 2) -> ClusterEngine:
        halves = self.halves["begin"]
        links = [Link(side, self.call, start_s=start_s, tries=tries) for side in ("small", "large")]
        return ClusterEngine(halves.small, halves.large, self.config, Links(*links, self.put))


@pytest.fixture(scope="module")
def pair() -> tuple[VLM, VLM]:
    return tiny_vlm(size="small"), tiny_vlm(size="large")


@pytest.fixture
def machines(pair: tuple[VLM, VLM]) -> Callable[..., Machines]:
    return lambda config=ALWAYS: Machines(*pair, config)


def outcome(response: Response) -> dict[str, Any]:
    """All of a response but its times."""
    report = response.report.model_dump(exclude={"stage_ms"})
    mass = None if response.importance is None else response.importance.mass.tolist()
    keep = None if response.plan is None else response.plan.keep.tolist()
    names = ("text", "finish_reason", "tool_calls", "invalid_tool_calls", "tokens", "reasoning")
    stages = sorted(response.report.stage_ms)
    return {
        **{name: getattr(response, name) for name in names},
        "report": report,
        "mass": mass,
        "keep": keep,
        "stages": stages,
    }


def ask(**changes: Any) -> Request:
    return replace(Request.ask("What is it?", PICTURE, max_new_tokens=12), **changes)


@pytest.mark.parametrize("escalate", ["always", "never"])
@pytest.mark.parametrize(
    "request_",
    [
        ask(logprobs=True, top_logprobs=2),
        ask(temperature=1.0, seed=7, deadline=time.monotonic() + 86_400),
        ask(response_schema={"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]}),
        ask(
            tools=(ToolSpec("look", "Looks.", {"type": "object", "properties": {}}),),
            tool_choice="any",
            max_new_tokens=80,
        ),
        Request.ask("Hello?", max_new_tokens=4),
    ],
    ids=["logprobs", "sampled", "schema", "tool", "no picture"],
)
def test_answers_and_reports_are_those_of_one_process(
    pair: tuple[VLM, VLM], machines: Callable[..., Machines], request_: Request, escalate: Any
) -> None:
    config = EngineConfig().without_reuse().escalating(escalate)
    with SGLEngine(*pair, config) as alone:
        events = list(alone.stream(request_))
    apart = list(machines(config).engine().stream(request_))
    expected, found = outcome(events[-1]), outcome(apart[-1])
    if request_.tools:  # calls get ids of their own
        for each in (expected, found):
            each["tool_calls"] = [(call.name, call.arguments) for call in each["tool_calls"]]
    assert found == expected
    assert apart[0] == events[0]  # the decision
    if not request_.tools:
        assert apart[1:-1] == events[1:-1]


def test_scores_are_those_of_one_process(pair: tuple[VLM, VLM], machines: Callable[..., Machines]) -> None:
    config = ALWAYS.without_reuse()
    with SGLEngine(*pair, config) as alone:
        expected = alone.score_answers(ask(), ["a", "b c"])
    found = machines(config).engine().score_answers(ask(), ["a", "b c"])
    assert (found.logprobs, found.token_logprobs) == (expected.logprobs, expected.token_logprobs)
    apart, together = (each.report.model_dump(exclude={"stage_ms"}) for each in (found, expected))
    assert apart == together


@pytest.mark.parametrize("answers", ["ab", [], ["a", ""], [5]])
def test_answers_that_one_process_refuses_are_refused(
    pair: tuple[VLM, VLM], machines: Callable[..., Machines], answers: Any
) -> None:
    cluster = machines()
    with SGLEngine(*pair) as alone:
        for engine in (alone, cluster.engine()):
            with pytest.raises(InvalidRequestError, match="The answers to score are"):
                engine.score_answers(ask(), answers)
    assert not cluster.sent


def test_a_picture_lies_in_the_store_once_and_is_only_referred_to(machines: Callable[..., Machines]) -> None:
    large = Image.effect_noise((640, 480), 90).convert("RGB")
    cluster = machines()
    deadline = time.monotonic() + 86_400
    cluster.engine().run(Request.ask("What is it?", large, max_new_tokens=2, deadline=deadline))
    assert len(cluster.store) == 1
    assert [method for method, _ in cluster.sent] == ["begin", "go_on"]
    assert max(len(data) for _, data in cluster.sent) < 10_000 < len(cluster.store["object 0"])
    [(first,), (parcel, handed)] = [pickle.loads(data) for _, data in cluster.sent]
    assert 0 < parcel.left_s < first.left_s < 86_400
    assert [part.source for part in parcel.request.images] == ["object 0"]
    # The control: the whole turn would be sent with the logits of its answer.
    assert handed.turn.generation.logprobs.numel() == 0
    assert len(handed.turn.generation.token_ids) > 0


def test_settings_of_a_request_go_with_it(machines: Callable[..., Machines]) -> None:
    cluster = machines(EngineConfig().without_reuse())
    engine = cluster.engine()
    report = engine.with_config(engine.config.escalating("always")).run(ask()).report
    assert (report.route, report.forced) == ("large", True)
    [parcel, *_], *_ = (pickle.loads(data) for _, data in cluster.sent)
    assert parcel.config is not None
    cluster.sent.clear()
    engine.run(ask())
    [parcel, *_], *_ = (pickle.loads(data) for _, data in cluster.sent)
    assert parcel.config is None  # the control: those of the deployment are not sent


@pytest.mark.parametrize("side", ["small", "large"])
def test_a_replica_that_ends_is_replaced_and_nothing_is_said_twice(
    machines: Callable[..., Machines], side: str
) -> None:
    cluster = machines()
    expected = cluster.engine().run(ask())
    cluster.sent.clear()
    if side == "small":  # of which only two pieces come: it has to end before the second
        cluster.halves["begin"] = _one_more(cluster.halves["begin"])
    cluster.faults = [END_AFTER_TWO] if side == "small" else [None, END_AFTER_TWO]
    *events, response = cluster.engine().stream(ask())
    assert response.text == expected.text
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == expected.text
    again = {"small": ["begin", "begin", "go_on"], "large": ["begin", "go_on", "go_on"]}
    assert [method for method, _ in cluster.sent] == again[side]


def _one_more(half: HalfEngine) -> HalfEngine:
    """A half that says once more that it has begun."""
    begin = half.begin

    def twice(request: Request, answers: Any) -> Iterator[Any]:
        yield "begun"
        yield from begin(request, answers)

    half.begin = twice  # type: ignore[method-assign]
    return half


def test_an_answer_that_comes_out_differently_is_an_error(
    machines: Callable[..., Machines], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = machines()
    go_on, texts = cluster.halves["go_on"].go_on, iter(["one", "two"])

    def other(request: Request, handed: Handed, answers: Any) -> Iterator[Any]:
        yield "begun"
        yield TextDelta(next(texts))
        yield from go_on(request, handed, answers)

    monkeypatch.setattr(cluster.halves["go_on"], "go_on", other)
    cluster.faults = [None, END_AFTER_TWO]
    with pytest.raises(EngineError, match="came out differently"):
        cluster.engine().run(ask())


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (END_AFTER_TWO, HostedServerError, "The large model ended while it answered"),
        (NEVER, HostedServerError, "The large model has not begun within 0.2 s"),
        (FULL, OverloadedError, "Too many requests wait for the large model"),
    ],
)
def test_a_large_model_that_fails_is_one_error_or_the_small_answer(
    pair: tuple[VLM, VLM],
    machines: Callable[..., Machines],
    fault: str,
    error: type[Exception],
    words: str,
) -> None:
    cluster = machines(ALWAYS.without_reuse())
    cluster.faults = [None, fault, fault]
    with pytest.raises(error, match=words):
        cluster.engine(start_s=0.2 if fault == NEVER else 60).run(ask())
    keeps = machines(ALWAYS.without_reuse().model_copy(update={"on_large_error": "keep"}))
    keeps.faults = [None, fault, fault]
    *events, response = keeps.engine(start_s=0.2 if fault == NEVER else 60).stream(ask())
    with SGLEngine(*pair, keeps.config.escalating("never")) as alone:
        small = alone.run(ask())
    assert response.text == small.text
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == small.text
    report = response.report
    assert (report.route, report.escalated, report.large_output_tokens) == ("small", True, None)
    assert words in (report.large_error or "")


def test_a_small_model_that_never_begins_is_an_error(machines: Callable[..., Machines]) -> None:
    cluster = machines()
    cluster.faults = [NEVER]
    with pytest.raises(EngineError, match="The small model has not begun within 0.2 s"):
        cluster.engine(start_s=0.2).run(ask())


def test_deadlines_and_cancellations_end_a_call_that_waits(machines: Callable[..., Machines]) -> None:
    cluster = machines()
    cluster.faults = [NEVER, NEVER]
    with pytest.raises(DeadlineError):
        cluster.engine().run(ask(deadline=time.monotonic() + 0.2))
    engine = cluster.engine()
    future = engine.submit(ask(cancel=(cancel := threading.Event())))
    while engine.load()["waiting_small"] != 1:
        time.sleep(0.01)
    cancel.set()
    with pytest.raises(RequestCancelledError):
        future.result(timeout=60)
    while sum(engine.load().values()):  # the thread that waited has gone
        time.sleep(0.01)


def watchers() -> int:
    return sum(thread.name == "sgl-link" for thread in threading.enumerate())


def test_one_thread_watches_all_calls_and_ends_with_the_last() -> None:
    """Calls one after the other: each begins where there was none for a moment, and the thread sleeps."""
    while watchers():  # of the tests before
        time.sleep(0.01)
    link = Link("small", lambda *_: Stream(iter([BEGUN, "outcome"]), None, threading.Event()), **ONCE)
    most = 0
    for _ in range(20):
        assert [piece for [(_, piece)] in link.work(ask(), "begin").run([])] == ["outcome"]
        most = max(most, watchers())
    assert most == 1
    while watchers():
        time.sleep(0.01)
    # The control: another call is watched, and found to be late.
    late = Link("small", lambda *_: Stream(iter(()), NEVER, threading.Event()), **{**ONCE, "start_s": 0.1})
    for _ in range(2):
        with pytest.raises(EngineError, match="has not begun within 0.1 s"):
            list(late.work(ask(), "begin").run([]))


def test_a_call_that_cannot_be_cancelled_leaves_no_other_unwatched() -> None:
    class Stubborn(Stream):
        def cancel(self) -> None:
            super().cancel()
            if threading.current_thread().name == "sgl-link":
                raise RuntimeError("no")

    link = Link("small", lambda *_: Stubborn(iter(()), NEVER, threading.Event()), **{**ONCE, "start_s": 0.1})
    for _ in range(2):
        with pytest.raises(EngineError, match="has not begun within 0.1 s"):
            list(link.work(ask(), "begin").run([]))


def test_errors_of_a_request_come_back_as_they_are(machines: Callable[..., Machines]) -> None:
    engine = machines().engine()
    with pytest.raises(InvalidRequestError, match="max_new_tokens"):
        engine.run(ask(max_new_tokens=0))
    with pytest.raises(InvalidRequestError, match="may_escalate"):
        engine.run(ask(may_escalate=lambda: True))
    first, second = engine.run_batch([ask(max_new_tokens=0), ask()])
    assert isinstance(first, InvalidRequestError)
    assert isinstance(second, Response)


def test_calibrations_are_refused(machines: Callable[..., Machines]) -> None:
    engine = machines().engine()
    calibrated = engine.config.exit.model_copy(update={"calibration": "calibration.json"})
    with pytest.raises(ConfigError, match="no machine of a cluster holds"):
        engine.with_config(engine.config.model_copy(update={"exit": calibrated}))


@pytest.mark.parametrize(
    ("running", "waiting", "wanted"),
    [(0, 0, 0), (0, 0.2, 1), (3, 0, 1), (8, 3, 1), (8, 4, 2), (16, 9, 4), (9, 0, 2), (0, 8, 2)],
)
def test_replicas_follow_those_who_wait(running: float, waiting: float, wanted: int) -> None:
    assert wanted_replicas(running=running, waiting=waiting, slots=8, worth=4) == wanted


def test_what_an_iterator_yields_in_a_thread_ends_when_nobody_reads_on() -> None:
    ended = threading.Event()

    def steps() -> Iterator[int]:
        yield 1
        assert cancel.wait(60)
        ended.set()
        raise EngineError("Cancelled.", remedy="None.")

    async def read() -> None:
        pieces = _in_thread(steps(), cancel)
        assert await anext(pieces) == 1
        await pieces.aclose()

    cancel = threading.Event()
    asyncio.run(read())
    assert ended.wait(60)
