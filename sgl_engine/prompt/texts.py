"""What the fields and the texts of a request may be, found out before anything slow looks at them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeAlias, get_args

from sgl_engine.chat.tool_calls import dump, function_schema
from sgl_engine.config import LimitsConfig
from sgl_engine.errors import InvalidRequestError, PromptTooLongError
from sgl_engine.request import (
    ImagePart,
    Message,
    Request,
    Role,
    ToolCall,
    ToolChoice,
    ToolSpec,
    check_wanted,
)

_Fits: TypeAlias = Callable[[Any], bool]

_PIECE_CHARS = 8_192
_MARGIN = 8  # tokens of a piece that are there only because of where it was cut

_SEEDS = range(-(2**63), 2**64)
"""What torch's generators take."""


def check_fields(request: Any) -> None:
    """Refuses a request with a field of another type than it has, or beyond what any configuration takes.

    Type annotations stop nobody, and requests are often made of what somebody sent. Numbers with a range in
    ``GenerationConfig``, and ``logit_bias``, are looked at where they are resolved.

    Raises:
        InvalidRequestError: It names the field, the value and what belongs there.
    """
    if not isinstance(request, Request):
        raise _wrong("The request", request, "Use sgl_engine.Request, as Request.ask(question, image).")
    for name, (fits, what) in _FIELDS.items():
        value = getattr(request, name)
        if not fits(value):
            raise _wrong(name, value, f"Use {what}.")
    for message in request.messages:
        _check_parts(message, _MESSAGE, "message")
        for call in message.tool_calls:
            _check_parts(call, _CALL, "call")
    for tool in request.tools:
        _check_parts(tool, _TOOL, "tool")


def _check_parts(owner: Any, fields: Mapping[str, tuple[_Fits, str]], kind: str) -> None:
    for name, (fits, what) in fields.items():
        value = getattr(owner, name)
        if not fits(value):
            raise _wrong(f"The {name} of a {kind}", value, f"Use {what}.")


def _wrong(what: str, value: Any, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(f"{what} is {value!r:.100} ({type(value).__name__}).", remedy=remedy)


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be written down: half of a surrogate pair cannot."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def _is_json(value: Any) -> bool:
    """Whether it is an object that JSON can hold; one nested too deeply is told later, with its remedy."""
    try:
        json.dumps(dict(value))
    except RecursionError:
        return True
    except (TypeError, ValueError):
        return False
    return isinstance(value, Mapping)


def _several(kind: Any) -> _Fits:
    return lambda value: isinstance(value, tuple | list) and all(isinstance(each, kind) for each in value)


def _or_none(fits: _Fits) -> _Fits:
    return lambda value: value is None or fits(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_FIELDS: dict[str, tuple[_Fits, str]] = {
    "messages": (_several(Message), "a tuple of Message"),
    "seed": (
        _or_none(lambda seed: isinstance(seed, Integral) and not _is_flag(seed) and int(seed) in _SEEDS),
        "an integer from -2**63 to 2**64 - 1, or None",
    ),
    "deadline": (
        _or_none(lambda at: isinstance(at, Real) and not _is_flag(at) and at == at),  # noqa: PLR0124  # NaN
        "a value of time.monotonic(), or None",
    ),
    "cancel": (
        _or_none(lambda event: callable(getattr(event, "is_set", None))),
        "a threading.Event, or None",
    ),
    "may_escalate": (_or_none(callable), "a function that returns whether it may, or None"),
    "tools": (_several(ToolSpec), "a tuple of ToolSpec"),
    "tool_choice": (
        lambda choice: isinstance(choice, str) and choice in get_args(ToolChoice),
        f"one of {', '.join(get_args(ToolChoice))}",
    ),
    "tool_name": (_or_none(is_text), "the name of a tool, or None"),
    "parallel_tool_calls": (_is_flag, "True or False"),
    "logprobs": (_is_flag, "True or False"),
    "top_logprobs": (
        lambda count: isinstance(count, Integral) and not _is_flag(count) and 0 <= int(count) <= 20,
        "an integer from 0 to 20",
    ),
    "cache_salt": (
        _or_none(lambda salt: is_text(salt) and bool(salt)),
        "a string that is not empty, or None for what all requests without one share",
    ),
    "response_schema": (_or_none(_is_json), "a JSON schema as a dict, or None"),
    "chat_template_kwargs": (
        _or_none(lambda given: isinstance(given, Mapping) and all(isinstance(name, str) for name in given)),
        "a dict of names and values, or None",
    ),
    "skip_special_tokens": (_or_none(_is_flag), "True, False or None"),
}
_MESSAGE: dict[str, tuple[_Fits, str]] = {
    "role": (
        lambda role: isinstance(role, str) and role in get_args(Role),
        f"one of {', '.join(get_args(Role))}",
    ),
    "content": (
        lambda parts: (
            _several((str, ImagePart))(parts)
            and all(is_text(part) for part in parts if isinstance(part, str))
        ),
        "a tuple of whole strings and ImagePart",
    ),
    "tool_calls": (_several(ToolCall), "a tuple of ToolCall"),
    "tool_call_id": (_or_none(is_text), "the id of a call, or None"),
    "name": (_or_none(is_text), "the name of a tool, or None"),
    "reasoning": (_or_none(is_text), "what an assistant thought, or None"),
}
_CALL: dict[str, tuple[_Fits, str]] = {
    "id": (is_text, "a string"),
    "name": (is_text, "the name of a tool"),
    "arguments": (_is_json, "a dict that JSON can hold"),
}
_TOOL: dict[str, tuple[_Fits, str]] = {
    "name": (is_text, "a string"),
    "description": (is_text, "a string"),
    "parameters": (_is_json, "a JSON schema as a dict"),
}


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
        InvalidRequestError: A limit is passed, or a field is of a wrong type.
        PromptTooLongError: They cannot fit the context.
    """
    check_fields(request)
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

    The tokenizer may be in use meanwhile: padding, which others may have set in it, is not counted, and where
    they have it truncate, too little is, which refuses nothing.

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
            count = sum(tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).attention_mask)
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
            yield from filter(None, (message.reasoning,))
    yield from (dump(function_schema(tool)) for tool in request.callable_tools)
