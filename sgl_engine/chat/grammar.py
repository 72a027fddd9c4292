"""What an answer may look like -> a grammar for llguidance: JSON by schema, and tool calls.

JSON is compact: at most one space behind a colon or a comma, so that no model can go on with space for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgl_engine.chat.tool_calls import CLOSE, OPEN, callable_tools, dump
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Request, ToolSpec

_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Forcing would allow only the tokens that the tokenizer itself makes of a forced text, and a tokenizer that
# normalises (lower case, NFC) makes tokens of another text: the grammar would then contradict its own mask.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_FORMATS = frozenset(
    "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()  # llguidance knows these
)
# Narrower than the formats, where readers are: days that exist, no year 0, no leap seconds, capital letters.
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR}:[0-5][0-9])"
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")


def answer_grammar(request: Request) -> str | None:
    """The grammar of a request's answer.

    * ``response_schema``: the whole answer is JSON that satisfies it; with tools, that or calls and no text.
    * ``tool_choice`` "any": the answer is one call, or several where the request wants parallel calls, each
      with arguments that satisfy the tool's schema.
    * ``tool_choice`` "auto" with tools: any text, but what begins as a call becomes a call. Here keywords
      that llguidance does not know are ignored, because nobody asked for more than the model's best.

    An object that lists its properties gets no others, unless its schema says more about them.

    Returns:
        None where nothing is constrained.

    Raises:
        InvalidRequestError: A schema that is none, or that llguidance cannot enforce.
    """
    tools, schema = callable_tools(request), request.response_schema
    answer = None if schema is None else _json(schema, "The response schema")
    if not tools:
        return None if answer is None else f"{_OPTIONS}start: {answer}\n"
    parallel = request.parallel_tool_calls
    if request.tool_choice == "any" or answer is not None:
        start = f"start: calls | {answer}" if answer is not None else "start: calls"
        rules = ["calls: call (SEPARATOR call)*" if parallel else "calls: call", "SEPARATOR: /\\n?/"]
        rules.append(f'call: "{OPEN}" body')
    else:
        start = "start: call* TEXT" if parallel else "start: TEXT | call"
        rules = ["TEXT: /(.|\\n)*/", f'open[lazy]: TEXT "{OPEN}"', "call: open body"]
    bodies = [_call(tool, lenient=request.tool_choice == "auto") for tool in tools]
    names = [f"tool_{index}" for index in range(len(bodies))]
    rules = [
        start,
        *rules,
        f'body: "\\n" ({" | ".join(names)}) "\\n{CLOSE}"',
        *(f"{name}: {body}" for name, body in zip(names, bodies, strict=True)),
    ]
    return _OPTIONS + "\n".join(rules) + "\n"


def _call(tool: ToolSpec, *, lenient: bool) -> str:
    """A call's JSON as a rule's right-hand side."""
    schema = dict(tool.parameters)
    whose = f"The schema of the tool {tool.name!r}"
    if schema.setdefault("type", "object") != "object":
        raise InvalidRequestError(
            f"{whose} has the type {schema['type']!r}; arguments are an object.",
            remedy='Use {"type": "object", "properties": {...}}.',
        )
    head = f'{{"name": {dump(tool.name)}, "arguments": '
    return f'{dump(head)} {_json(schema, whose, lenient=lenient)} "}}"'


def _json(schema: Mapping[str, Any], whose: str, *, lenient: bool = False) -> str:
    """A schema as a rule's right-hand side, tried out.

    Raises:
        InvalidRequestError: It is no schema, or one that cannot be enforced.
    """
    from llguidance import LLMatcher

    if not isinstance(schema, Mapping):
        raise InvalidRequestError(
            f"{whose} is {schema!r:.100}; it must be a JSON object.",
            remedy="Give the schema as a dictionary.",
        )
    try:
        prepared = json.loads(json.dumps(dict(schema)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"{whose} is not JSON ({error}).", remedy="Use dictionaries, lists, strings, numbers and None."
        ) from error
    prepared = {**prepare_schema(prepared), "x-guidance": {**_SPACING, "lenient": lenient}}
    rule = f"%json {json.dumps(prepared)}"
    problem = LLMatcher.validate_grammar(f"{_OPTIONS}start: {rule}\n")
    if problem and not problem.startswith("WARNING"):
        raise InvalidRequestError(
            f"{whose} cannot be enforced: {_reason(problem)}.",
            remedy="Leave that part of the schema out, and check it on the answer.",
        )
    return rule


def _reason(problem: str) -> str:
    """The part of llguidance's message that is about the schema, on one line."""
    _, _, reason = problem.partition("JSON schema: ")
    lines = [line.strip() for line in (reason or problem).splitlines() if "| %llguidance" not in line]
    text = " ".join(line for line in lines if line.strip("^") and "start: %json" not in line)
    return text[:300].rstrip(". ")


