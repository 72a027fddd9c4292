"""JSON schemas: a slow, obvious check of a value, and random schemas to check with it."""

import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]


def faults(value: Any, schema: Schema | bool, root: Schema | None = None) -> list[str]:
    """Why `value` does not satisfy `schema`; knows the keywords that the tests use, and refuses others."""
    if isinstance(schema, bool):
        return [] if schema else [f"{value!r} is not allowed"]
    root = schema if root is None else root
    found = []
    for keyword, wanted in schema.items():
        if keyword in {"title", "description", "default", "$defs", "required", "examples"}:
            continue
        if keyword in {"anyOf", "oneOf"}:
            if all(faults(value, part, root) for part in wanted):
                found.append(f"{value!r} is none of {wanted}")
        elif keyword == "$ref":
            found += faults(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
        elif keyword == "type":
            types = wanted if isinstance(wanted, list) else [wanted]
            if not any(_TYPES[name](value) for name in types):
                found.append(f"{value!r} is not of the type {wanted}")
        else:
            found += _CHECKS[keyword](value, wanted, schema, root)
    found += [
        f"{name} is missing"
        for name in schema.get("required", ())
        if isinstance(value, dict) and name not in value
    ]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def _same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and first == second


def _simple(applies: type | tuple[type, ...], holds: Callable[[Any, Any], bool]) -> Callable[..., list[str]]:
    def check(value: Any, wanted: Any, schema: Schema, root: Schema) -> list[str]:
        if not isinstance(value, applies) or isinstance(value, bool) or holds(value, wanted):
            return []
        return [f"{value!r} breaks {wanted!r}"]

    return check


def _properties(value: Any, wanted: Any, schema: Schema, root: Schema) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [fault for name in wanted if name in value for fault in faults(value[name], wanted[name], root)]


def _additional(value: Any, wanted: Any, schema: Schema, root: Schema) -> list[str]:
    if not isinstance(value, dict):
        return []
    others = [value[name] for name in value if name not in schema.get("properties", {})]
    return [fault for other in others for fault in faults(other, wanted, root)]


def _items(value: Any, wanted: Any, schema: Schema, root: Schema) -> list[str]:
    return (
        [fault for item in value for fault in faults(item, wanted, root)] if isinstance(value, list) else []
    )


_CHECKS: dict[str, Callable[..., list[str]]] = {
    "enum": lambda value, wanted, *_: (
        [] if any(_same(value, one) for one in wanted) else [f"{value!r} is no option"]
    ),
    "const": lambda value, wanted, *_: [] if _same(value, wanted) else [f"{value!r} is not {wanted!r}"],
    "minLength": _simple(str, lambda value, wanted: len(value) >= wanted),
    "maxLength": _simple(str, lambda value, wanted: len(value) <= wanted),
    "pattern": _simple(str, lambda value, wanted: re.search(wanted, value, re.ASCII) is not None),
    "minimum": _simple((int, float), lambda value, wanted: value >= wanted),
    "maximum": _simple((int, float), lambda value, wanted: value <= wanted),
    "exclusiveMinimum": _simple((int, float), lambda value, wanted: value > wanted),
    "exclusiveMaximum": _simple((int, float), lambda value, wanted: value < wanted),
    "multipleOf": _simple(int, lambda value, wanted: value % wanted == 0),
    "minItems": _simple(list, lambda value, wanted: len(value) >= wanted),
    "maxItems": _simple(list, lambda value, wanted: len(value) <= wanted),
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
}

PATTERNS = ("^[a-z]+@[a-z]+\\.com$", "^\\d{4}-\\d{2}$", "^(ab|c){2,}x$", "b{3}", '^[^"]{3}z$', "^Ä?é+$")

_LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer"},
            {"type": "number"},
            {"type": "string"},
            {"type": ["string", "null"], "default": None},
            {"type": "integer", "minimum": 7, "maximum": 4000},
            {"type": "integer", "multipleOf": 7, "minimum": 1},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
            {"const": {"a": [1, "É"]}},
            {"enum": ["red", "Green", 'a "quote"', 12, None, True, [1]], "title": "Colour"},
        ]
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 12),
        st.integers(0, 3),
    ),
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
)
_NAMES = st.sampled_from(["a", "name", "Titel", "é", 'q"', "name2", "a b"])


def _inner(parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        parts,
        st.integers(0, 3),
        st.integers(0, 2),
    )
    objects = st.builds(
        lambda properties, keep: {
            "type": "object",
            "description": "An object.",
            "properties": properties,
            "required": [name for index, name in enumerate(properties) if keep >> index & 1],
        },
        st.dictionaries(_NAMES, parts, max_size=4),
        st.integers(0, 15),
    )
    maps = parts.map(lambda values: {"type": "object", "additionalProperties": values})
    unions = st.lists(parts, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(arrays, objects, maps, unions)


_RECURSIVE: list[Schema] = [
    {
        "$defs": {
            "N": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
            }
        },
        "$ref": "#/$defs/N",
    },
    {
        # What looks likeliest first never ends.
        "$defs": {
            "T": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"deep": {"$ref": "#/$defs/T"}},
                        "required": ["deep"],
                    },
                    {"type": "object", "properties": {"leaf": {"const": 1}}, "required": ["leaf"]},
                ]
            }
        },
        "$ref": "#/$defs/T",
    },
]

SCHEMAS: st.SearchStrategy[Schema] = st.one_of(
    st.just({"type": "object"}), st.sampled_from(_RECURSIVE), st.recursive(_LEAVES, _inner, max_leaves=8)
)
