"""What an answer may look like -> a grammar for llguidance: JSON by schema, and tool calls.

JSON is compact: at most one space behind a colon or a comma, so that no model can go on with space for ever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sgl_engine.chat.grammar_trial import first_problem, written_out
from sgl_engine.chat.text_stream import CLOSE, OPEN
from sgl_engine.chat.tool_calls import dump
from sgl_engine.config import LimitsConfig
from sgl_engine.errors import InvalidRequestError
from sgl_engine.request import Request, ToolSpec, check_wanted

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


def answer_grammar(request: Request, limits: LimitsConfig | None = None) -> str | None:
    """The grammar of a request's answer.

    * ``response_schema``: the whole answer is JSON that satisfies it; with tools, that or calls and no text.
    * ``tool_choice`` "any": the answer is one call, or several where the request wants parallel calls, each
      with arguments that satisfy the tool's schema.
    * ``tool_choice`` "auto" with tools: any text, but what begins as a call becomes a call. Here keywords
      that llguidance does not know are ignored, because nobody asked for more than the model's best.

    An object that lists its properties gets no others, unless its schema says more about them.

    Args:
        request: Whose answer it is; its deadline and cancellation end the work too.
        limits: How much its schemas may be; None is ``LimitsConfig()``.

    Returns:
        None where nothing is constrained.

    Raises:
        InvalidRequestError: A schema that is none, that is too much, or that llguidance cannot enforce.
        DeadlineError: The deadline passed meanwhile.
        RequestCancelledError: The request was cancelled meanwhile.
        EngineError: No process can be started to compile the schemas in.
    """
    tools, schema = request.callable_tools, request.response_schema
    schemas = _Schemas(limits or LimitsConfig())
    answer = None if schema is None else schemas.json(schema, "The response schema")
    bodies = [_call(tool, schemas, lenient=request.tool_choice == "auto") for tool in tools]
    schemas.try_out(partial(check_wanted, request, "while its schemas were compiled"))
    if not tools:
        return None if answer is None else f"{_OPTIONS}start: {answer}\n"
    parallel = request.parallel_tool_calls
    if request.tool_choice == "any" or answer is not None:
        start = "start: calls" if answer is None else f"start: calls | {answer}"
        rules = ["calls: call (SEPARATOR call)*" if parallel else "calls: call", "SEPARATOR: /\\n?/"]
        rules.append(f'call: "{OPEN}" body')
    else:
        start = "start: call* TEXT" if parallel else "start: TEXT | call"
        rules = ["TEXT: /(.|\\n)*/", f'open[lazy]: TEXT "{OPEN}"', "call: open body"]
    names = [f"tool_{index}" for index in range(len(bodies))]
    rules = [
        start,
        *rules,
        f'body: "\\n" ({" | ".join(names)}) "\\n{CLOSE}"',
        *(f"{name}: {body}" for name, body in zip(names, bodies, strict=True)),
    ]
    return _OPTIONS + "\n".join(rules) + "\n"


def _call(tool: ToolSpec, schemas: _Schemas, *, lenient: bool) -> str:
    """A call's JSON as a rule's right-hand side."""
    whose = f"The schema of the tool {tool.name!r:.100}"
    given: Any = tool.parameters  # whatever its type promises
    kind = given.get("type", "object") if isinstance(given, Mapping) else None
    if kind != "object":
        wrong = f"is {given!r:.100}" if kind is None else f"has the type {kind!r:.100}"
        raise InvalidRequestError(
            f"{whose} {wrong}; arguments are an object.",
            remedy='Use {"type": "object", "properties": {...}}.',
        )
    head = f'{{"name": {dump(tool.name)}, "arguments": '
    schema = {**given, "type": "object"}
    return f'{dump(head)} {schemas.json(schema, whose, lenient=lenient)} "}}"'


class _Schemas:
    """The schemas of one request, as right-hand sides of rules.

    Args:
        limits: How much they may be, all together.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._chars = 0
        self._rules: list[tuple[str, str]] = []  # whose, and what

    def json(self, schema: Mapping[str, Any], whose: str, *, lenient: bool = False) -> str:
        """One schema; it is not tried out yet.

        Raises:
            InvalidRequestError: It is no schema, or too much.
        """
        if not isinstance(schema, Mapping):
            raise InvalidRequestError(
                f"{whose} is {schema!r:.100}; it must be a JSON object.",
                remedy="Give the schema as a dictionary.",
            )
        try:
            written = json.dumps(dict(schema))
            self._check_size(written, whose)
            prepared = prepare_schema(json.loads(written))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"{whose} is not JSON ({error}).",
                remedy="Use dictionaries, lists, strings, numbers and None, nested less deeply.",
            ) from error
        check_patterns(prepared, whose, self._limits)
        rule = f"%json {json.dumps(prepared | {'x-guidance': {**_SPACING, 'lenient': lenient}})}"
        self._rules.append((whose, rule))
        return rule

    def _check_size(self, written: str, whose: str) -> None:
        self._chars += len(written)
        most = self._limits.max_schema_chars
        if self._chars > most:
            alone = len(written) == self._chars
            raise InvalidRequestError(
                f"{whose} has {len(written)} characters"
                + ("" if alone else f", with the schemas before it {self._chars}")
                + f"; {most} are allowed.",
                remedy="Use smaller schemas or fewer tools, or raise LimitsConfig.max_schema_chars.",
            )

    def try_out(self, still_wanted: Callable[[], None]) -> None:
        """Compiles the schemas, each for itself.

        Raises:
            InvalidRequestError: One cannot be enforced, or is too much work.
        """
        grammars = [f"{_OPTIONS}start: {rule}\n" for _, rule in self._rules]
        problem = first_problem(grammars, self._limits, still_wanted)
        if problem is None:
            return
        whose, rule = self._rules[problem.index]
        if problem.reason is None:
            raise InvalidRequestError(
                f"{whose}, {len(rule)} characters, could not be compiled within "
                f"{self._limits.max_schema_s:g} s and 1 GiB of memory.",
                remedy="Use a simpler one: fewer patterns that meet, smaller numbers in multipleOf and in "
                "repetitions. Or raise LimitsConfig.max_schema_s.",
            )
        raise InvalidRequestError(
            f"{whose} cannot be enforced: {_reason(problem.reason)}.",
            remedy="Leave that part of the schema out, and check it on the answer.",
        )


