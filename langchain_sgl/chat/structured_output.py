"""A schema as a caller writes it -> what ``ChatSGL`` binds, and parsers for what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_sgl.chat.schemas import convert_tools, titled, to_json_schema
from sgl_engine.errors import InvalidRequestError

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
    """The model, made to answer in ``schema``, and a parser; see ``ChatSGL.with_structured_output``."""
    if method not in METHODS:
        raise InvalidRequestError(
            f"There is no method {method!r} of structured output.", remedy=f"Use one of {', '.join(METHODS)}."
        )
    trace = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    parser: BaseOutputParser[Any]
    if method == "function_calling":
        if "tools" in options:
            raise InvalidRequestError(
                'The method "function_calling" forces a call of the schema, and takes no other tools.',
                remedy='Leave them out, or use the method "json_schema".',
            )
        tool = convert_tools([titled(schema)], strict=strict)[0]
        name = tool["function"]["name"]
        # Not the name alone: it may be "any" or "none".
        choice: Any = {"type": "function", "function": {"name": name}}
        bound = model.bind_tools(
            [tool],
            tool_choice=choice,
            parallel_tool_calls=False,
            ls_structured_output_format=trace,
            **options,
        )
        if is_basemodel_subclass(schema):
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
        else:
            parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    else:
        tools = {"tools": convert_tools(options["tools"], strict=strict)} if "tools" in options else {}
        bound = model.bind(
            response_format=_response_format(schema, method, strict=strict),
            ls_structured_output_format=trace,
            **{**options, **tools},
        )
        parser = (
            PydanticOutputParser(pydantic_object=schema)
            if is_basemodel_subclass(schema)
            else JsonOutputParser()
        )
    return _with_raw(bound, parser) if include_raw else bound | parser


def _response_format(schema: Any, method: Method, *, strict: bool | None) -> Mapping[str, Any]:
    """OpenAI's ``response_format``. JSON mode is held to the schema as well: it is known, so why not."""
    plain = to_json_schema(titled(schema), strict=strict)
    if method == "json_mode":
        return {"type": "json_object", "schema": plain}
    named = {"name": plain.get("title", "answer"), "schema": plain, "strict": strict}
    return {"type": "json_schema", "json_schema": named}


def _with_raw(bound: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """``{"raw", "parsed", "parsing_error"}``: a message that cannot be parsed is not lost."""
    parsed: Runnable[Any, Any] = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed: Runnable[Any, Any] = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
