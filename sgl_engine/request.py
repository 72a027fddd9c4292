"""Defines what the engine is asked: frozen dataclasses, without behaviour beyond views of their own data.

Letters used in shapes: S prompt tokens, V visual tokens among them, M kept prompt tokens, T generated tokens,
L decoder layers, B batch (1, but in a ``PromptBatch``). Indices are prompt positions. Classes that hold
tensors compare by identity (``eq=False``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        block: Of a picture that is loaded: which image of the request it was, from 0. A file of several pages
            becomes several pictures of one number.
    """

    source: ImageSource
    block: int | None = None


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
    """A model's request to run a tool.

    Attributes:
        id: Ties the tool's result to this call.
        name: Name of a ``ToolSpec``.
        arguments: Valid by the tool's schema where decoding was constrained; else whatever the model wrote.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidToolCall:
    """Text that was meant as a tool call and cannot be read as one.

    Attributes:
        id: An id, as of a valid call.
        name: The tool's name; None where it cannot be read.
        arguments: What the model wrote as arguments.
        error: Why it is not a call.
    """

    id: str
    name: str | None
    arguments: str
    error: str


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        content: Texts and images, in the order in which the model reads them.
        tool_calls: Of an assistant: the calls after its text.
        tool_call_id: Of a tool: id of the call that this is the result of.
        name: Of a tool: its name; None where it is not known.
        reasoning: Of an assistant: what it thought; only for templates that show it, as some do while tools
            are called.
    """

    role: Role
    content: tuple[str | ImagePart, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Request:
    """A question and its pictures.

    ``None`` means "as the engine's configuration says".

    Attributes:
        messages: The conversation; the last message is the one that is answered.
        max_new_tokens: Answer tokens at most, thoughts apart.
        temperature: 0 always takes the likeliest token.
        top_p: Nucleus in (0, 1]; only used when the temperature is above 0.
        stop: Strings that end the answer; they are not part of it. JSON and tool calls are never cut: inside
            them, and so in an answer that has to be JSON or a call, these strings mean nothing.
        top_k: Draws from so many of the likeliest tokens; only used when the temperature is above 0.
        min_p: Draws from tokens at least so likely as a fraction of the likeliest; the same.
        repetition_penalty: Makes tokens of the prompt and the answer less likely where it is above 1.
        presence_penalty: Taken off the logit of a token that the answer has, in [-2, 2].
        frequency_penalty: Taken off it for each time that the answer has it, in [-2, 2].
        logit_bias: Token id -> what is added to its logit, in [-100, 100]. Both models are given it, so it is
            for pairs with one vocabulary.
        seed: Makes sampling repeatable.
        deadline: ``time.monotonic()`` value in seconds, after which the request fails with ``DeadlineError``.
        cancel: Once set, the request fails with ``RequestCancelledError`` within one token.
        may_escalate: Asked, from the thread that runs the request, right before the large model would be
            called; False keeps the small answer. For budgets that many requests share.
        tools: What the model may call.
        tool_choice: "auto" lets the model decide, "any" makes it call at least one, "none" forbids calls.
        tool_name: The only tool that may be called; None is any of ``tools``.
        parallel_tool_calls: Whether one answer may hold several calls.
        logprobs: Whether ``Response.tokens`` is wanted.
        top_logprobs: How many of the likeliest tokens are wanted with each of these, 0 to 20.
        response_schema: JSON schema that the answer satisfies, by constrained decoding; {"type": "object"} is
            any JSON object. With tools, the answer is such JSON, or calls. Not together with a forced call.
        chat_template_kwargs: Further variables for the models' chat templates, as {"enable_thinking": False};
            a template that does not know a name ignores it.
        max_reasoning_tokens: What a thinking model may think before it answers, in tokens; when they are used
            up, its thoughts are ended, and it answers. 0 has it answer at once.
        skip_special_tokens: Whether special tokens are left out of the answer's text. False keeps all but
            those that begin, end or fill a text, for models that mark up with them (DocTags, boxes); None is
            the model's generation_config.json, and left out where that says nothing. Reports name them.
        min_pixels: Smaller pictures are enlarged to about this area, for both models (``PictureConfig``).
        max_pixels: Larger ones are scaled down to at most this area, or cut into fewer tiles.
        max_visual_tokens: The same in visual tokens of one picture.
        origin: What the request was made of, for a hosted model that takes that form; nothing else reads it.
        cache_salt: Requests of one salt share what is known of pictures and prompts; with those of another
            salt, or of none, they share nothing, so that neither times nor the report tell one tenant what
            another asked about. None, the default, is one group like any other: right where all callers may
            know of each other's pictures. A salt should be hard to guess for whoever may choose one.
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
    top_logprobs: int = 0
    response_schema: Mapping[str, Any] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] | None = None
    max_reasoning_tokens: int | None = None
    skip_special_tokens: bool | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_visual_tokens: int | None = None
    cache_salt: str | None = None
    origin: Any = None

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
        """Makes a request of one user message: the images first, then the question."""
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

    @property
    def callable_tools(self) -> tuple[ToolSpec, ...]:
        """The tools that an answer may call, and a prompt shows."""
        if self.tool_choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.tool_name in {None, tool.name})


@dataclass(frozen=True)
class Decoding:
    """How answer tokens are chosen, and when to give up. The default is greedy, without a deadline.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_p: Nucleus in (0, 1].
        top_k: Draws from so many of the likeliest tokens; None from all.
        min_p: Draws from tokens at least so likely as a fraction of the likeliest.
        repetition_penalty: For tokens of the prompt and the answer; None is the model's own.
        presence_penalty: Taken off the logit of a token that the answer has.
        frequency_penalty: Taken off it for each time that the answer has it.
        logit_bias: Token id -> what is added to its logit.
        top_logprobs: How many of the likeliest tokens are noted at each step.
        max_reasoning_tokens: Tokens of thoughts at most, before the answer.
        skip_special_tokens: Whether special tokens are left out of the text; None is the model's own.
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        deadline: ``time.monotonic()`` value in seconds, or None.
        cancel: Once set, generation ends within one token with ``RequestCancelledError``.
        grammar: Grammar that the answer follows (``sgl_engine.chat.grammar``), or None. Log-probabilities do
            not change: they are the model's own, as if it could choose any token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    deadline: float | None = None
    cancel: threading.Event | None = None
    grammar: str | None = None
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0
    max_reasoning_tokens: int = 1024
    skip_special_tokens: bool | None = None


def check_wanted(wish: Request | Decoding, where: str) -> None:
    """Fails when the answer is not wanted any more.

    Args:
        wish: Its ``cancel`` and ``deadline`` count.
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
