"""What the texts of a request may be, found out before anything slow looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sgl_engine.chat.tool_calls import dump, function_schema
from sgl_engine.config import LimitsConfig
from sgl_engine.errors import InvalidRequestError, PromptTooLongError
from sgl_engine.request import Request, check_wanted

_PIECE_CHARS = 8_192
_MARGIN = 8  # tokens of a piece that are there only because of where it was cut


def check_lengths(
    request: Request, limits: LimitsConfig, tokenizer: Any, context_tokens: int, name: str
) -> None:
    """Refuses texts that are too long for the limits or for the model, before anything is tokenized whole.

    Args:
        request: Whose texts they are; its deadline and cancellation count.
        limits: How long they may be.
        tokenizer: The model's.
        context_tokens: Its longest sequence.
        name: The model's, for messages.

    Raises:
        InvalidRequestError: A limit is passed.
        PromptTooLongError: They cannot fit the context.
    """
    check_texts(request, limits)
    waiting = partial(check_wanted, request, "while its texts were measured")
    check_context(request, tokenizer, context_tokens=context_tokens, name=name, still_wanted=waiting)


def check_texts(request: Request, limits: LimitsConfig) -> None:
    """Refuses too much text, and too many or too long stop strings.

    Raises:
        InvalidRequestError: A stop string that is none, or too many, or one too long.
        PromptTooLongError: The texts are longer than any model's should be.
    """
    _check_stop(request.stop, limits)
    chars = sum(map(len, _texts(request)))
    if chars > limits.max_text_chars:
        raise PromptTooLongError(
            f"The texts of the request have {chars:,} characters; {limits.max_text_chars:,} are allowed.",
            remedy="Shorten them, or raise LimitsConfig.max_text_chars.",
        )


def _check_stop(stop: Any, limits: LimitsConfig) -> None:
    if not isinstance(stop, tuple | list) or not all(isinstance(string, str) for string in stop):
        raise InvalidRequestError(f"stop is {stop!r:.100}.", remedy='Use strings: stop=("END",).')
    if len(stop) > limits.max_stop_strings:
        raise InvalidRequestError(
            f"There are {len(stop)} stop strings; {limits.max_stop_strings} are allowed.",
            remedy="Use fewer, or raise LimitsConfig.max_stop_strings.",
        )
    longest = max(stop, key=len, default="")
    if len(longest) > limits.max_stop_chars:
        raise InvalidRequestError(
            f"The stop string {longest!r:.60} has {len(longest)} characters; "
            f"{limits.max_stop_chars} are allowed.",
            remedy="Use its beginning, or raise LimitsConfig.max_stop_chars.",
        )


def check_context(
    request: Request,
    tokenizer: Any,
    *,
    context_tokens: int,
    name: str,
    still_wanted: Callable[[], None],
) -> None:
    """Refuses texts that cannot fit the context, without tokenizing more of them than fits.

    A short text is not looked at: tokenizing it costs little. A long one is tokenized in pieces, and given up
    at the piece that is too much. A margin at every cut sees to it that nothing is refused that would fit.

    Args:
        request: Whose texts.
        tokenizer: The model's.
        context_tokens: What the model takes, answer included.
        name: The model's, for the message.
        still_wanted: Called before every piece.

    Raises:
        PromptTooLongError: They do not fit.
    """
    texts = [text.strip() for text in _texts(request, certain=True)]
    if sum(map(len, texts)) <= context_tokens or not hasattr(tokenizer, "backend_tokenizer"):
        return
    tokens = chars = 0
    for piece in _pieces(texts):
        still_wanted()
        try:
            count = len(tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False))
        except (TypeError, ValueError):  # half characters: the processor will say so
            return
        tokens += max(0, count - _MARGIN)
        chars += len(piece)
        if tokens >= context_tokens:
            raise PromptTooLongError(
                f"The first {chars:,} of {sum(map(len, texts)):,} characters have {tokens:,} tokens; "
                f"the context of {name} is {context_tokens:,}, answer included.",
                remedy="Shorten the text.",
            )


def _pieces(texts: list[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARS):
            yield text[start : start + _PIECE_CHARS]


def _texts(request: Request, *, certain: bool = False) -> Iterator[str]:
    """A request's texts; ``certain`` leaves out what some templates do, thoughts of earlier answers."""
    for message in request.messages or ():
        if not (certain and message.role == "assistant"):
            yield from (part for part in message.content if isinstance(part, str))
    yield from (dump(function_schema(tool)) for tool in request.callable_tools)