def check_patterns(schema: dict[str, Any], whose: str, limits: LimitsConfig) -> None:
    """Refuses patterns that are too much, before anybody reads them.

    Raises:
        InvalidRequestError: One is too long, or too long with its repetitions written out.
    """

    def look(node: dict[str, Any]) -> dict[str, Any]:
        named = node.get("patternProperties")
        patterns = [node.get("pattern"), *(named if isinstance(named, dict) else ())]
        for pattern in patterns:
            if isinstance(pattern, str):
                _check_pattern(pattern, whose, limits)
        return dict(node)

    _mapped(schema, look)


def _check_pattern(pattern: str, whose: str, limits: LimitsConfig) -> None:
    if len(pattern) > limits.max_pattern_chars:
        raise InvalidRequestError(
            f"{whose} has the pattern {pattern!r:.60} of {len(pattern)} characters; "
            f"{limits.max_pattern_chars} are allowed.",
            remedy="Use a shorter pattern, or raise LimitsConfig.max_pattern_chars.",
        )
    size = min(written_out(pattern), 10**12)
    if size > limits.max_pattern_size:
        raise InvalidRequestError(
            f"{whose} has the pattern {pattern!r:.60}, with its repetitions written out {size:,} "
            f"characters; {limits.max_pattern_size:,} are allowed.",
            remedy="Repeat less often, or raise LimitsConfig.max_pattern_size.",
        )


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
        name, parts = tag.get("propertyName") if isinstance(tag, dict) else None, node.get("oneOf")
        if isinstance(name, str) and isinstance(parts, list):
            node["oneOf"] = [_with_required(part, name) for part in parts]
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
    required = part.get("required", [])
    if not isinstance(required, list) or name in required:
        return part
    return {**part, "required": [*required, name]}


def _looks_around(part: Any) -> bool:
    pattern = part.get("pattern") if isinstance(part, dict) else None
    return isinstance(pattern, str) and any(mark in pattern for mark in ("(?=", "(?!", "(?<=", "(?<!"))
