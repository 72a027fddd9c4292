"""What calls cost in money: report, usage, budget, and the child runs of a trace."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import uuid4

import pytest
from hosted_servers import Script, says
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from PIL import Image
from pydantic import ValidationError
from scripted_sgl import Meeting, calls

from langchain_sgl import ChatSGL, get_sgl_usage_callback, image_block
from langchain_sgl.budget.ledger import Account, Budget, Ledger, Spending
from sgl_engine import VLM, ConfigError, EngineConfig, HostedUsage, PatchTokens, Price, Request, SendConfig
from sgl_engine.testing import FakeEngine, FakeHostedModel, tiny_vlm

PRICES = {"big": Price(input=2.5, output=10, cached_input=1.25), "tiny-internvl-small": Price.per_hour(0.36)}
PICTURE = Image.new("RGB", (280, 280), "white")  # 100 patches of 28 pixels
QUESTION = [HumanMessage([image_block(PICTURE), {"type": "text", "text": "How many?"}])]


@cache
def small() -> VLM:
    return tiny_vlm(size="small")


def engine(large: Any = None, *, score: float = 0.1, **settings: Any) -> FakeEngine:
    """The small model says "7", and is not sure."""
    told = HostedUsage(1000, 20, cached_tokens=400)
    config = EngineConfig(**{"prices": PRICES, "send": SendConfig(mode="full"), **settings})
    model = large or FakeHostedModel("8", name="big", usage=told)
    return FakeEngine(lambda _: "7", score=score, small=small(), large=model, config=config)


def cost(**settings: Any) -> Any:
    report = engine(**settings).run(Request.ask("How many?", PICTURE)).report
    assert report.cost is not None
    return report.cost, report


def test_prices_are_decimal_numbers() -> None:
    assert Price(input=0.1).of_tokens(3, 0) * 10**6 == Decimal("0.3")
    assert Price(input=1, output=2, per="1K tokens").of_tokens(1000, 500) == 2
    assert Price(input=2, cached_input=0.5).of_tokens(1_000_000, 0, cached=400_000) == Decimal("1.4")
    assert Price.per_hour(3.6).of_time(1000.0) == Decimal("0.001")
    assert Price.per_hour(3.6).of_tokens(10**6, 10**6) == 0
    assert Price.model_validate_json(Price(input=0.1).model_dump_json()) == Price(input=0.1)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"input": -1}, {"input": "nan"}, {"hour": 1}, {"per": "hour"}),
        {"hour": 1, "per": "hour", "input": 1},
    ],
)
def test_prices_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Price(**wrong)


def test_prices_of_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="for bigg; the models are tiny-internvl-small and big"):
        engine(prices={"bigg": Price(input=1)})


def test_without_prices_there_is_no_cost() -> None:
    assert engine(prices={}).run(Request.ask("How many?", PICTURE)).report.cost is None


def test_an_escalation_costs_both_models() -> None:
    found, report = cost()
    ms = sum(value for name, value in report.stage_ms.items() if name.endswith("_small"))
    assert found.small == pytest.approx(0.36 * ms / 3_600_000)
    assert found.large == pytest.approx((600 * 2.5 + 400 * 1.25 + 20 * 10) / 1e6)
    assert found.total == pytest.approx(found.small + found.large)
    assert found.large_alone == found.large  # it was sent everything
    assert found.saved == pytest.approx(-found.small)


def test_a_kept_answer_saves_an_estimate() -> None:
    found, report = cost(score=0.9, send=SendConfig(picture_tokens=PatchTokens(side=28)))
    text = report.small_input_tokens - report.visual_tokens
    assert (found.large, found.total) == (0.0, found.small)
    assert found.large_alone == pytest.approx(((text + 100) * 2.5 + report.small_output_tokens * 10) / 1e6)


def test_without_the_providers_rule_that_is_not_known() -> None:
    found, _ = cost(score=0.9)
    assert (found.large_alone, found.saved) == (None, None)


def test_what_was_cut_off_would_have_cost() -> None:
    send = SendConfig(mode="crop", overview_pixels=28 * 28, picture_tokens=PatchTokens(side=28))
    found, report = cost(send=send)  # the scripted small model looked nowhere: the overview alone goes
    assert (report.sent.sent_tokens, report.sent.full_tokens, report.sent.saved_tokens) == (1, 100, 99)
    assert found.large_alone - found.large == pytest.approx(99 * 2.5 / 1e6)


def test_a_failed_question_costs_the_small_model() -> None:
    failing = FakeHostedModel(RuntimeError("gone"), name="big")
    found, report = cost(large=failing, on_large_error="keep")
    assert (found.large, report.large_error) == (0.0, "RuntimeError")


def test_models_that_are_here_have_prices_too() -> None:
    prices = {"tiny-internvl-large": Price.per_hour(1), "tiny-internvl-small": Price(input=1)}
    local = FakeEngine(lambda _: "7", score=0.1, small=small(), config=EngineConfig(prices=prices))
    report = local.run(Request.ask("How many?", PICTURE, max_new_tokens=4)).report
    assert report.cost is not None
    assert report.cost.small == pytest.approx(report.small_input_tokens / 1e6)
    assert report.cost.large > 0
    assert report.cost.large_alone == pytest.approx(
        report.cost.large * report.large_alone_tflops / report.large_tflops
    )


def test_usage_adds_money_up() -> None:
    chat = ChatSGL(engine=engine())
    with get_sgl_usage_callback() as usage:
        reports = [each.response_metadata["sgl"]["cost"] for each in chat.batch([QUESTION] * 3)]
    totals = usage.totals
    assert totals.cost == pytest.approx(sum(each["total"] for each in reports))
    assert totals.large_alone_cost == pytest.approx(3 * 0.0022)
    assert "money spent" in str(usage)
    assert type(totals).model_validate(totals.model_dump(mode="json")) == totals


def test_a_budget_of_money_closes_the_gate() -> None:
    ledger = Ledger(Budget({("run", "cost"): 0.003}))
    report = json.loads(engine().run(Request.ask("How many?", PICTURE)).report.model_dump_json())
    asked = [uuid4() for _ in range(3)]
    assert ledger.take(asked[0])
    ledger.computed(asked[0], report)
    assert ledger.is_open()  # 0.0022 of 0.003
    assert ledger.take(asked[1])
    ledger.computed(asked[1], report)
    assert not ledger.take(asked[2])
    spent = Budget({("run", "cost"): 0.003}).describe_spent(ledger.account())
    assert spent.startswith("money in this run: 0.0044")


def test_a_budget_of_money_in_an_agent() -> None:
    from langchain.agents import create_agent
    from langgraph.checkpoint.memory import InMemorySaver

    from langchain_sgl import EscalationBudgetMiddleware

    model = FakeHostedModel("8", name="big", usage=HostedUsage(1000, 20))
    chat = ChatSGL(engine=engine(large=model))
    budget = EscalationBudgetMiddleware(thread_cost=0.003, notice_fraction=1)
    agent = create_agent(chat, middleware=[budget], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    answers = [agent.invoke({"messages": QUESTION}, thread)["messages"][-1].text for _ in range(3)]
    assert answers == ["8", "8", "7"]  # 0.0027 each
    assert len(model.calls) == 2


class Collector(BaseTracer):
    """Keeps the runs that it is told of, children in them."""

    def __init__(self) -> None:
        super().__init__(_schema_format="original+chat")  # as LangSmith's
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


def traced(chat: ChatSGL, how: str) -> Run:
    tracer = Collector()
    config: Any = {"callbacks": [tracer]}
    if how == "stream":
        list(chat.stream(QUESTION, config))
    else:
        chat.invoke(QUESTION, config)
    [run] = tracer.runs
    return run


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_a_trace_has_a_run_for_each_model_that_was_asked(how: str) -> None:
    run = traced(ChatSGL(engine=engine()), how)
    small_run, large_run = run.child_runs
    assert {each.parent_run_id for each in (small_run, large_run)} == {run.id}
    names = [(each.extra or {})["metadata"]["ls_model_name"] for each in run.child_runs]
    assert names == ["tiny-internvl-small", "big"]
    told = [usage_of(each) for each in run.child_runs]
    [[generation]] = (run.outputs or {})["generations"]
    report = generation["message"]["kwargs"]["response_metadata"]["sgl"]
    assert [each["total_cost"] for each in told] == [report["cost"]["small"], report["cost"]["large"]]
    assert (told[1]["input_tokens"], told[1]["output_tokens"]) == (1000, 20)
    assert told[0]["input_tokens"] == report["small_input_tokens"]
    assert sum(each["total_cost"] for each in told) == pytest.approx(report["cost"]["total"])
    assert large_run.start_time < (large_run.end_time or large_run.start_time)
    written = json.dumps([each.inputs for each in run.child_runs], default=str)
    assert "[picture 1]" in written
    assert "base64" not in written


def usage_of(run: Run) -> Any:
    [[generation]] = (run.outputs or {})["generations"]
    return generation["message"]["kwargs"]["usage_metadata"]


def test_a_kept_answer_has_one_child_and_a_failed_model_an_error() -> None:
    [only] = traced(ChatSGL(engine=engine(score=0.9)), "invoke").child_runs
    assert (only.extra or {})["metadata"]["sgl_role"] == "small"
    failing = FakeHostedModel(RuntimeError("gone"), name="big")
    kept = ChatSGL(engine=engine(large=failing, on_large_error="keep"))
    _, failed = traced(kept, "invoke").child_runs
    assert "RuntimeError" in (failed.error or "")


def test_without_money_and_hosted_models_traces_stay_as_they_are() -> None:
    local = FakeEngine(lambda _: "7", score=0.9, small=small())
    assert traced(ChatSGL(engine=local), "invoke").child_runs == []


def test_a_client_s_usage_is_priced() -> None:
    with Script(says("8", given=2000, written=10)).model() as model:
        found, _ = cost(large=model)
    assert found.large == pytest.approx((2000 * 2.5 + 10 * 10) / 1e6)


class Together(FakeHostedModel):
    """Answers when as many have asked as are to meet."""

    def __init__(self, parties: int) -> None:
        super().__init__("8", name="big", usage=HostedUsage(1000, 20))
        self._meet = Meeting(parties).wait

    def stream(self, call: Any) -> Any:
        self._meet()
        return (yield from super().stream(call))


@pytest.mark.parametrize(("limit", "then"), [(0.005, [False, False]), (1.0, [True, True])])
async def test_money_is_exact_where_tools_ask_at_once(limit: float, then: list[bool]) -> None:
    """Three questions at once cost 0.0027 each: they are counted to the last one, and none follows."""
    from budget_agents import agent_of, look_with
    from langgraph.checkpoint.memory import InMemorySaver

    from langchain_sgl import EscalationBudgetMiddleware

    first, second = (ChatSGL(engine=engine(large=Together(n))) for n in (3, 2))
    tools = [look_with(first), look_with(second).model_copy(update={"name": "again"})]
    script = [calls("a", "b", "c"), calls("d", "e", tool="again"), AIMessage("done")]
    budget = EscalationBudgetMiddleware(run_cost=limit)
    agent = agent_of(tools, *script, budget=budget, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    with get_sgl_usage_callback() as usage:
        result = await agent.ainvoke({"messages": "go"}, thread)
    said = [message.text for message in result["messages"] if message.type == "tool"]
    assert said == ["8", "8", "8", *("8" if escalated else "7" for escalated in then)]
    spent = agent.get_state(thread).values["sgl_budget"]["run"]
    assert spent["escalations"] == usage.totals.escalations == 3 + sum(then)
    assert spent["cost"] == pytest.approx(usage.totals.cost, rel=1e-12)
    assert usage.totals.large_cost == pytest.approx(0.0027 * (3 + sum(then)), rel=1e-12)


def booked_at_once(ledger: Ledger, times: int) -> float:
    """Books 1/1024 so often, from 16 threads; sums of it are exact."""
    report = json.loads(engine().run(Request.ask("How many?", PICTURE)).report.model_dump_json())
    report["cost"]["total"] = 1 / 1024
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: ledger.computed(uuid4(), report), range(times)))
    return ledger.account().run.cost


def test_money_is_booked_to_the_last_call_and_without_the_lock_it_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = Ledger(Budget({("run", "cost"): 1.0}))
    assert booked_at_once(ledger, 500) == ledger.take_unrecorded().cost == 500 / 1024
    unlocked, add, meeting = Ledger(Budget({("run", "cost"): 1.0})), Spending.__add__, Meeting(2)
    unlocked._lock = nullcontext()  # type: ignore[assignment]

    def slowly(mine: Spending, other: Spending) -> Spending:
        meeting.wait()  # both have read what is booked; neither has written
        return add(mine, other)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "account", lambda ledger: Account(ledger._since))
        patch.setattr(Spending, "__add__", slowly)
        assert booked_at_once(unlocked, 2) == 1 / 1024
