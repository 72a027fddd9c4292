"""Tools and schemas, as callers write them -> OpenAI's tools and JSON schemas. Pure.

LangChain converts; what its conversion would lose is kept here: schemas that are not an object's, or refer to
themselves, or have no title.
"""

from __future__ import annotations

import copyreg
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from typing import Any, get_origin

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel, create_model
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict  # also knows its own

from sgl_engine import InvalidRequestError

_JSON_SCHEMA = frozenset("type properties items prefixItems enum const anyOf oneOf allOf $ref".split())
_TYPES = frozenset("object array string number integer boolean null".split())
_OWN_TOOL_TYPES = ("function", "custom")
"""Types of dictionaries that describe a tool of the caller, in the providers' formats."""
_UNTITLED = "answer"
BOX = "value"
"""The field of an answer that is no object by itself."""
_BY_NAME = frozenset("properties patternProperties $defs definitions dependentSchemas".split())
_VALUES = frozenset("const enum default examples".split())
_REFERENCE = re.compile(r'"\$ref": "#/\$defs/([^"]+)"')


def convert_tools(tools: Sequence[Any], *, strict: bool | None) -> list[dict[str, Any]]:
    """Converts functions, classes, LangChain tools, and OpenAI's or Anthropic's dictionaries to OpenAI's.

    Raises:
        InvalidRequestError: Something that is none of these, or a tool that a provider would run.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise InvalidRequestError(
            f"Tools are a list, and {tools!r:.100} is none.", remedy="Use bind_tools([tool, ...])."
        )
    return [_convert_tool(tool, strict=strict) for tool in tools]


def _convert_tool(tool: Any, *, strict: bool | None) -> dict[str, Any]:
    """Converts one tool by LangChain's means, then puts back what these lose of its schema."""
    is_schema = isinstance(tool, Mapping) and _is_json_schema(tool)
    if isinstance(tool, Mapping) and not is_schema and tool.get("type", "function") not in _OWN_TOOL_TYPES:
        raise InvalidRequestError(
            f"A tool of the type {tool['type']!r:.100} is run by its provider, and there is none here.",
            remedy='Bind a tool of your own; as a dictionary, one of the type "function".',
        )
    with _explained(
        tool,
        what="bound as a tool",
        remedy="Give a LangChain tool, a function with type hints and a docstring, a pydantic model, or a "
        "dictionary in OpenAI's format.",
    ):
        converted: dict[str, Any] = convert_to_openai_tool(tool, strict=strict)
        if "function" not in converted:  # flat, as OpenAI's Responses API has it
            converted = {"type": "function", "function": {k: v for k, v in converted.items() if k != "type"}}
        described = converted["function"]
        if not isinstance(described["name"], str):
            raise TypeError(f"its name is {described['name']!r:.100}")
        # Where a schema refers to itself, the conversion would allow anything.
        kept = _recursive_schema(tool.tool_call_schema if isinstance(tool, BaseTool) else tool)
        # A JSON schema that lists no properties ("any object", a oneOf) would come out empty.
        if is_schema and "properties" not in tool:
            kept = {key: value for key, value in tool.items() if key not in {"title", "description"}}
        return converted if kept is None else {**converted, "function": {**described, "parameters": kept}}


def to_json_schema(schema: Any, *, strict: bool | None = None) -> Mapping[str, Any]:
    """Writes a pydantic model, a TypedDict, a tool or a dictionary as JSON schema.

    Raises:
        InvalidRequestError: It is none of these.
    """
    if isinstance(schema, Mapping) and _is_json_schema(schema) and not {"title", "properties"} <= set(schema):
        return schema  # LangChain's conversion wants a title, and drops what has no properties
    with _explained(
        schema,
        what="read as a JSON schema",
        remedy="Give a pydantic model, a TypedDict, a JSON schema, or OpenAI's response_format.",
    ):
        recursive = _recursive_schema(schema)
        return convert_to_json_schema(schema, strict=strict) if recursive is None else recursive


def titled(schema: Any) -> Any:
    """Gives a JSON schema without a title one: a tool that is made of it needs a name."""
    if not isinstance(schema, Mapping) or not _is_json_schema(schema):
        return schema
    return {"title": _UNTITLED, **schema}


class _Boxes(type(BaseModel)):  # type: ignore[misc]
    """The class of boxes: pickled, one is made anew of what it holds, as there is no name to find it by."""

    holds: Any


def _remade(box: _Boxes) -> tuple[Any, tuple[Any]]:
    return boxed, (box.holds,)


copyreg.pickle(_Boxes, _remade)


class _Box(BaseModel, metaclass=_Boxes):
    """A model with one field."""


def boxed(schema: Any) -> type[BaseModel] | None:
    """Makes a model with one field, ``BOX``, of a type whose values are no objects; None for all others.

    Such are an enumeration, ``float``, ``list[...]``, ``set[...]``, ``Literal[...]``, a union, a dataclass.

    Raises:
        InvalidRequestError: No JSON can hold values of the type.
    """
    is_class = isinstance(schema, type) and get_origin(schema) is None
    if is_class and (
        is_typeddict(schema) or hasattr(schema, "model_json_schema") or hasattr(schema, "__fields__")
    ):
        return None
    if not is_class and get_origin(schema) is None:
        return None
    name = getattr(schema, "__name__", _UNTITLED)
    with _explained(
        schema,
        what="read as a type of answers",
        remedy="Give a type that JSON can hold, or a pydantic model, a TypedDict or a JSON schema.",
    ):
        fields: dict[str, Any] = {BOX: (schema, ...)}
        model: type[BaseModel] = create_model(re.sub(r"\W", "_", name), __base__=_Box, **fields)
        model.model_json_schema()  # refused when it is written, and not when it is asked for
        type.__setattr__(model, "holds", schema)
        return model


