"""A conversation -> the model's prompt as text, by its own chat template, whatever that takes and refuses.

Templates differ: some know tools, some only a user and an assistant who take turns; some raise at what they
do not know, some leave it out without a word. So a prompt is rendered in the most natural style first, looked
through for what must be in it, and rendered more plainly where something is missing. The caller's text is
disguised meanwhile (``sgl_engine.chat.caller_text``).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Protocol

from sgl_engine.chat.caller_text import CallerText, Disguise
from sgl_engine.chat.interruptible import interruptible, literals, run_template
from sgl_engine.chat.tool_calls import (
    dump,
    function_schema,
    is_hermes,
    render_call,
)
from sgl_engine.chat.turns import Content, Style, instructions, turns
from sgl_engine.errors import InvalidRequestError, ProcessorError
from sgl_engine.request import Message, Request, check_wanted

_PRINTED_LIST = "[{'type': '"
"""How a template that expects strings shows a list of parts."""
THOUGHT_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"))
"""What thoughts stand between; templates leave them out of earlier turns, and should."""
_USES_TOOLS = re.compile(r"\{[%{](?:(?!%\}|\}\}).)*\btools\b", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Rendered:
    """A prompt as text.

    Attributes:
        text: The prompt; what the caller wrote is disguised in it.
        disguise: Shows it.
        control: Control tokens, text -> id; in ``text`` only the template's own can be read.
        writes_bos: Whether the template has begun the prompt with the tokenizer's first token.
    """

    text: str
    disguise: Disguise
    control: Mapping[str, int]
    writes_bos: bool

    @property
    def shown(self) -> str:
        """The prompt, with everybody's text as it is."""
        return self.disguise.show(self.text)


class Watch(Protocol):
    """Watches what a template does with the request's last text."""

    def put(self, text: str, disguise: Disguise) -> CallerText:
        """What the template is given for that text, which is disguised."""


def render(processor: Any, request: Request, *, image_token: str, watch: Watch | None = None) -> Rendered:
    """Renders the prompt, with one image token for each image.

    Args:
        processor: The model's.
        request: What is asked; its tools are shown where they may be called.
        image_token: What the template writes for an image, and the processor replaces.
        watch: Of the last message's last part, which is a text.

    Raises:
        InvalidRequestError: ``chat_template_kwargs`` set what the conversation sets, the text cannot be
            disguised, or schemas or arguments are nested too deeply.
        ProcessorError: There is no template, none of the styles brings everything into the prompt, or it
            asks for more than there is.
    """
    try:
        return _render(processor, request, image_token, watch)
    except RecursionError as error:
        nests = request.tools or request.chat_template_kwargs or any(m.tool_calls for m in request.messages)
        if not nests:
            raise ProcessorError(
                f"The chat template of {type(processor).__name__} calls itself without an end.",
                remedy="Use a model whose template ends.",
            ) from error
        raise InvalidRequestError(
            "The parameters of a tool, or the arguments of a call, are nested too deeply to be written down.",
            remedy="Nest them less deeply, or leave the tool out.",
        ) from error


def _render(processor: Any, request: Request, image_token: str, watch: Watch | None) -> Rendered:
    request = replace(request, messages=tuple(_named(message, request) for message in request.messages))
    control = control_tokens(processor)
    disguise = _disguise(processor, request, control, image_token)
    refusal: Exception | None = None
    left_out: str | None = None
    without_images: str | None = None
    for style in _styles(processor, request):
        try:
            text = _apply(processor, request, style, disguise, watch)
            missing = _first_missing(processor, request, style, disguise, text)
        except _template_errors() as error:
            refusal = refusal or error
            continue
        if missing is not None:
            left_out = left_out or missing
        elif text.count(image_token) == len(request.images):
            return _rendered(processor, text, disguise, control)
        elif without_images is None:
            without_images = text
    if without_images is not None:  # another token may stand for images; if not, the processor will say so
        return _rendered(processor, without_images, disguise, control)
    reason = disguise.show(str(refusal))
    raise ProcessorError(
        f"The processor {type(processor).__name__} cannot encode {len(request.images)} images and "
        f"{len(request.messages)} messages "
        + (f"({type(refusal).__name__}: {reason})." if refusal else f"(left out: {left_out!r:.100})."),
        remedy="Check that it was saved with a chat template, and that the template takes these roles.",
    ) from refusal


