"""Messages -> the turns that a chat template is given, in the style that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeAlias

from sgl_engine.chat.tool_calls import render_call, render_result, tool_instructions
from sgl_engine.request import ImagePart, Message, Request

Content: TypeAlias = Literal["parts", "joined", "string"]


@dataclass(frozen=True)
class Style:
    """How a conversation is put to a template.

    Attributes:
        tools_to_template: Tools are the template's ``tools``; else they are described in system text.
        own_calls: An assistant's calls are the message's ``tool_calls``; else they are text.
        tool_turns: Results are turns of the role "tool"; else the user's, and say whose result they are.
        merged: System text belongs to the user's turn behind it, and neighbours of one role are one turn.
        content: A turn's content is the list of its parts, or that list with neighbouring texts joined, or,
            where it holds no image, a string.
        filled: A turn of no parts has an empty one; else it has none.
    """

    tools_to_template: bool
    own_calls: bool = False
    tool_turns: bool = False
    merged: bool = False
    content: Content = "parts"
    filled: bool = True


def turns(request: Request, style: Style) -> list[dict[str, Any]]:
    """The conversation as a list of turns.

    Args:
        request: Whose messages; its tools are described in them where the style says so.
        style: How.
    """
    told = [_turn(message, style) for message in _with_instructions(request, style)]
    if style.merged:
        told = list(_merged(told))
    if style.content == "parts":
        return told
    return [_joined(turn) if style.content == "joined" else _as_string(turn) for turn in told]


def instructions(request: Request) -> str:
    """What must be said about tools where the template does not say it."""
    return tool_instructions(request.callable_tools, request.tool_choice)


def _with_instructions(request: Request, style: Style) -> Sequence[Message]:
    """The messages, and what must be said about tools, in the first system message."""
    told = "" if style.tools_to_template else instructions(request)
    if not told:
        return request.messages
    first, *rest = request.messages
    if first.role == "system":
        return (Message("system", tuple(_followed(first.content, "\n\n", told))), *rest)
    return (Message("system", (told,)), first, *rest)


def _followed(content: Sequence[str | ImagePart], joint: str, text: str) -> list[str | ImagePart]:
    """Content with text of ours behind it, in one part where there is text: some templates trim parts."""
    *before, last = content or ("",)
    if isinstance(last, str):
        return [*before, f"{last}{joint}{text}" if last else text]
    return [*before, last, joint + text]


def _turn(message: Message, style: Style) -> dict[str, Any]:
    turn = _spoken(message, style)
    return turn | {"reasoning_content": message.reasoning} if message.reasoning else turn


def _spoken(message: Message, style: Style) -> dict[str, Any]:
    content = list(message.content)
    known = {"name": message.name, "tool_call_id": message.tool_call_id}
    if message.role == "tool" and style.tool_turns:
        return _filled("tool", content, style) | {key: value for key, value in known.items() if value}
    if message.role == "tool":
        first, *rest = content or [""]
        told = render_result(message.name, first if isinstance(first, str) else "")
        return _filled("user", [told, *(rest if isinstance(first, str) else content)], style)
    if message.tool_calls and style.own_calls:
        calls = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for call in message.tool_calls
        ]
        filled = _filled(message.role, content, style) if content else {"role": message.role, "content": ""}
        return filled | {"tool_calls": calls}
    for call in message.tool_calls:
        content = _followed(content, "\n", render_call(call))
    return _filled(message.role, content, style)


def _filled(role: str, content: Sequence[str | ImagePart], style: Style) -> dict[str, Any]:
    """A turn; some templates look at its first part, so that it has to have one."""
    parts = content or (("",) if style.filled else ())
    return {"role": role, "content": [_part(part) for part in parts]}


def _merged(turns: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    spoken = [turn | {"role": "user" if turn["role"] == "system" else turn["role"]} for turn in turns]
    for role, neighbours in groupby(spoken, key=lambda turn: turn["role"]):
        content: list[dict[str, str]] = []
        for turn in neighbours:
            first, *rest = turn["content"] or [_part("")]
            if content and first["type"] == content[-1]["type"] == "text":
                # One part of both: a template that trims parts would have them run together.
                content[-1] = _part(f"{content[-1]['text']}\n\n{first['text']}")
                content += rest
            else:
                content += [*([_part("\n\n")] if content else []), *turn["content"]]
        yield {"role": role, "content": content}


def _joined(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn with each run of texts as one part: some templates show the first part alone."""
    content: list[dict[str, str]] = []
    for part in turn["content"] or ():
        if content and part["type"] == content[-1]["type"] == "text":
            content[-1] = _part(content[-1]["text"] + part["text"])
        else:
            content.append(part)
    return turn | {"content": content}


def _as_string(turn: dict[str, Any]) -> dict[str, Any]:
    if any(part["type"] == "image" for part in turn["content"] or ()):
        return turn
    return turn | {"content": "".join(part["text"] for part in turn["content"] or ())}


def _part(part: str | ImagePart) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part}
