"""An agent with eyes and a budget: SGLToolkit as its tools, EscalationBudgetMiddleware around them.

    python examples/agent.py                         # a scripted model plans, and the output says so
    python examples/agent.py --model ollama:qwen3    # any tool-calling model, by its init_chat_model name
    python examples/agent.py --escalations 2

The agent's model sees no pictures: it asks the tools, which ask the bundled pair. Once the budget is spent,
the small model answers alone, and the agent is told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging
from typing_extensions import override

from langchain_sgl import ChatSGL, EscalationBudgetMiddleware, SGLToolkit, get_sgl_usage_callback
from sgl_engine.demo import PICTURES

PROMPT = "You answer questions about pictures with your tools. The picture files are: {names}."
PAGE = json.loads((PICTURES / "demo.json").read_text())
QUESTIONS = (
    ("receipt.png", "How much is the total?", "3.73"),
    *(("page.png", each["question"], each["answer"]) for each in PAGE[1:]),
    ("chart.png", "Which bar is orange?", "dec"),
)
"""Picture, question and what the picture says; those about the page make the small model unsure."""
TASK = "Find out, one after the other: {questions} Then report every answer, and how far it can be trusted."


class ScriptedModel(BaseChatModel):
    """Stands in for a tool-calling model: asks a fixed list of questions, then reports what the tools said.

    The plan is fixed; the tools' answers, and so the report, are not.
    """

    plan: Sequence[tuple[str, str, str]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        read = [message for message in messages if isinstance(message, ToolMessage)]
        return ChatResult(generations=[ChatGeneration(message=self._next(read))])

    def _next(self, read: Sequence[ToolMessage]) -> AIMessage:
        if len(read) < len(self.plan):
            picture, question, _ = self.plan[len(read)]
            call = {"picture": picture, "question": question}
            return AIMessage(
                "", tool_calls=[{"name": "look_at_picture", "args": call, "id": f"call_{len(read)}"}]
            )
        lines = [
            f"{picture}: {question} {message.text.splitlines()[0]}{_doubt(message)}"
            for (picture, question, _), message in zip(self.plan, read, strict=True)
        ]
        return AIMessage("\n".join(lines))


def _doubt(message: ToolMessage) -> str:
    """What a reader of the tool's report can tell about an answer."""
    report = message.artifact["report"]
    if report["route"] == "small" and report["score"] < report["threshold"]:
        return f" (doubtful: the small model's score is {report['score']:.2f}, and it answered alone)"
    return ""


class ShowNotices(AgentMiddleware[Any, Any, Any]):
    """Prints what the budget's middleware, which stands before it, has added to the system prompt."""

    def __init__(self, console: Console, prompt: str) -> None:
        super().__init__()
        self._console, self._prompt, self._last = console, prompt, ""

    @override
    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        told: SystemMessage | None = request.system_message
        notice = (told.text if told else "").removeprefix(self._prompt).strip()
        if notice and notice != self._last:
            self._console.print(f"  [yellow]told to the model:[/] {escape(notice)}")
        self._last = notice
        return handler(request)


def show(console: Console, message: BaseMessage) -> None:
    """One message of the conversation."""
    if isinstance(message, ToolMessage):
        console.print(f"  {message.text}\n", markup=False)
    elif isinstance(message, AIMessage):
        for call in message.tool_calls:
            arguments = ", ".join(f"{name}={value!r}" for name, value in call["args"].items())
            console.print(f"[bold]{call['name']}[/]({escape(arguments)})")
        if message.text:
            console.print(f"[bold]report[/]\n{escape(message.text)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the agent and prints the conversation as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help='"provider:name", as for init_chat_model; default: a scripted one')
    parser.add_argument(
        "--escalations", type=int, default=1, help="calls of the large model that it may cost"
    )
    arguments = parser.parse_args(argv)
    logging.disable_progress_bar()

    console = Console(highlight=False, soft_wrap=True)
    if arguments.model:
        try:
            model = init_chat_model(arguments.model)
        except (ImportError, ValueError) as error:  # a package that is not installed, or no such provider
            parser.error(str(error))
        console.print(f"The agent's model is {arguments.model}.\n")
    else:
        model = ScriptedModel(plan=QUESTIONS)
        console.print(
            "No --model is given, so a SCRIPTED model plans: its questions are fixed. "
            "The answers are the pair's.\n"
        )
    pictures = sorted(path.name for path in PICTURES.glob("*.png"))
    prompt = PROMPT.format(names=", ".join(pictures))
    agent = create_agent(
        model,
        SGLToolkit(model=ChatSGL(), root=PICTURES).get_tools(),
        system_prompt=prompt,
        middleware=[
            EscalationBudgetMiddleware(run_escalations=arguments.escalations, notice_fraction=0),
            ShowNotices(console, prompt),
        ],
    )
    task = TASK.format(questions=" ".join(f"{question} ({picture})" for picture, question, _ in QUESTIONS))
    with get_sgl_usage_callback() as usage:
        for update in agent.stream({"messages": [HumanMessage(task)]}, stream_mode="updates"):
            for step in update.values():
                for message in (step or {}).get("messages", []):
                    show(console, message)
    truths = ", ".join(f"{question} {truth}" for _, question, truth in QUESTIONS)
    console.print(f"What the pictures say: {truths}.\n", markup=False)
    print(usage)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
