"""Usage totals: each call counted once, wherever and however it is made, and cached answers not at all."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers.context import _configure_hooks
from scripted_sgl import MakeReport, ScriptedSGL, StreamingSGL

from langchain_sgl.usage.callbacks import SGLUsageCallbackHandler, attached, get_sgl_usage_callback
from sgl_engine.errors import RequestCancelledError


@pytest.fixture
def chat(make_report: MakeReport) -> ScriptedSGL:
    return ScriptedSGL(make_report=make_report)


@pytest.fixture
def streaming(make_report: MakeReport) -> StreamingSGL:
    return StreamingSGL(make_report=make_report)


def test_totals_are_those_of_the_reports(chat: ScriptedSGL) -> None:
    handler = SGLUsageCallbackHandler()
    for question in ("easy", "hard", "easy", "easy"):
        chat.invoke(question, config={"callbacks": [handler]})
    totals = handler.totals
    assert (totals.calls, totals.exits, totals.escalations, totals.escalation_rate) == (4, 3, 1, 0.25)
    assert (totals.visual_tokens, totals.kept_visual_tokens, totals.pruned_visual_tokens) == (576, 28, 116)
    assert totals.tflops == pytest.approx(4 * 0.001 + 0.002)
    assert totals.saved_tflops == pytest.approx(4 * 0.004 - 0.006)
    assert totals.saved_fraction == pytest.approx(1 - 0.006 / 0.016)
    assert totals.stage_ms == pytest.approx({"encode_small": 12.0, "generate_small": 46.4, "total": 60.0})
    assert (totals.small_input_tokens, totals.small_output_tokens) == (640, 12)
    assert (totals.large_input_tokens, totals.large_output_tokens) == (160, 4)
    assert (totals.errors, totals.cached, totals.other_calls) == (0, 0, 0)


def test_a_snapshot_stays_as_it_is(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as usage:
        chat.invoke("easy")
        before = usage.totals
        chat.invoke("easy")
    assert (before.calls, usage.totals.calls) == (1, 2)


def test_nothing_is_counted_after_the_block(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as usage:
        pass
    chat.invoke("easy")
    assert usage.totals.calls == 0


def test_nested_blocks_count_what_is_inside_them(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as outer:
        chat.invoke("easy")
        with get_sgl_usage_callback() as inner:
            chat.invoke("hard")
        with get_sgl_usage_callback() as second:
            chat.invoke("easy")
    assert [usage.totals.calls for usage in (outer, inner, second)] == [3, 1, 1]


def test_a_handler_that_is_given_twice_counts_once(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as usage:
        chat.invoke("easy", config={"callbacks": [usage]})
        RunnableLambda(chat.invoke).invoke("easy", {"callbacks": [usage]})
    assert usage.totals.calls == 2


def test_blocks_leave_no_hooks_behind(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback(), get_sgl_usage_callback():
        before = len(_configure_hooks)
    for _ in range(20):
        with get_sgl_usage_callback(), attached(UsageMetadataCallbackHandler()):
            pass
    assert len(_configure_hooks) == before


def test_blocks_of_different_threads_do_not_mix(chat: ScriptedSGL) -> None:
    meeting = threading.Barrier(4, timeout=300)

    def count(calls: int) -> int:
        with get_sgl_usage_callback() as usage:
            meeting.wait()
            for _ in range(calls):
                chat.invoke("easy")
            meeting.wait()
        return usage.totals.calls

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, range(4))) == [0, 1, 2, 3]


def test_batches_in_threads_are_counted_exactly(chat: ScriptedSGL) -> None:
    questions = ["hard" if index % 4 == 0 else "easy" for index in range(200)]
    with get_sgl_usage_callback() as usage:
        chat.batch(questions, config={"max_concurrency": 16})
    assert (usage.totals.calls, usage.totals.escalations) == (200, 50)
    assert usage.totals.large_tflops == pytest.approx(50 * 0.002)


async def test_tasks_are_counted(chat: ScriptedSGL, streaming: StreamingSGL) -> None:
    with get_sgl_usage_callback() as usage:
        await chat.abatch(["easy"] * 8)
        await asyncio.gather(*(chat.ainvoke("hard") for _ in range(3)))
        async for _ in streaming.astream("easy"):
            pass
    assert (usage.totals.calls, usage.totals.escalations) == (12, 3)


@pytest.mark.parametrize("question", ["easy", "hard"])
def test_a_stream_counts_once_and_like_any_other_call(
    chat: ScriptedSGL, streaming: StreamingSGL, question: str
) -> None:
    with get_sgl_usage_callback() as streamed:
        assert len(list(streaming.stream(question))) > 2
    with get_sgl_usage_callback() as invoked:
        chat.invoke(question)
    assert streamed.totals == invoked.totals
    assert streamed.totals.calls == 1


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
async def test_events_count_once(streaming: StreamingSGL) -> None:
    with get_sgl_usage_callback() as usage:
        async for _ in streaming.astream_events("hard", version="v2"):
            pass
        list(streaming.stream_events("hard", version="v3"))
        async for _ in await streaming.astream_events("hard", version="v3"):
            pass
        async with asyncio.timeout(300):  # LangChain reports the end from a task of its own
            while usage.totals.calls < 3:  # noqa: ASYNC110 - it offers no event
                await asyncio.sleep(0.001)
    assert (usage.totals.calls, usage.totals.escalations) == (3, 3)


def test_a_stream_that_is_left_is_cancelled(streaming: StreamingSGL) -> None:
    with get_sgl_usage_callback() as usage:
        stream = streaming.stream("easy")
        next(stream)
        stream.close()
    assert (usage.totals.calls, usage.totals.cancelled, usage.totals.errors) == (0, 1, 0)


def test_errors_are_counted(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as usage:
        with pytest.raises(ValueError, match="broken"):
            chat.invoke("broken")
        chat.batch(["broken", "easy"], return_exceptions=True)
    assert (usage.totals.calls, usage.totals.errors) == (1, 2)


def test_cancelled_requests_are_not_errors(chat: ScriptedSGL) -> None:
    def cancel() -> None:
        raise RequestCancelledError("Cancelled.", remedy="None.")

    chat.before_decision = cancel
    with get_sgl_usage_callback() as usage, pytest.raises(RequestCancelledError):
        chat.invoke("easy")
    assert (usage.totals.cancelled, usage.totals.errors) == (1, 0)


def test_other_models_are_counted_apart(chat: ScriptedSGL) -> None:
    other = GenericFakeChatModel(messages=iter(["hello"]))
    with get_sgl_usage_callback() as usage:
        other.invoke("hi")
        chat.invoke("easy")
        with pytest.raises(StopIteration):  # its own trouble, and no error of ours
            other.invoke("hi again")
    assert usage.totals == usage.totals.model_copy(update={"calls": 1, "other_calls": 1, "errors": 0})


def test_calls_in_tools_are_counted_without_passing_callbacks(chat: ScriptedSGL) -> None:
    @tool
    def look(question: str) -> str:
        """Looks."""
        return chat.invoke(question).text

    with get_sgl_usage_callback() as usage:
        look.invoke({"question": "hard"})
    assert usage.totals.escalations == 1


def test_answers_from_the_cache_are_no_compute(make_report: MakeReport) -> None:
    chat = ScriptedSGL(make_report=make_report, cache=InMemoryCache())
    with get_sgl_usage_callback() as usage:
        first = chat.invoke("hard")
        once = usage.totals
        again = chat.invoke("hard")
    assert again.text == first.text == "large answer"
    assert chat.escalated == [True]
    assert usage.totals == once.model_copy(update={"cached": 1})
    assert (once.calls, once.cached) == (1, 0)


async def test_answers_from_the_cache_are_no_compute_async(make_report: MakeReport) -> None:
    chat = ScriptedSGL(make_report=make_report, cache=InMemoryCache())
    with get_sgl_usage_callback() as usage:
        await chat.ainvoke("hard")
        await chat.ainvoke("hard")
    assert (usage.totals.calls, usage.totals.cached) == (1, 1)


class ShowingCache(InMemoryCache):
    """Another thread has a hit on an answer before the call that computed it has reported it."""

    def update(self, prompt: str, llm_string: str, return_val: object) -> None:
        super().update(prompt, llm_string, return_val)  # type: ignore[arg-type]
        self.on_update()

    on_update: Callable[[], object]


def test_a_hit_does_not_hide_the_call_that_it_is_a_hit_of(make_report: MakeReport) -> None:
    cache = ShowingCache()
    chat = ScriptedSGL(make_report=make_report, cache=cache)
    cache.on_update = lambda: chat.invoke("hard")  # which marks the very object that the first call returns
    with get_sgl_usage_callback() as usage:
        first = chat.invoke("hard")
    assert (first.usage_metadata or {}).get("total_cost") == 0, "the mark alone would count it as cached"
    assert (usage.totals.calls, usage.totals.cached) == (1, 1)


class Wrapping(BaseChatModel):
    """Passes on what another model has answered."""

    inner: ScriptedSGL

    @property
    def _llm_type(self) -> str:
        return "wrapping"

    def _generate(self, messages: list[BaseMessage], *args: object, **kwargs: object) -> ChatResult:
        message = self.inner.invoke(messages)
        return ChatResult.model_validate({"generations": [{"message": message}]})


def test_an_answer_that_is_passed_on_counts_once(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as usage:
        Wrapping(inner=chat).invoke("hard")
    assert (usage.totals.calls, usage.totals.cached) == (1, 0)


def test_pairs_are_kept_apart(make_report: MakeReport) -> None:
    def another_pair(**changes: object) -> object:
        return make_report(**changes, large_model={"name": "org/huge"})

    with get_sgl_usage_callback() as usage:
        ScriptedSGL(make_report=make_report).invoke("easy")
        ScriptedSGL(make_report=another_pair).batch(["easy", "hard"])
    calls = {pair: pair_usage.calls for pair, pair_usage in usage.by_pair.items()}
    assert calls == {("little", "big"): 1, ("little", "org/huge"): 2}
    assert usage.totals.calls == 3
    header, *rows = str(usage).splitlines()
    assert header.split() == ["SGL", "usage", "little", "+", "big", "little", "+", "huge", "all"]
    assert "  escalated 0 0% 1 50% 1 33%".split() in [row.split() for row in rows]


def test_unknown_fields_of_a_later_schema_do_no_harm(make_report: MakeReport) -> None:
    handler = SGLUsageCallbackHandler()
    message = AIMessage("x", response_metadata={"sgl": make_report().model_dump() | {"new_field": 1}})
    GenericFakeChatModel(messages=iter([message])).invoke("?", config={"callbacks": [handler]})
    assert handler.totals.calls == 1


def test_it_prints_a_plain_table(chat: ScriptedSGL, capsys: pytest.CaptureFixture[str]) -> None:
    with get_sgl_usage_callback() as usage:
        chat.batch(["easy", "easy", "easy", "hard"])
    print(usage)  # noqa: T201 - what is tested
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "little + big" in shown
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "escalated 1 25%" in rows
    assert "GFLOPs saved 10.0 62%" in rows
    assert repr(usage) == "SGLUsageCallbackHandler(calls=4, escalations=1, saved=62%)"


def test_totals_are_json(chat: ScriptedSGL) -> None:
    with get_sgl_usage_callback() as usage:
        chat.invoke("hard")
    totals = usage.totals
    assert type(totals).model_validate(json.loads(json.dumps(totals.model_dump(mode="json")))) == totals
