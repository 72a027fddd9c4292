"""A chat model that reports like ChatSGL and asks like it before it escalates, without any weights."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from langchain_sgl.budget.gate import permission
from sgl_engine.report.run_report import RunReport

MakeReport = Callable[..., RunReport]


class ScriptedSGL(BaseChatModel):
    """Wants to escalate whenever the question says "hard", and does if nobody forbids it."""

    make_report: Any
    before_decision: Any = None
    """Called when the small model has answered."""
    before_end: Any = None
    """Called when the large model has been let in."""
    escalated: list[bool] = Field(default_factory=list)
    """One entry per call, in the order in which they ended."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "sgl", "ls_model_type": "chat"}

    def _answer(self, messages: list[BaseMessage], run_id: UUID | None) -> AIMessage:
        question = messages[-1].text
        may_escalate = permission(run_id)
        if self.before_decision:
            self.before_decision()
        escalate = "hard" in question and (may_escalate is None or may_escalate())
        if "broken" in question:
            raise ValueError("broken")
        if escalate and self.before_end:
            self.before_end()
        changes = {"route": "large", "escalated": True, "kept_visual_tokens": 28, "large_tflops": 0.002}
        changes |= {"large_agreed": False, "large_input_tokens": 160, "large_output_tokens": 4}
        report = self.make_report(**changes) if escalate else self.make_report()
        self.escalated.append(escalate)
        return AIMessage(
            "large answer" if escalate else "small answer",
            response_metadata={"sgl": report.model_dump(mode="json"), "model_provider": "sgl"},
            usage_metadata={"input_tokens": 160, "output_tokens": 3, "total_tokens": 163},
        )

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        message = self._answer(messages, run_manager.run_id if run_manager else None)
        return ChatResult(generations=[ChatGeneration(message=message)])


class StreamingSGL(ScriptedSGL):
    """Streams word by word; report and usage on the last chunk alone."""

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._answer(messages, run_manager.run_id if run_manager else None)
        for word in message.text.split():
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                "",
                response_metadata=message.response_metadata,
                usage_metadata=message.usage_metadata,
                chunk_position="last",
            )
        )


class ScriptedAgentModel(BaseChatModel):
    """An agent's model of another provider: says what it is told to, and keeps what it was sent."""

    script: list[AIMessage]
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    options: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted-agent"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(**kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.seen.append(messages)
        self.options.append(kwargs)
        message = self.script[len(self.seen) - 1]
        # A new one: LangGraph knows messages by their id.
        return ChatResult(generations=[ChatGeneration(message=message.model_copy(deep=True))])


def calls(*questions: str, tool: str = "look") -> AIMessage:
    """An agent model's message that calls a tool once per question."""
    return AIMessage(
        "",
        tool_calls=[
            {"name": tool, "args": {"question": question}, "id": f"{question}-{index}", "type": "tool_call"}
            for index, question in enumerate(questions)
        ],
    )


class Meeting:
    """Lets ``parties`` calls go on only when all of them have come here."""

    def __init__(self, parties: int) -> None:
        self.wait = threading.Barrier(parties, timeout=300).wait
