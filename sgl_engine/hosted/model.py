"""Defines what a hosted model is asked and answers, and what it has to be able to do."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sgl_engine.chat.tool_calls import ParsedAnswer
from sgl_engine.chat.tool_stream import Delta
from sgl_engine.request import InvalidToolCall, Request, ToolCall

if TYPE_CHECKING:
    from sgl_engine.decoding.answer import FinishReason, TokenLogprob


@dataclass(frozen=True, eq=False)
class HostedCall:
    """What a hosted model is asked.

    Attributes:
        request: As the engine was given it, but for ``cancel``, which also says that the answer is not wanted
            any more: it has to be looked at while one waits, and so has ``deadline``.
        pictures: For each picture of the request, in order, the encoded pictures that are sent in its place.
    """

    request: Request
    pictures: tuple[tuple[bytes, ...], ...]


@dataclass(frozen=True)
class HostedUsage:
    """Tokens, as the provider counts and charges them.

    Attributes:
        input_tokens: Of the prompt, pictures included.
        output_tokens: Generated, thoughts included.
        cached_tokens: How many of the prompt's were in the provider's cache.
        reasoning_tokens: How many of the output's are thoughts.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, eq=False)
class HostedAnswer:
    """What a hosted model has answered.

    Attributes:
        text: The answer, tool calls and thoughts left out.
        finish_reason: Why it ends.
        tool_calls: In order.
        invalid_tool_calls: Calls that cannot be read.
        reasoning: What it thought, as far as it tells.
        usage: What it took; None where the provider does not say.
        tokens: The answer's tokens with their log-probabilities, where they were asked for and are told.
        model: Which model answered, as the provider calls it; None where it does not say.
        original: The provider's own message, for whoever asked in its form; the engine does not read it.
    """

    text: str
    finish_reason: FinishReason = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    reasoning: str = ""
    usage: HostedUsage | None = None
    tokens: tuple[TokenLogprob, ...] = ()
    model: str | None = None
    original: Any = None

    @property
    def parsed(self) -> ParsedAnswer:
        """The answer, taken apart."""
        return ParsedAnswer(self.text, self.tool_calls, self.invalid_tool_calls)


class HostedModel(Protocol):
    """A large model on another machine. ``OpenAIModel`` is one; anything with these two is one."""

    @property
    def name(self) -> str:
        """What reports call it; it holds no key."""

    def stream(self, call: HostedCall) -> Generator[Delta, None, HostedAnswer]:
        """Asks, and yields the answer piece by piece; returns it whole. Runs in a thread of its own.

        Closing the generator ends the connection.

        Raises:
            HostedError: There is no answer.
            RequestError: It is not wanted any more.
        """
