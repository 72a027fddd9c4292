"""Tool calls as text: what a model is told about tools, and how its calls are written and read.

The format is the one that Hermes models brought up and that most open models know::

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sgl_engine.chat.text_stream import CLOSE, OPEN
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import InvalidToolCall, Request, ToolCall, ToolChoice, ToolSpec


def check_tools(request: Request) -> None:
    """Refuses wishes about tools that contradict each other.

    Raises:
        InvalidRequestError: They do.
    """
    names = [tool.name for tool in request.tools]
    problem = None
    if not all(names) or len(set(names)) < len(names):
        problem = f"The tools are named {names}; each needs a name of its own."
    elif request.tool_name is not None and request.tool_name not in names:
        problem = f"The tool {request.tool_name!r} shall be called, but the tools are {names}."
    elif request.tool_choice == "any" and not names:
        problem = "A tool shall be called, but there is none."
    elif request.tool_choice == "any" and request.response_schema is not None:
        problem = "A tool call is forced, and so is an answer that satisfies response_schema."
    if problem is not None:
        raise InvalidRequestError(problem, remedy="Correct tools, tool_choice, tool_name or response_schema.")


def tool_instructions(tools: Sequence[ToolSpec], choice: ToolChoice) -> str:
    """System text that makes tools known, for chat templates without a tool format of their own.

    Args:
        tools: What may be called.
        choice: "any" says that a call is expected; "none" gives no text at all.

    Returns:
        The text; empty where nothing may be called.
    """
    if not tools or choice == "none":
        return ""
    listed = "\n".join(dump(function_schema(tool)) for tool in tools)
    order = "Answer with a tool call." if choice == "any" else "Call a tool where it helps."
    return (
        "You can call these tools, each given as JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        f"{order} A call is a JSON object with the tool's name and its arguments, in tags:\n"
        f'{OPEN}\n{{"name": <name>, "arguments": <arguments>}}\n{CLOSE}'
    )


def function_schema(tool: ToolSpec) -> dict[str, Any]:
    """A tool as chat templates take it."""
    described = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": described}


def render_call(call: ToolCall) -> str:
    """A call as a model writes it."""
    return f"{OPEN}\n{dump({'name': call.name, 'arguments': dict(call.arguments)})}\n{CLOSE}"


def render_result(name: str | None, text: str) -> str:
    """A tool's result as text, for chat templates that know no such turn.

    Args:
        name: The tool's, where it is known.
        text: What it returned.
    """
    return f"Result of {'the tool' if name is None else name}:\n{text}"


def dump(value: Any) -> str:
    """JSON as models are shown it: their own letters, a space after colons and commas."""
    return json.dumps(value, ensure_ascii=False)


def load_prefix(text: str) -> tuple[Any, str]:
    """The JSON value that a text begins with, and what follows it.

    Raises:
        ValueError: It begins with none; NaN, infinities, endless numbers and endless nesting are none.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    text = text.lstrip()
    try:
        value, end = json.JSONDecoder(parse_constant=refuse).raw_decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value, text[end:]


@dataclass(frozen=True)
class ParsedAnswer:
    """A finished answer, taken apart.

    Attributes:
        text: What is not a call.
        tool_calls: In order.
        invalid_tool_calls: What was meant as one, in order.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()


def is_hermes(template: str) -> bool:
    """Whether a chat template shows tools in the format of this module, not in one of its own."""
    return "tools" in template and OPEN in template and "<function=" not in template


def parse_with_tokenizer(
    tokenizer: Any, answer: str, *, prompt: str, tools: Sequence[ToolSpec]
) -> ParsedAnswer | None:
    """Reads an answer as the model's own tokenizer says, where it says how.

    Args:
        tokenizer: Of transformers; its ``response_template`` describes the format.
        answer: What the model wrote, special tokens included.
        prompt: What it was asked, special tokens included.
        tools: What it may call; formats without types get theirs from the schemas.

    Returns:
        The parts; an answer that cannot be read is all text. None where the tokenizer brings no format.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return None
    schemas = [function_schema(tool) for tool in tools]
    try:
        parsed = tokenizer.parse_response(answer, prefix=prompt, tools=schemas or None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # whatever a model can write
        return ParsedAnswer(answer)
    read = [read_call(found, new_id()) for found in parsed.get("tool_calls") or ()]
    return ParsedAnswer(
        parsed.get("content") or "",
        tuple(call for call in read if isinstance(call, ToolCall)),
        tuple(call for call in read if isinstance(call, InvalidToolCall)),
    )


def new_id() -> str:
    """An id for a call, as unlikely to meet again as a random UUID."""
    return f"call_{uuid.uuid4().hex[:24]}"


def read_call(value: Any, call_id: str, *, written: str | None = None) -> ToolCall | InvalidToolCall:
    """A call in any layout: {"name", "arguments" or "parameters"}, alone or as the value of "function"."""
    written = dump(value) if written is None else written
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return InvalidToolCall(call_id, None, written, 'The call is not a JSON object with a "name".')
    arguments = value.get("arguments", value.get("parameters"))
    return check_call(call_id, value["name"], {} if arguments is None else arguments, written=written)


def check_call(call_id: str, name: str, arguments: Any, *, written: str) -> ToolCall | InvalidToolCall:
    """A call whose arguments are an object, given as such or as JSON text."""
    if isinstance(arguments, str):
        try:
            arguments, behind = load_prefix(arguments)
        except ValueError as error:
            return InvalidToolCall(call_id, name, written, f"The arguments are not JSON: {error}.")
        if behind.strip():
            return InvalidToolCall(call_id, name, written, "The arguments are followed by something else.")
    if not isinstance(arguments, Mapping):
        return InvalidToolCall(call_id, name, written, "The arguments are not a JSON object.")
    return ToolCall(call_id, name, arguments)
