"""A schema as a caller writes it -> what ``ChatSGL`` binds, and a parser for what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_sgl.structured.parser import AnswerParser
from langchain_sgl.structured.schemas import boxed, convert_tools, titled, to_json_schema
from sgl_engine import InvalidRequestError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]
METHODS: tuple[Method, ...] = ("function_calling", "json_schema", "json_mode")


def structured(
    model: BaseChatModel,
    schema: Any,
    *,
    method: Method,
    include_raw: bool,
    strict: bool | None,
    options: Mapping[str, Any],
) -> Runnable[Any, Any]:
    """Binds a model to answer in ``schema``, and adds a parser; see ``ChatSGL.with_structured_output``."""
    if method not in METHODS:
        raise InvalidRequestError(
            f"There is no method {method!r} of structured output.", remedy=f"Use one of {', '.join(METHODS)}."
        )
    bind = _forced_call if method == "function_calling" else _constrained_text
    box = boxed(schema)  # what is no object becomes the only field of one
    schema = schema if box is None else box
    trace = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    bound, parser = bind(
        model,
        schema,
        method=method,
        strict=strict,
        options={**options, "ls_structured_output_format": trace},
    )
    if box is not None:
        parser = parser.model_copy(update={"unbox": True})
    return _with_raw(bound, parser) if include_raw else bound | parser


def _forced_call(
    model: BaseChatModel, schema: Any, *, method: Method, strict: bool | None, options: Mapping[str, Any]
) -> tuple[Runnable[Any, Any], AnswerParser]:
    """Binds the schema as the one tool, which has to be called; the call's arguments are the answer."""
    if "tools" in options:
        raise InvalidRequestError(
            f"The method {method!r} forces a call of the schema, and takes no other tools.",
            remedy='Leave them out, or use the method "json_schema".',
        )
    tool = convert_tools([titled(schema)], strict=strict)[0]
    name = tool["function"]["name"]
    # A dictionary and not the name alone, which may be "any" or "none".
    choice: Any = {"type": "function", "function": {"name": name}}
    bound = model.bind_tools([tool], tool_choice=choice, parallel_tool_calls=False, **options)
    return bound, _parser(schema, tool["function"]["parameters"], tool_name=name)


def _constrained_text(
    model: BaseChatModel, schema: Any, *, method: Method, strict: bool | None, options: Mapping[str, Any]
) -> tuple[Runnable[Any, Any], AnswerParser]:
    """Binds the schema as the form of the text; tools may be bound beside it."""
    tools = {"tools": convert_tools(options["tools"], strict=strict)} if "tools" in options else {}
    form = _response_format(schema, method, strict=strict)
    bound = model.bind(response_format=form, **{**options, **tools})
    plain = form["schema"] if method == "json_mode" else form["json_schema"]["schema"]
    return bound, _parser(schema, plain)


def _parser(schema: Any, plain: Mapping[str, Any], *, tool_name: str | None = None) -> AnswerParser:
    """Makes the parser: pydantic models check their answers themselves, all else is plain JSON."""
    model = schema if is_basemodel_subclass(schema) else None
    return AnswerParser(model=model, json_schema=plain, tool_name=tool_name)


def _response_format(schema: Any, method: Method, *, strict: bool | None) -> Mapping[str, Any]:
    """Writes OpenAI's ``response_format``. JSON mode, too, holds the answer to the schema."""
    plain = to_json_schema(titled(schema), strict=strict)
    if method == "json_mode":
        return {"type": "json_object", "schema": plain}
    named = {"name": plain.get("title", "answer"), "schema": plain, "strict": strict}
    return {"type": "json_schema", "json_schema": named}


def _with_raw(bound: Runnable[Any, Any], parser: AnswerParser) -> Runnable[Any, Any]:
    """Returns ``{"raw", "parsed", "parsing_error"}``, so that a message that cannot be parsed is not lost."""
    parsed: Runnable[Any, Any] = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed: Runnable[Any, Any] = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