def enforceable(schema: Any) -> Any:
    """Leaves out of a JSON schema what no grammar can hold an answer to: that items of an array differ.

    Sets drop repeated items by themselves, and so does ``without_repeats``.
    """
    if not isinstance(schema, Mapping):
        return [enforceable(part) for part in schema] if isinstance(schema, list) else schema
    return {
        # What stands under these keys are names, and not keywords.
        key: {name: enforceable(part) for name, part in value.items()}
        if key in _BY_NAME and isinstance(value, Mapping)
        else value
        if key in _VALUES
        else enforceable(value)
        for key, value in schema.items()
        if key != "uniqueItems"
    }


def without_repeats(value: Any, schema: Any, root: Any = None) -> Any:
    """Drops repeated items of arrays in which, by a JSON schema, all items differ.

    Args:
        value: What was answered.
        schema: What it is held to.
        root: The whole schema, to which "$ref" refers; None is ``schema``.
    """
    root = schema if root is None else root
    if not isinstance(schema, Mapping):
        return value
    for part in (_referred(schema, root), *_parts(schema, "allOf")):
        value = without_repeats(value, part, root) if part is not schema else value
    for choice in ("anyOf", "oneOf"):
        # Only what all that the value can be agree on: of "list or set of numbers" nothing is dropped.
        found = [
            without_repeats(value, part, root)
            for part in _parts(schema, choice)
            if _may_be(value, part, root)
        ]
        value = found[0] if found and all(each == found[0] for each in found) else value
    if isinstance(value, Mapping):
        named, rest = schema.get("properties") or {}, schema.get("additionalProperties")
        return {name: without_repeats(part, named.get(name, rest), root) for name, part in value.items()}
    if isinstance(value, list):
        first = list(_parts(schema, "prefixItems"))
        of_each = [*first, *[schema.get("items")] * len(value)]
        items = [without_repeats(*pair, root) for pair in zip(value, of_each, strict=False)]
        # Of JSON's values, 1 and True are equal in Python, and different in JSON.
        known = {json.dumps(item, sort_keys=True): item for item in items}
        return list(known.values()) if schema.get("uniqueItems") is True else items
    return value


def _parts(schema: Mapping[str, Any], keyword: str) -> Sequence[Any]:
    """The schemas that stand under a keyword."""
    parts = schema.get(keyword)
    return parts if isinstance(parts, list) else ()


def _referred(schema: Mapping[str, Any], root: Any) -> Any:
    """What "$ref" leads to, through references to references; None where that is nowhere."""
    known: set[str] = set()
    found: Any = schema
    while isinstance(found, Mapping) and isinstance(target := found.get("$ref"), str):
        if target in known or not target.startswith("#/"):
            return None
        known.add(target)
        found = root
        for key in target.removeprefix("#/").split("/"):
            name = key.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _may_be(value: Any, schema: Any, root: Any) -> bool:
    """Whether a schema's types and constants allow a value; of the rest it says nothing."""
    if not isinstance(schema, Mapping):
        return True
    target = _referred(schema, root)
    if target is not schema and not _may_be(value, target, root):
        return False
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    wrong = isinstance(kinds, list) and not any(_is_kind(value, kind) for kind in kinds)
    wrong = wrong or ("const" in schema and value != schema["const"])
    if wrong or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, Mapping):
        named = schema.get("properties") or {}
        missing = set(schema.get("required") or ()) - value.keys()
        return not missing and all(_may_be(value[name], named[name], root) for name in named if name in value)
    if isinstance(value, list):
        return all(_may_be(item, schema.get("items"), root) for item in value)
    return True


def _is_kind(value: Any, kind: Any) -> bool:
    """Whether a value is of a JSON type."""
    if isinstance(value, bool) or value is None:
        return bool(kind == ("null" if value is None else "boolean"))
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "array": (list,),
        "object": (dict,),
    }
    return isinstance(value, kinds.get(kind, ()))


def _is_json_schema(schema: Mapping[str, Any]) -> bool:
    """Tells a JSON schema from a tool in some provider's format, and from other dictionaries."""
    kind = schema.get("type", "object")
    return (
        (isinstance(kind, list) or kind in _TYPES)
        and bool(_JSON_SCHEMA & set(schema))
        and "name" not in schema
    )


def _recursive_schema(source: Any) -> dict[str, Any] | None:
    """Writes a pydantic model's schema where it refers to itself; None for all else.

    In LangChain's conversion, the place where such a schema refers to itself would allow anything.
    """
    if not isinstance(source, type) or not hasattr(source, "model_json_schema"):
        return None
    schema: dict[str, Any] = source.model_json_schema()
    references = {
        name: _REFERENCE.findall(json.dumps(part, default=str))
        for name, part in schema.get("$defs", {}).items()
    }
    try:
        TopologicalSorter(references).prepare()
    except CycleError:
        return schema
    return None


@contextmanager
def _explained(value: Any, *, what: str, remedy: str) -> Iterator[None]:
    """Raises whatever a conversion raises, within the context, as an error that names the value."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, NameError, PydanticUserError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequestError(
            f"{value!r:.100} cannot be {what} ({type(error).__name__}: {reason:.300}).", remedy=remedy
        ) from error
