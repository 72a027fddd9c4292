"""A scripted small model that follows instructions, for the questions of LangChain's standard suites."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from sgl_engine.chat.tool_calls import render_call
from sgl_engine.demo import demo_engine
from sgl_engine.request import Request, ToolCall
from sgl_engine.testing import FakeEngine


def scripted(request: Request) -> str:
    """A model that follows instructions."""
    words = " ".join(
        part for message in request.messages for part in message.content if isinstance(part, str)
    )
    if request.response_schema is not None:
        keys = re.search(r"JSON with '(\w+)' and '(\w+)' keys", words)
        return json.dumps(dict.fromkeys(keys.groups(), "cats") if keys else filled(request.response_schema))
    if request.messages[-1].role == "tool" or not request.tools:
        return "Hello."
    name = request.tool_name or request.tools[0].name
    if number := re.search(r"magic_function\((\d+)\)", words):
        return call("magic_function", input=int(number[1]))
    if company := re.search(r"customer named '([^']+)'", words):
        return call("unicode_customer", customer_name=company[1], description="a technology company")
    if "weather" in words or request.tool_choice == "any":
        tool = next(tool for tool in request.tools if tool.name == name)
        return call(name, **filled(tool.parameters))
    return "Hello."


def filled(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An object that satisfies a flat schema."""
    values = {"integer": 3, "number": 3.0, "boolean": True, "array": []}
    return {
        name: values.get(inner.get("type"), "cats")
        for name, inner in schema.get("properties", {}).items()
        if name in schema.get("required", [])
    }


def call(name: str, /, **arguments: Any) -> str:
    """The text that is a call."""
    return render_call(ToolCall(id="", name=name, arguments=arguments))


@cache
def scripted_engine() -> FakeEngine:
    """One for every test, as ChatSGL shares the bundled pair."""
    pair = demo_engine()
    return FakeEngine(scripted, small=pair.small, large=pair.large)