def prepare_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """An equal or narrower schema that llguidance can enforce. Pure.

    * Formats that it does not know are left out, and beside a pattern: for JSON schema they are annotations.
      Dates and times are those that Python reads.
    * An object that lists its properties takes no others, unless its schema says so or is composed of parts.
    * Alternatives that a tagged union's "discriminator" tells apart must hold the tag.
    * Alternatives with look-around in a pattern are left out where others remain.
    """
    close = not _is_composed(schema)

    def one(node: dict[str, Any]) -> dict[str, Any]:
        node = dict(node)
        format_ = node.get("format")
        if isinstance(format_, str) and (format_ not in _FORMATS or "pattern" in node):
            del node["format"]
        elif isinstance(format_, str) and format_ in _PATTERNS:
            node["pattern"] = _PATTERNS[node.pop("format")]
        if close and isinstance(node.get("properties"), dict) and "patternProperties" not in node:
            node.setdefault("additionalProperties", False)
        _narrow_bounds(node)
        tag = node.get("discriminator")
        if isinstance(tag, dict) and isinstance(tag.get("propertyName"), str) and "oneOf" in node:
            node["oneOf"] = [_with_required(part, tag["propertyName"]) for part in node["oneOf"]]
        for key in ("anyOf", "oneOf"):
            if isinstance(node.get(key), list):
                node[key] = [part for part in node[key] if not _looks_around(part)] or node[key]
        return node

    prepared: dict[str, Any] = _mapped(schema, one)
    return prepared


def _narrow_bounds(node: dict[str, Any]) -> None:
    """Moves an excluded bound inwards, by a millionth of a range less than 1 wide.

    llguidance 1.9 takes the bound itself there where it is a whole number: 0 for above 0 and up to 0.5.
    """
    bounds = {name: node.get(name) for name in _BOUNDS}
    numbers = {name: value for name, value in bounds.items() if isinstance(value, int | float)}
    lowest = max((value for name, value in numbers.items() if "inimum" in name), default=None)
    highest = min((value for name, value in numbers.items() if "aximum" in name), default=None)
    if node.get("type") == "integer" or lowest is None or highest is None or not 0 < highest - lowest < 1:
        return
    step = (highest - lowest) / 1e6
    if node.get("exclusiveMinimum") == lowest:
        node["minimum"] = node.pop("exclusiveMinimum") + step
    if node.get("exclusiveMaximum") == highest:
        node["maximum"] = node.pop("exclusiveMaximum") - step


def _mapped(node: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """``change`` applied to a schema and to every schema in it, the outer first."""
    if not isinstance(node, dict):
        return node
    node = change(node)
    for key in _MAPS:
        if isinstance(node.get(key), dict):
            node[key] = {name: _mapped(part, change) for name, part in node[key].items()}
    for key in (*_LISTS, *_SINGLE):
        if isinstance(node.get(key), list):
            node[key] = [_mapped(part, change) for part in node[key]]
        elif key in node:
            node[key] = _mapped(node[key], change)
    return node


def _is_composed(schema: dict[str, Any]) -> bool:
    """Whether some object is the meeting of several schemas, of which none knows all its properties."""
    found = False

    def look(node: dict[str, Any]) -> dict[str, Any]:
        nonlocal found
        parts = node.get("allOf")
        meets = isinstance(parts, list) and len(parts) > 1
        beside = any(key in node for key in ("$ref", "anyOf", "oneOf", "allOf"))
        found = found or meets or (beside and "properties" in node) or "if" in node
        return dict(node)

    _mapped(schema, look)
    return found


def _with_required(part: Any, name: str) -> Any:
    if not isinstance(part, dict):
        return part
    required: Sequence[str] = part.get("required", ())
    return {**part, "required": [*required, *([] if name in required else [name])]}


def _looks_around(part: Any) -> bool:
    pattern = part.get("pattern") if isinstance(part, dict) else None
    return isinstance(pattern, str) and any(mark in pattern for mark in ("(?=", "(?!", "(?<=", "(?<!"))
