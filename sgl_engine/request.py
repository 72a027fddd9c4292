"""What flows through the engine: frozen dataclasses, without behaviour beyond views of their own data.

Letters used in shapes: S prompt tokens, V visual tokens among them, M kept prompt tokens, T generated tokens,
L decoder layers, B batch (1, but in a ``PromptBatch``). Indices are prompt positions. Classes that hold
tensors compare by identity (``eq=False``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sgl_engine.errors import DeadlineError, RequestCancelledError

if TYPE_CHECKING:
    from PIL.Image import Image


Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

ToolChoice: TypeAlias = Literal["auto", "any", "none"]

ImageSource: TypeAlias = "bytes | str | Path | Image"


@dataclass(frozen=True, eq=False)
class ImagePart:
    """One image of a message.

    Attributes:
        source: Encoded bytes, a PIL image, a URL (``https:`` or ``data:``) as ``str``, or a local file as
            ``pathlib.Path``. A ``str`` never opens a local file: text from a message cannot name one.
    """

    source: ImageSource


@dataclass(frozen=True)
class ToolSpec:
    """A function that a model may ask its caller to run.

    Attributes:
        name: What calls name.
        description: What it does, for the model.
        parameters: JSON schema of the arguments, an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A model's wish to have a tool run.

    Attributes:
        id: Ties the tool's result to this call.
        name: Name of a ``ToolSpec``.
        arguments: As the tool's schema says, where decoding was constrained; else whatever the model wrote.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """Something that was meant as a tool call and cannot be read as one.

    Attributes:
        id: An id, as a valid call would have.
        name: The tool's name, where it can be told.
        arguments: What the model wrote for them.
        error: Why it is not a call.
    """

    id: str
    name: str | None
    arguments: str
    error: str


@dataclass(frozen=True)
class Message:
    """One turn: a role, then texts and images in the order in which the model reads them.

    Attributes:
        role: Who speaks.
        content: Texts and images.
        tool_calls: Of an assistant: what it called after the text.
        tool_call_id: Of a tool: which call this is the result of.
        name: Of a tool: its name, where it is known.
    """

    role: Role
    content: tuple[str | ImagePart, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Request:
    """A question and its pictures.

    ``None`` means "as the engine's configuration says".

    Attributes:
        messages: The conversation; the last message is the one that is answered.
        max_new_tokens: Upper limit of answer tokens.
        temperature: 0 is greedy.
        top_p: Nucleus in (0, 1]; only used when the temperature is above 0.
        stop: Strings that end the answer; they are not part of it. JSON and tool calls are never cut: inside
            them, and so in an answer that has to be JSON or a call, these strings mean nothing.
        seed: Makes sampling repeatable.
        deadline: ``time.monotonic()`` value in seconds, after which the request fails with ``DeadlineError``.
        cancel: Once set, the request fails with ``RequestCancelledError`` within one token.
        may_escalate: Asked, from the thread that runs the request, right before the large model would be
            called; False keeps the small answer. For budgets that many requests share.
        tools: What the model may call.
        tool_choice: "auto" leaves it to the model, "any" makes it call at least one, "none" forbids calls.
        tool_name: The only tool that may be called; None is any of ``tools``.
        parallel_tool_calls: Whether one answer may hold several calls.
        logprobs: Whether ``Response.tokens`` is wanted.
        response_schema: JSON schema that the answer satisfies, by constrained decoding; {"type": "object"} is
            any JSON object. With tools, the answer is that or calls. Not together with a forced call.
        chat_template_kwargs: Further variables for the models' chat templates, as {"enable_thinking": False};
            a template that does not know a name ignores it.
    """

    messages: tuple[Message, ...]
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    deadline: float | None = None
    cancel: threading.Event | None = None
    may_escalate: Callable[[], bool] | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    logprobs: bool = False
    response_schema: Mapping[str, Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def ask(
        cls,
        question: str,
        *images: ImageSource,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: tuple[str, ...] = (),
        seed: int | None = None,
        deadline: float | None = None,
    ) -> Request:
        """The common case: one user turn, the images first, then the question."""
        content: tuple[str | ImagePart, ...] = (*(ImagePart(image) for image in images), question)
        return cls(
            messages=(Message("user", content),),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            deadline=deadline,
        )

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """All images, in the order in which the model sees them."""
        parts = (part for message in self.messages for part in message.content)
        return tuple(part for part in parts if isinstance(part, ImagePart))


@dataclass(frozen=True)
class Decoding:
    """How answer tokens are chosen, and when to give up. The default is greedy and unhurried.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus in (0, 1].
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        deadline: ``time.monotonic()`` value in seconds, or None.
        cancel: Once set, generation ends within one token with ``RequestCancelledError``.
        grammar: What the answer is held to (``sgl_engine.chat.grammar``), or None. Log-probabilities do not
            change: they are the model's own, not those of the choice that was left.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    cancel: threading.Event | None = None
    grammar: str | None = None


def check_wanted(wish: Request | Decoding, where: str) -> None:
    """Fails when the answer is not wanted any more.

    Args:
        wish: Whose ``cancel`` and ``deadline`` count.
        where: How far it got, for the message: "after 3 of 10 answer tokens".

    Raises:
        RequestCancelledError: It was cancelled.
        DeadlineError: It is late.
    """
    if wish.cancel is not None and wish.cancel.is_set():
        raise RequestCancelledError(
            f"The request was cancelled {where}.", remedy="Send it again if the answer is wanted after all."
        )
    if wish.deadline is None:
        return
    late_s = time.monotonic() - wish.deadline
    if late_s > 0:
        raise DeadlineError(
            f"The deadline passed {late_s:.3f} s ago, {where}.",
            remedy="Set a later deadline, ask for fewer tokens, or keep less of the image.",
        )
