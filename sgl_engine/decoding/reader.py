"""A model's answer -> text and tool calls, in the format in which this model and this request have them."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sgl_engine.chat.template import reads_natively
from sgl_engine.chat.text_stream import TextDelta
from sgl_engine.chat.thoughts import ReasoningDelta, ReasoningText
from sgl_engine.chat.tool_calls import ParsedAnswer, dump, parse_with_tokenizer
from sgl_engine.chat.tool_stream import Delta, ToolCallDelta, ToolCallStream
from sgl_engine.decoding.answer import Generation
from sgl_engine.decoding.compiled import CompiledGrammar, grammars_of
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.request import Decoding, Request, check_wanted

if TYPE_CHECKING:
    from sgl_engine.model.vlm import VLM

Result = TypeVar("Result")


class AnswerReader:
    """Reads one answer while it comes.

    Args:
        vlm: Whose answer it is.
        request: What it answers.
        prompt: The request as this model read it.
    """

    def __init__(self, vlm: VLM, request: Request, prompt: EncodedPrompt) -> None:
        self._vlm = vlm
        self._request = request
        self._prompt = prompt
        # A format of the model's own is known whole, at the end; Hermes tags are read as they come.
        self._native = reads_natively(vlm.processor, request)
        self._grammar: CompiledGrammar | None = None
        # Where nothing may be called, an answer is text, whatever stands in it.
        self._calls: ToolCallStream | None = None
        if request.callable_tools:
            self._calls = ToolCallStream(only_at_start=request.response_schema is not None)

    def suited(self, decoding: Decoding) -> Decoding:
        """The decoding, without its grammar where calls come in a format that the grammar is not of.

        A grammar is compiled here, in the caller's thread, so that the worker finds it compiled.

        Raises:
            InvalidRequestError: The grammar is none.
            ProcessorError: The model's tokenizer cannot be constrained.
            DeadlineError: The deadline passed meanwhile.
            RequestCancelledError: The request was cancelled meanwhile.
        """
        if self._native or decoding.grammar is None:
            return replace(decoding, grammar=None)
        vlm, wanted = self._vlm, partial(check_wanted, decoding, "while its grammar was compiled")
        with vlm.processing(wanted):
            grammars = grammars_of(vlm.processor.tokenizer, vlm.vocab_size, vlm.eos_token_ids)
        self._grammar = grammars.get(decoding.grammar, wanted)  # held on to until the answer is read
        return decoding

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of ``Generation.text``, or of thoughts; returns what is certain now."""
        if isinstance(text, ReasoningText):
            return [ReasoningDelta(str(text))] if text else []
        if self._native:
            return []
        if self._calls is not None:
            return self._calls.push(text)
        return [TextDelta(text)] if text else []

    def replay(self, generation: Generation) -> list[Delta]:
        """Takes a whole answer, its thoughts first."""
        return [*self.push(ReasoningText(generation.reasoning)), *self.push(generation.text)]

    def finish(self, generation: Generation) -> tuple[list[Delta], ParsedAnswer]:
        """Ends the answer.

        Args:
            generation: The answer, whose text was pushed.

        Returns:
            What was held back, and the whole.
        """
        if self._native:
            return self._parse(generation)
        if self._calls is None:
            return [], ParsedAnswer(generation.text)
        deltas = self._calls.flush()
        return deltas, ParsedAnswer(
            self._calls.text, tuple(self._calls.tool_calls), tuple(self._calls.invalid_tool_calls)
        )

    def _parse(self, generation: Generation) -> tuple[list[Delta], ParsedAnswer]:
        with self._vlm.processing():
            tokenizer = self._vlm.processor.tokenizer
            prompt = tokenizer.decode(self._prompt.input_ids[0].tolist())
            answer = tokenizer.decode(generation.answer.token_ids.tolist())
            parsed = parse_with_tokenizer(
                tokenizer, answer, prompt=prompt, tools=self._request.callable_tools
            )
        assert parsed is not None, "reads_natively has seen the tokenizer's format"
        if not (parsed.tool_calls or parsed.invalid_tool_calls):
            parsed = ParsedAnswer(generation.text)  # without control tokens, cut before stop strings
        deltas: list[Delta] = [TextDelta(parsed.text)] if parsed.text else []
        calls = [(call.id, call.name, dump(dict(call.arguments))) for call in parsed.tool_calls]
        wrong = [(call.id, call.name, call.arguments) for call in parsed.invalid_tool_calls]
        for index, (call_id, name, arguments) in enumerate([*calls, *wrong]):
            deltas.append(ToolCallDelta(index, call_id, name, arguments))
        return deltas, parsed


def read_stream(stream: Generator[str, None, Result], reader: AnswerReader) -> Generator[Delta, None, Result]:
    """What a reader makes of a pass while it streams; returns the pass's result."""
    while True:
        try:
            text = next(stream)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield from reader.push(text)


def read_answer(vlm: VLM, request: Request, prompt: EncodedPrompt, generation: Generation) -> ParsedAnswer:
    """A finished answer, taken apart."""
    reader = AnswerReader(vlm, request, prompt)
    reader.push(generation.text)
    return reader.finish(generation)[1]


def agree(first: ParsedAnswer, second: ParsedAnswer) -> bool:
    """Whether two answers say the same: the same calls, and texts that differ in nothing that matters.

    What does not matter: case, surrounding space, a final full stop; in JSON how it is written.
    """
    called = [[(call.name, dict(call.arguments)) for call in answer.tool_calls] for answer in (first, second)]
    wrong = bool(first.invalid_tool_calls or second.invalid_tool_calls)
    return called[0] == called[1] and not wrong and _same_text(first.text, second.text)


def _same_text(first: str, second: str) -> bool:
    plain = [text.strip().removesuffix(".").casefold() for text in (first, second)]
    if plain[0] == plain[1]:
        return True
    try:
        values = [json.loads(text) for text in (first, second)]
    except (ValueError, RecursionError):
        return False
    return isinstance(values[0], dict | list) and bool(values[0] == values[1])
