"""The budget on the bundled pair: ChatSGL in tools of an agent that a scripted model leads, and by itself."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image
from scripted_sgl import ScriptedAgentModel

from langchain_sgl import ChatSGL, image_block
from langchain_sgl.budget.gate import limit_escalation
from langchain_sgl.budget.ledger import Budget, Ledger, Spending
from langchain_sgl.budget.middleware import EscalationBudgetMiddleware
from langchain_sgl.tools.toolkit import VisualQuestionTool
from langchain_sgl.usage.callbacks import attached, get_sgl_usage_callback
from sgl_engine.demo.pages import heldout_pages

ASKED = list(heldout_pages(6, tiles=1))
PICTURES = {f"picture-{index}": page.pixels for index, (page, _) in enumerate(ASKED)}
THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.fixture
def chat() -> ChatSGL:
    """The bundled pair, which wants to escalate every time."""
    return ChatSGL(exit_threshold=1.0)


def ask(index: int) -> list[Any]:
    page, question = ASKED[index]
    return [HumanMessage([image_block(Image.fromarray(page.pixels)), question.text])]


def look(*indices: int, **arguments: Any) -> AIMessage:
    """An agent model's message that asks about some of the pictures."""
    return AIMessage(
        "",
        tool_calls=[
            {
                "name": "look_at_picture",
                "args": {"question": ASKED[index][1].text, "picture": f"picture-{index}", **arguments},
                "id": f"call-{index}",
                "type": "tool_call",
            }
            for index in indices
        ],
    )


def make_agent(chat: ChatSGL, *script: AIMessage, limits: dict[str, Any] | None) -> Any:
    tool = VisualQuestionTool(
        model=chat, store={name: Image.fromarray(pixels) for name, pixels in PICTURES.items()}
    )
    middleware = [EscalationBudgetMiddleware(**limits)] if limits else []
    model = ScriptedAgentModel(script=[*script, AIMessage("done")])
    return create_agent(model, [tool], middleware=middleware, checkpointer=InMemorySaver())


def reports(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [m.artifact["report"] for m in result["messages"] if isinstance(m, ToolMessage)]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(("limits", "escalations"), [(None, 4), ({"run_escalations": 2}, 2)])
async def test_questions_in_tools_keep_to_the_budget(
    chat: ChatSGL, limits: dict[str, Any] | None, escalations: int, *, at_once: bool, asynchronous: bool
) -> None:
    script = [look(0, 1, 2, 3)] if at_once else [look(index) for index in range(4)]
    agent = make_agent(chat, *script, limits=limits)
    given = {"messages": [("user", "go")]}
    with get_sgl_usage_callback() as usage:
        result = await agent.ainvoke(given, THREAD) if asynchronous else agent.invoke(given, THREAD)
    made = reports(result)
    assert sum(report["escalated"] for report in made) == escalations
    assert [report["forced"] for report in made] == [not report["escalated"] for report in made]
    assert usage.totals.escalations == escalations
    assert usage.totals.tflops == pytest.approx(sum(r["small_tflops"] + r["large_tflops"] for r in made))
    if limits:
        record = agent.get_state(THREAD).values["sgl_budget"]["run"]
        assert record["escalations"] == escalations
        assert record["tflops"] == pytest.approx(usage.totals.tflops)
        assert record["ms"] == pytest.approx(usage.totals.total_ms)


def test_an_agent_that_asks_for_the_large_model_does_not_get_it(chat: ChatSGL) -> None:
    script = [look(0, escalate=True), look(1, escalate=True)]
    limited = make_agent(chat, *script, limits={"run_escalations": 1}).invoke({"messages": "go"}, THREAD)
    assert [report["escalated"] for report in reports(limited)] == [True, False]


def test_the_small_answer_is_the_one_that_never_escalating_gives(chat: ChatSGL) -> None:
    ledger = Ledger(Budget({("run", "escalations"): 0}))
    with limit_escalation(ledger):
        limited = chat.invoke(ask(0))
    never = chat.invoke(ask(0), escalate="never")
    assert limited.text == never.text
    assert not limited.response_metadata["sgl"]["escalated"]


def test_a_large_answer_that_is_left_counts_as_an_escalation(chat: ChatSGL) -> None:
    ledger = Ledger(Budget({("run", "escalations"): 1}))
    with attached(ledger), limit_escalation(ledger):
        stream = chat.stream(ask(0))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert ledger.account().run == Spending(escalations=1)
        again = chat.invoke(ask(0))
    assert not again.response_metadata["sgl"]["escalated"]


async def test_tasks_share_what_is_left(chat: ChatSGL) -> None:
    ledger = Ledger(Budget({("run", "escalations"): 3}))
    with attached(ledger), limit_escalation(ledger):
        answers = await asyncio.gather(*(chat.ainvoke(ask(index)) for index in range(6)))
    assert sum(answer.response_metadata["sgl"]["escalated"] for answer in answers) == 3
    assert ledger.account().run.escalations == 3


def test_what_a_budget_kept_small_is_not_served_from_the_cache(chat: ChatSGL) -> None:
    chat = ChatSGL(exit_threshold=1.0, cache=InMemoryCache())
    spent, fresh = (Ledger(Budget({("run", "escalations"): amount})) for amount in (0, 9))
    with limit_escalation(spent):
        assert not chat.invoke(ask(0)).response_metadata["sgl"]["escalated"]
    with limit_escalation(fresh):
        assert chat.invoke(ask(0)).response_metadata["sgl"]["escalated"]
    assert chat.invoke(ask(0)).response_metadata["sgl"]["escalated"]


@pytest.mark.parametrize("streamed", [True, False])
def test_usage_is_that_of_the_report(chat: ChatSGL, *, streamed: bool) -> None:
    with get_sgl_usage_callback() as usage:
        if streamed:
            *_, last = chat.stream(ask(0))
            report = last.response_metadata["sgl"]
        else:
            report = chat.invoke(ask(0)).response_metadata["sgl"]
    totals = usage.totals
    assert (totals.calls, totals.escalations) == (1, 1)
    assert totals.stage_ms == report["stage_ms"]
    assert totals.saved_fraction == pytest.approx(report["saved_fraction"])
    assert totals.pruned_visual_tokens == report["visual_tokens"] - report["kept_visual_tokens"]


def test_failed_calls_of_chat_sgl_are_errors(chat: ChatSGL) -> None:
    with get_sgl_usage_callback() as usage, pytest.raises(Exception, match="picture"):
        chat.invoke([HumanMessage([{"type": "image", "base64": "AAAA", "mime_type": "image/png"}, "What?"])])
    assert (usage.totals.errors, usage.totals.calls) == (1, 0)
