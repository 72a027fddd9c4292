"""A conversation -> the model's prompt as text, by its own chat template, whatever that takes and refuses.

Templates differ: some know tools, some only a user and an assistant who take turns; some raise at what they
do not know, some leave it out without a word. So a prompt is rendered in the most natural style first, looked
through for what must be in it, and rendered more plainly where something is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from sgl_engine.chat.interruptible import interruptible
from sgl_engine.chat.tool_calls import (
    callable_tools,
    dump,
    function_schema,
    is_hermes,
    render_call,
    render_result,
    tool_instructions,
)
from sgl_engine.errors import InvalidRequestError, ProcessorError
from sgl_engine.request import ImagePart, Message, Request, check_wanted

_PRINTED_LIST = "[{'type': '"
"""How a template that expects strings shows a list of parts."""
_USES_TOOLS = re.compile(r"\{[%{](?:(?!%\}|\}\}).)*\btools\b", re.DOTALL)


@dataclass(frozen=True)
class _Style:
    """How a conversation is put to a template.

    Attributes:
        tools_to_template: Tools are the template's ``tools``; else they are described in system text.
        own_calls: An assistant's calls are the message's ``tool_calls``; else they are text.
        tool_turns: Results are turns of the role "tool"; else the user's, and say whose result they are.
        merged: System text belongs to the user's turn behind it, and neighbours of one role are one turn.
        strings: Content without images is a string; else it is a list of parts, as it always is with images.
    """

    tools_to_template: bool
    own_calls: bool = False
    tool_turns: bool = False
    merged: bool = False
    strings: bool = False


def render(processor: Any, request: Request, *, image_token: str) -> str:
    """The prompt, with one image token for each image.

    Args:
        processor: The model's.
        request: What is asked; its tools are shown where they may be called.
        image_token: Text of the image token; neither it nor another control token of the tokenizer may stand
            in what the caller wrote, because it would act as the template's own.

    Raises:
        InvalidRequestError: The caller's text contains a control token.
        ProcessorError: There is no template, or none of the styles brings everything into the prompt.
    """
    _check_texts(request, [image_token, *_special_tokens(processor.tokenizer)])
    request = replace(request, messages=tuple(_named(message, request) for message in request.messages))
    refusal: Exception | None = None
    left_out: str | None = None
    without_images: str | None = None
    for style in _styles(processor, request):
        try:
            text = _apply(processor, request, style)
            missing = _first_missing(processor, request, style, text)
        except _template_errors() as error:
            refusal = refusal or error
            continue
        if missing is not None:
            left_out = left_out or missing
        elif text.count(image_token) == len(request.images):
            return text
        elif without_images is None:
            without_images = text
    if without_images is not None:
        return without_images  # another token may stand for images; if not, the processor will say so
    raise ProcessorError(
        f"The processor {type(processor).__name__} cannot encode {len(request.images)} images and "
        f"{len(request.messages)} messages "
        + (f"({type(refusal).__name__}: {refusal})." if refusal else f"(left out: {left_out!r:.100})."),
        remedy="Check that it was saved with a chat template, and that the template takes these roles.",
    ) from refusal


def reads_natively(processor: Any, request: Request) -> bool:
    """Whether calls come in the model's own format, which its tokenizer can read, and not in Hermes tags.

    Where an answer is constrained it is in Hermes tags, and so the tools are shown like that.
    """
    free = request.tool_choice == "auto" and request.response_schema is None
    known = getattr(processor.tokenizer, "response_template", None) is not None
    template = _template(processor)
    return (
        free
        and known
        and bool(callable_tools(request))
        and _takes_tools(template)
        and not is_hermes(template)
    )


def _styles(processor: Any, request: Request) -> Iterator[_Style]:
    """From the most natural to the plainest."""
    template = _template(processor)
    shows = _takes_tools(template) and (is_hermes(template) or reads_natively(processor, request))
    for tools_to_template in (True, False) if shows and callable_tools(request) else (False,):
        for strings in (False, True):
            if "tool_calls" in template:
                yield _Style(tools_to_template, own_calls=True, tool_turns=True, strings=strings)
            yield _Style(tools_to_template, tool_turns=True, strings=strings)
            yield _Style(tools_to_template, strings=strings)
            yield _Style(tools_to_template, merged=True, strings=strings)


def _apply(processor: Any, request: Request, style: _Style) -> str:
    turns = [_turn(message, style) for message in _with_instructions(request, style)]
    if style.merged:
        turns = list(_merged(turns))
    if style.strings:
        turns = [_as_string(turn) for turn in turns]
    tools = [function_schema(tool) for tool in callable_tools(request)] if style.tools_to_template else None
    return interruptible(
        lambda: str(
            processor.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=True)
        ),
        partial(check_wanted, request, "while the chat template ran"),
    )


def _with_instructions(request: Request, style: _Style) -> Sequence[Message]:
    """The messages, and what must be said about tools, in the first system message."""
    told = "" if style.tools_to_template else _instructions(request)
    if not told:
        return request.messages
    first, *rest = request.messages
    if first.role == "system":
        return (Message("system", (*first.content, *(["\n\n"] if first.content else []), told)), *rest)
    return (Message("system", (told,)), first, *rest)


def _instructions(request: Request) -> str:
    return tool_instructions(callable_tools(request), request.tool_choice)


def _turn(message: Message, style: _Style) -> dict[str, Any]:
    content = [_part(part) for part in message.content]
    if message.role == "tool":
        if not style.tool_turns:
            return {"role": "user", "content": [_part(render_result(message.name, "")), *content]}
        known = {"name": message.name, "tool_call_id": message.tool_call_id}
        return {"role": "tool", "content": content} | {key: value for key, value in known.items() if value}
    if message.tool_calls and style.own_calls:
        calls = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
        return {"role": message.role, "content": content or "", "tool_calls": calls}
    for call in message.tool_calls:
        content.append(_part(("\n" if content else "") + render_call(call)))
    return {"role": message.role, "content": content}


def _merged(turns: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    spoken = [turn | {"role": "user" if turn["role"] == "system" else turn["role"]} for turn in turns]
    for role, neighbours in groupby(spoken, key=lambda turn: turn["role"]):
        content: list[dict[str, str]] = []
        for turn in neighbours:
            content += [*([_part("\n\n")] if content else []), *turn["content"]]
        yield {"role": role, "content": content}


def _as_string(turn: dict[str, Any]) -> dict[str, Any]:
    if any(part["type"] == "image" for part in turn["content"] or ()):
        return turn
    return turn | {"content": "".join(part["text"] for part in turn["content"] or ())}


def _part(part: str | ImagePart) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part}


def _named(message: Message, request: Request) -> Message:
    """A tool's result with the tool's name: its own, or that of the call which it answers."""
    if message.role != "tool" or message.name:
        return message
    calls = (call for earlier in request.messages for call in earlier.tool_calls)
    return replace(message, name=next((call.name for call in calls if call.id == message.tool_call_id), None))


def _first_missing(processor: Any, request: Request, style: _Style, text: str) -> str | None:
    """Something that a template has left out of ``text``, or spoilt; None where all is well."""
    if _PRINTED_LIST in text and not any(_PRINTED_LIST in own for own in _texts(request)):
        return "a list of parts, printed as such"
    if style.own_calls and any(message.tool_calls for message in request.messages):
        silent = tuple(replace(message, tool_calls=()) for message in request.messages)
        if text == _apply(processor, replace(request, messages=silent), style):
            return "the calls of tools"
    return next((part for part in _must_hold(request, style) if not _holds(text, part)), None)


def _must_hold(request: Request, style: _Style) -> Iterator[str]:
    """What templates are known to leave out. What is said between user and assistant is none of it."""
    for message in request.messages:
        if message.role in {"system", "tool"}:
            yield from (part for part in message.content if isinstance(part, str))
    if style.tools_to_template:
        yield from (tool.name for tool in callable_tools(request))
    else:
        yield _instructions(request)


def _holds(text: str, part: str) -> bool:
    """Whether a template has put ``part`` into ``text``: trimmed, or as JSON, but whole."""
    part = part.strip()
    return any(form in text for form in (part, dump(part)[1:-1], json.dumps(part)[1:-1]))


def _template(processor: Any) -> str:
    """The chat template's source; empty where there is none."""
    template = getattr(processor, "chat_template", None) or getattr(
        processor.tokenizer, "chat_template", None
    )
    if isinstance(template, Mapping):
        template = template.get("default")
    return template or ""


