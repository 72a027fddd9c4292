"""Reads a structured answer: a whole one, or none. Pure.

LangChain's own parsers repair what is cut off, so half an answer would pass for a whole one with less in it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.utils.json import parse_json_markdown
from typing_extensions import override

from langchain_sgl.structured.schemas import BOX, without_repeats


class AnswerParser(BaseCumulativeTransformOutputParser[Any]):
    """An answer of ``ChatSGL`` -> an instance of the model, or plain JSON.

    Streamed, plain JSON comes as it grows, as LangChain's own parsers have it; the last piece is the whole.
    Everything else comes once, when it is whole.

    Attributes:
        model: A pydantic model; None returns JSON.
        json_schema: What the answer was held to.
        tool_name: The tool that had to be called with the answer as arguments; None reads the text.
        unbox: Whether the answer is the one field of an object.
    """

    model: Any = None
    json_schema: Mapping[str, Any] = {}
    tool_name: str | None = None
    unbox: bool = False

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Reads an answer.

        Args:
            result: The message, or a text.
            partial: Whether more of it is to come; None is returned where nothing can be said yet.

        Raises:
            OutputParserException: There is no whole answer, or it is none by the model.
        """
        if partial:
            return self._so_far(result[0].text)
        generation = result[0]
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if message is not None and message.response_metadata.get("finish_reason") == "length":
            raise OutputParserException(
                "The answer is cut off at the token limit, and half of it is none. Raise max_tokens.",
                llm_output=generation.text,
            )
        value = self._read(generation.text) if self.tool_name is None else self._called(message)
        return self._checked(value)

    def _so_far(self, text: str) -> Any:
        """Repairs what is there of plain JSON; None for all else."""
        if self.model is not None or self.tool_name is not None:
            return None
        try:
            return parse_json_markdown(text.strip())
        except ValueError:
            return None

    def _read(self, text: str) -> Any:
        try:
            return parse_json_markdown(text.strip(), parser=json.loads)
        except ValueError as error:
            raise OutputParserException(f"The answer is not JSON ({error}).", llm_output=text) from error

    def _called(self, message: BaseMessage | None) -> Any:
        for call in getattr(message, "tool_calls", ()):
            if call["name"] == self.tool_name:
                return call["args"]
        text = "" if message is None else message.text
        raise OutputParserException(f"The answer holds no valid call of {self.tool_name!r}.", llm_output=text)

    def _checked(self, value: Any) -> Any:
        """Returns what the caller asked for."""
        if self.model is None:
            return without_repeats(value, self.json_schema)
        try:
            # Models of pydantic 1 know no model_validate.
            read = getattr(self.model, "model_validate", None) or self.model.parse_obj
            answer = read(value)
        except ValueError as error:
            written = json.dumps(value, ensure_ascii=False)
            raise OutputParserException(
                f"The answer is no {self.model.__name__} ({error}).", llm_output=written
            ) from error
        return getattr(answer, BOX) if self.unbox else answer

    @override
    def parse(self, text: str) -> Any:
        """Reads an answer that is a text."""
        return self.parse_result([Generation(text=text)])

    @property
    def _type(self) -> str:
        return "sgl_answer"

    @override
    def _diff(self, prev: Any, next: Any) -> Any:
        return next

    @override
    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        pieces: list[Any] = []
        last = None
        for value in super()._transform(_kept(input, pieces)):
            last = value
            yield value
        for value in self._whole(pieces, last):
            yield value

    @override
    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        pieces: list[Any] = []
        last = None
        async for value in super()._atransform(_akept(input, pieces)):
            last = value
            yield value
        for value in self._whole(pieces, last):
            yield value

    def _whole(self, pieces: list[Any], last: Any) -> Iterator[Any]:
        """Yields the whole answer, if it is not what was yielded last; raises where there is none."""
        if not pieces:
            return
        whole = pieces[0]
        for piece in pieces[1:]:
            whole += piece
        value = self.parse_result(
            [Generation(text=whole) if isinstance(whole, str) else ChatGeneration(message=whole)]
        )
        if last is None or value != last:
            yield value


def _kept(pieces: Iterator[Any], into: list[Any]) -> Iterator[Any]:
    for piece in pieces:
        into.append(piece)
        yield piece


async def _akept(pieces: AsyncIterator[Any], into: list[Any]) -> AsyncIterator[Any]:
    async for piece in pieces:
        into.append(piece)
        yield piece
