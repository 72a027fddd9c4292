"""SGLFirstMiddleware: a small model of one's own answers questions about pictures, before the agent's model.

Needs langchain's agents: ``pip install '.[agents]'`` in a checkout of langchain-sgl.

A model call whose last human message or tool result holds a picture goes to a ``ChatSGL`` whose large model
is the agent's own: the small one answers it where it is sure; else the agent's model gets what ``SendConfig``
says. All other calls, and those that have to call a tool, go to the agent's model as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from typing_extensions import override

from langchain_sgl.chat.image_blocks import is_image
from langchain_sgl.chat_models import ChatSGL

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ContextT,
        ModelRequest,
        ModelResponse,
        ResponseT,
    )
    from langchain.agents.structured_output import ToolStrategy
    from langgraph.types import TracePolicy, omit_payload
except ImportError as error:
    raise ImportError(
        "langchain_sgl.first needs langchain's agents, which are not installed. "
        "Install them, in a checkout of langchain-sgl: pip install '.[agents]'"
    ) from error

if TYPE_CHECKING:
    from sgl_engine import SendConfig, SendMode

_MOST_MODELS = 16  # an agent has one or two; whoever makes one per call must not fill the memory


class SGLFirstMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Asks a small model first about pictures, and the agent's model with the evidence where it is not sure.

    Put it last, so that retries, fallbacks and call limits are around it. Errors of the agent's model come
    through as they are. A report is in each answer's ``response_metadata["sgl"]``.

    Args:
        small: Path or hub id of the small model; None is the bundled one. Or a ready ``VLM`` or engine:
            ``chat``.
        send: What the agent's model is sent: "full", "crop", "mask" or "auto", or a ``SendConfig``. Whole
            pictures lose least (docs/hosted.md).
        tools: Whether the small model may also answer where the agent has tools it could call. It then is
            shown the tools, and may call them itself.
        chat: Makes the chat model for the agent's model; for engines of one's own. None is
            ``ChatSGL(small=..., large=model, send=...)``.
        settings: Further fields of ``ChatSGL``: ``exit_threshold``, ``on_large_error``, ``prices``, ...

    Example:
        ```python
        agent = create_agent(
            "openai:some-model", tools=[], middleware=[SGLFirstMiddleware(small="folder", send="auto")]
        )
        ```
    """

    # The state holds the conversation, and so its pictures: hooks' spans in traces go without.
    trace_policy = TracePolicy(process_inputs=omit_payload)

    def __init__(
        self,
        small: str | Path | None = None,
        *,
        send: SendMode | SendConfig = "full",
        tools: bool = False,
        chat: Callable[[BaseChatModel], ChatSGL] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.tools = []
        self._with_tools = tools
        # The agent's settings of its own model, as "reasoning_effort", are none of the pair's.
        given: dict[str, Any] = {"unknown_options": "warn", **settings}
        self._make = chat or (lambda model: ChatSGL(small=small, large=model, send=send, **given))
        self._made: dict[int, tuple[BaseChatModel, ChatSGL]] = {}
        self._lock = threading.Lock()

    @override
    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelResponse[ResponseT]:
        """Puts the pair in the place of the agent's model, for a call about pictures."""
        return handler(self._first(request))

    @override
    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelResponse[ResponseT]:
        """Does what ``wrap_model_call`` does around an asynchronous call."""
        return await handler(self._first(request))

    def _first(self, request: ModelRequest[ContextT]) -> ModelRequest[ContextT]:
        model = request.model
        if isinstance(model, ChatSGL) or not asks_about_pictures(request.messages):
            return request
        # What answers by a tool is made to call it when the model is bound, which is later.
        by_tool = isinstance(request.response_format, ToolStrategy) and not self._with_tools
        must_call = request.tool_choice not in (None, "auto", "none") or by_tool
        if must_call or (request.tools and not self._with_tools):
            return request
        return request.override(model=self._pair(model))

    def _pair(self, model: BaseChatModel) -> ChatSGL:
        """The chat model with the agent's model as its large one; one for each, as engines are kept by it."""
        with self._lock:
            known = self._made.get(id(model))
            if known is None:
                if len(self._made) >= _MOST_MODELS:
                    self._made.pop(next(iter(self._made)))
                known = self._made[id(model)] = (model, self._make(model))
            return known[1]


def asks_about_pictures(messages: list[Any]) -> bool:
    """Whether the last human message, or a tool result after it, holds a picture."""
    for message in reversed(messages):
        if isinstance(message, (HumanMessage, ToolMessage)) and _holds_picture(message):
            return True
        if isinstance(message, HumanMessage):
            return False
        if isinstance(message, AIMessage) and not message.tool_calls:
            return False
    return False


def _holds_picture(message: BaseMessage) -> bool:
    return not isinstance(message.content, str) and any(
        isinstance(block, dict) and is_image(block) for block in message.content
    )