def _takes_tools(template: str) -> bool:
    return _USES_TOOLS.search(template) is not None


def _template_errors() -> tuple[type[Exception], ...]:
    """What a template raises by itself, and what it runs into with content that it was not made for."""
    from jinja2 import TemplateError

    return (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError)


def _check_texts(request: Request, control: Sequence[str]) -> None:
    """Refuses control tokens in what the caller wrote."""
    image_token = control[0]
    for text in _texts(request):
        found = next((token for token in control if token in text), None)
        if found == image_token:
            raise InvalidRequestError(
                f"The text contains {image_token!r}, which stands for an image.",
                remedy="Remove it; name images with ImagePart.",
            )
        if found is not None:
            raise InvalidRequestError(
                f"The text contains {found!r}, which is a control token of the model.",
                remedy="Remove it, or write it with a space inside.",
            )


def _texts(request: Request) -> Iterator[str]:
    """All text of the caller that a prompt can hold."""
    for message in request.messages:
        yield from (part for part in message.content if isinstance(part, str))
        yield from (value for value in (message.name, message.tool_call_id) if value)
        yield from (value for call in message.tool_calls for value in (call.id, render_call(call)))
    yield from (dump(function_schema(tool)) for tool in callable_tools(request))


def _special_tokens(tokenizer: Any) -> list[str]:
    """The texts that the tokenizer reads as control tokens; the longest first, to name the whole one."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    names = {*tokenizer.all_special_tokens, *added}
    return sorted((name for name in names if name.strip()), key=lambda name: (-len(name), name))