def control_tokens(processor: Any) -> dict[str, int]:
    """The tokens that the caller's text must not become, text -> id.

    Special tokens, and those of the tokenizer's other added tokens which the chat template writes, as
    ``<think>`` or ``<tool_response>``; not the words and spaces that it writes too.

    Raises:
        ProcessorError: The template is not a template.
    """
    tokenizer = processor.tokenizer
    listed = getattr(tokenizer, "chat_control_tokens", None)
    try:
        written = literals(chat_template(processor))
    except _template_errors() as error:
        raise ProcessorError(
            f"The chat template of {type(processor).__name__} cannot be read ({error}).",
            remedy="Correct it, or save the processor with another one.",
        ) from error
    tags = [tag for pair in THOUGHT_TAGS if any(tag in written for tag in pair) for tag in pair]
    written = "\0".join((written, *tags))  # a template that opens thoughts leaves it to the model to end them
    found = {}
    for index, token in tokenizer.added_tokens_decoder.items():
        text = str(token.content)
        mark = text in listed if listed is not None else text in written and not text.isalnum()
        if text.strip() and (token.special or mark):
            found[text] = int(index)
    return found


def _rendered(processor: Any, text: str, disguise: Disguise, control: Mapping[str, int]) -> Rendered:
    bos = processor.tokenizer.bos_token
    return Rendered(text, disguise, control, writes_bos=bool(bos) and text.startswith(bos))


def _disguise(processor: Any, request: Request, control: Mapping[str, int], image_token: str) -> Disguise:
    """One that suits the request; hides what the processor looks for, and marks of ours, as well."""
    kinds = ("image_token", "video_token", "audio_token")
    replaced = [text for text in (getattr(processor, kind, None) for kind in kinds) if isinstance(text, str)]
    hidden = [*control, *replaced, image_token, _PRINTED_LIST]
    return Disguise(hidden, [*_texts(request), chat_template(processor)])


def reads_natively(processor: Any, request: Request) -> bool:
    """Whether calls come in the model's own format, which its tokenizer can read, and not in Hermes tags.

    Where an answer is constrained it is in Hermes tags, and so the tools are shown like that.
    """
    free = request.tool_choice == "auto" and request.response_schema is None
    known = getattr(processor.tokenizer, "response_template", None) is not None
    template = chat_template(processor)
    return (
        free and known and bool(request.callable_tools) and _takes_tools(template) and not is_hermes(template)
    )


def _styles(processor: Any, request: Request) -> Iterator[Style]:
    """From the most natural to the plainest; turns are merged where nothing else will do."""
    template = chat_template(processor)
    shows = _takes_tools(template) and (is_hermes(template) or reads_natively(processor, request))
    empty = any(not message.content for message in request.messages)
    whole: tuple[Content, ...] = ("parts", "joined", "string")
    for tools_to_template in (True, False) if shows and request.callable_tools else (False,):
        for content, filled in product(whole, (False, True) if empty else (True,)):
            style = Style(tools_to_template, content=content, filled=filled)
            if "tool_calls" in template:
                yield replace(style, own_calls=True, tool_turns=True)
            yield replace(style, tool_turns=True)
            yield style
        for content in whole:
            yield Style(tools_to_template, merged=True, content=content)


def _apply(
    processor: Any, request: Request, style: Style, disguise: Disguise, watch: Watch | None = None
) -> str:
    """The prompt in one style, disguised."""
    hidden = disguise.hide_request(request)
    if watch is not None:
        *before, last = hidden.messages
        *parts, text = last.content
        parts.append(watch.put(str(text), disguise))
        hidden = replace(hidden, messages=(*before, replace(last, content=tuple(parts))))
    tools = [function_schema(tool) for tool in hidden.callable_tools] if style.tools_to_template else None
    variables = {
        **processor.tokenizer.special_tokens_map,
        "messages": disguise.wrap(turns(hidden, style)),
        "tools": disguise.wrap(tools),
        "add_generation_prompt": True,
    }
    arguments = {
        name: disguise.wrap(disguise.hide_all(value))
        for name, value in (request.chat_template_kwargs or {}).items()
    }
    # A template may loop for as long as it likes; the request's deadline and cancellation end it.
    try:
        return interruptible(
            lambda: run_template(_source(processor), variables, arguments),
            partial(check_wanted, request, "while the chat template ran"),
        )
    except MemoryError as error:
        raise ProcessorError(
            f"The chat template of {type(processor).__name__} needs more memory than there is.",
            remedy="Use a model whose template makes short prompts.",
        ) from error


def _named(message: Message, request: Request) -> Message:
    """A tool's result with the tool's name: its own, or that of the call which it answers."""
    if message.role != "tool" or message.name:
        return message
    calls = (call for earlier in request.messages for call in earlier.tool_calls)
    return replace(message, name=next((call.name for call in calls if call.id == message.tool_call_id), None))


def _first_missing(
    processor: Any, request: Request, style: Style, disguise: Disguise, text: str
) -> str | None:
    """Something that a template has left out of ``text``, or spoilt; None where all is well."""
    if _PRINTED_LIST in text:
        return "a list of parts, printed as such"
    if style.own_calls and any(message.tool_calls for message in request.messages):
        silent = tuple(replace(message, tool_calls=()) for message in request.messages)
        if text == _apply(processor, replace(request, messages=silent), style, disguise):
            return "the calls of tools"
    shown = disguise.show(text)
    return next((part for part in _must_hold(request, style) if not _holds(shown, part)), None)


def _must_hold(request: Request, style: Style) -> Iterator[str]:
    """What templates are known to leave out: what is not said between user and assistant, and later parts."""
    for message in request.messages:
        texts = [part for part in message.content if isinstance(part, str)]
        if message.role in {"system", "tool"}:
            yield from texts
        elif message.role == "assistant" and not any(
            end in text for text in texts for _, end in THOUGHT_TAGS
        ):
            yield from texts[1:]
    if style.tools_to_template:
        yield from (tool.name for tool in request.callable_tools)
    else:
        yield instructions(request)


def _holds(text: str, part: str) -> bool:
    """Whether a template has put ``part`` into ``text``: trimmed, or as JSON, but whole."""
    part = part.strip()
    return any(form in text for form in (part, dump(part)[1:-1], json.dumps(part)[1:-1]))


def chat_template(processor: Any) -> str:
    """The chat template's source; empty where there is none."""
    template = getattr(processor, "chat_template", None) or getattr(
        processor.tokenizer, "chat_template", None
    )
    if isinstance(template, Mapping):
        template = template.get("default")
    return template or ""


def with_template(processor: Any, template: str | None) -> Any:
    """The processor, or a copy of it that has a chat template where it has none of its own."""
    if template is None or chat_template(processor):
        return processor
    mine = copy.copy(processor)
    mine.chat_template = template
    return mine


def _source(processor: Any) -> str:
    """The chat template's source.

    Raises:
        ValueError: There is none.
    """
    template = chat_template(processor)
    if not template:
        raise ValueError("Neither the processor nor its tokenizer has a chat template")
    return template


def _takes_tools(template: str) -> bool:
    return _USES_TOOLS.search(template) is not None


def _template_errors() -> tuple[type[Exception], ...]:
    """What a template raises by itself, and what it runs into with content that it was not made for."""
    from jinja2 import TemplateError

    return (TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def _texts(request: Request) -> Iterator[str]:
    """All text of the caller that a prompt can hold."""
    for message in request.messages:
        yield from (part for part in message.content if isinstance(part, str))
        yield from (value for value in (message.name, message.tool_call_id, message.reasoning) if value)
        yield from (value for call in message.tool_calls for value in (call.id, render_call(call)))
    yield from (dump(function_schema(tool)) for tool in request.callable_tools)
    yield repr(request.chat_template_kwargs)


def close_thoughts(text: str, template: str) -> str:
    """A prompt whose thoughts are over where they have begun, as templates write it; others as they are."""
    for begin, end in THOUGHT_TAGS:
        if text.rstrip().endswith(begin):
            before, behind = space_around(template, begin)
            return f"{text}{before}{end}{behind}"
    return text


def space_around(template: str, begin: str) -> tuple[str, str]:
    """The white space before and behind the tag that ends thoughts: as much as follows the first tag."""
    lines = f"{begin}\\n" in template or f"{begin}\n" in template
    return ("\n", "\n\n") if lines else ("", "")
