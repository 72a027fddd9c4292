"""OpenAI's decisions -> the engine's, and back. Pure; what cannot be passed on is an error, never dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sgl_engine import ImagePart, InvalidRequestError, Message, ToolCall
from sgl_engine.decisions import (
    ChoiceAnswer,
    ChoiceQuestion,
    DecisionAnswer,
    DecisionQuestion,
    DecisionReport,
    Decisions,
    RefusedAnswer,
    ScoreAnswer,
    ScoreQuestion,
    YesNoAnswer,
    YesNoQuestion,
)
from sgl_engine.server.deciding.fields import (
    ChoiceQuestionField,
    PredicateField,
    QuestionField,
    Said,
    ScoreField,
)
from sgl_engine.server.errors import code_of
from sgl_engine.server.messages import to_part, to_role

JSON = dict[str, Any]
MAX_JSON_LEVELS: Final = 32
MAX_JSON_VALUES: Final = 10_000
MAX_JSON_BYTES: Final = 256 * 2**10
"""Of one part ``input_json``: OpenAI's limits."""
_CALLS: Final = {"function_call": "arguments", "custom_tool_call": "input"}
"""Types of calls, and where each has what the tool is given."""


def to_state(given: str | Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Translates the input: messages, calls and their outputs.

    Raises:
        InvalidRequestError: An item that cannot be passed on, or an output without its call.
        ImageError: A part that should hold a picture does not.
    """
    if isinstance(given, str):
        return _not_empty((Message("user", (given,)),))
    called: set[str] = set()
    messages = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        kind = str(item.get("type", "message"))
        if kind in _CALLS:
            messages.append(_call(item, where))
            called.add(item["call_id"])
        elif kind.removesuffix("_output") in _CALLS:
            identity = item.get("call_id")
            if not isinstance(identity, str) or identity not in called:
                raise InvalidRequestError(
                    f"{where} is the output of the call {identity!r:.100}, which was not made.",
                    remedy="Send each call before its output, under one call_id.",
                )
            output = _said(item.get("output"), where)
            messages.append(Message("tool", output, tool_call_id=identity))
        elif kind == "message":
            messages.append(_message(item, where))
        else:
            raise InvalidRequestError(
                f"{where} is of type {kind!r:.100}.",
                remedy="Send messages, calls of functions or custom tools, and their outputs.",
            )
    return _not_empty(tuple(messages))


def _not_empty(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, if there is something in them: a text, a picture or a call."""
    said = any(
        isinstance(part, ImagePart) or part.strip() for message in messages for part in message.content
    )
    if not said and not any(message.tool_calls for message in messages):
        raise InvalidRequestError("The input is empty.", remedy="Send what the questions are about.")
    return messages


def _message(item: Mapping[str, Any], where: str) -> Message:
    role = to_role(item.get("role"), where)
    if role == "tool":
        raise InvalidRequestError(
            f"{where} has the role 'tool'.", remedy="Send an item of type function_call_output."
        )
    return Message(role, _said(item.get("content"), where))


def _call(item: Mapping[str, Any], where: str) -> Message:
    """A call, as the message that it was part of."""
    name, identity, text = item.get("name"), item.get("call_id"), item.get(_CALLS[item["type"]])
    if not (isinstance(name, str) and isinstance(identity, str) and isinstance(text, str)):
        raise InvalidRequestError(
            f"{where} is no call that can be read: {dict(item)!r:.200}.",
            remedy="Write call_id, name, and arguments or input as texts.",
        )
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    # What is not JSON is what a custom tool was told, or what a model wrote; it is evidence all the same.
    given = arguments if isinstance(arguments, dict) else {"input": text}
    return Message("assistant", (), tool_calls=(ToolCall(identity, name, given),))


def _said(content: object, where: str) -> tuple[str | ImagePart, ...]:
    """Translates a text, or parts of one message, output or question.

    Raises:
        InvalidRequestError: It is neither.
    """
    if isinstance(content, str):
        return (content,)
    if not isinstance(content, Sequence):
        raise InvalidRequestError(
            f"{where} has content of type {type(content).__name__}.",
            remedy="Send a text, or a list of parts.",
        )
    return tuple(_part(part, where) for part in content)


def _part(part: object, where: str) -> str | ImagePart:
    if isinstance(part, Mapping) and part.get("type") == "input_json":
        return _json_text(part.get("data"), where)
    return to_part(part, where)


def _json_text(data: object, where: str) -> str:
    """JSON as a text, within the limits."""
    objects = isinstance(data, dict) or (
        isinstance(data, list) and all(isinstance(each, dict) for each in data)
    )
    if not objects:
        raise InvalidRequestError(
            f"The data of an input_json of {where} is neither an object nor an array of objects.",
            remedy="Send anything else as input_text.",
        )
    for values, level in enumerate(_levels(data, 1), start=1):
        if level > MAX_JSON_LEVELS or values > MAX_JSON_VALUES:
            raise InvalidRequestError(
                f"An input_json of {where} has over {MAX_JSON_LEVELS} levels or {MAX_JSON_VALUES} values.",
                remedy="Send less of it, or send it as input_text.",
            )
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode(errors="replace"))
    if size > MAX_JSON_BYTES:
        raise InvalidRequestError(
            f"An input_json of {where} has {size} bytes; the limit is {MAX_JSON_BYTES}.",
            remedy="Send less of it, or send it as input_text.",
        )
    return text


def _levels(value: object, level: int) -> Iterator[int]:
    """The level of every container and value inside, without going deeper than is allowed."""
    yield level
    if level > MAX_JSON_LEVELS:
        return
    inside: Sequence[object] = ()
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list):
        inside = value
    for each in inside:
        yield from _levels(each, level + isinstance(each, dict | list))


def to_question(field: QuestionField, where: str, *, is_bare: bool) -> DecisionQuestion:
    """Translates a question.

    Args:
        field: As the client wrote it.
        where: Its place, for messages.
        is_bare: Whether levels are said as they are, so that descriptions are no part of them.

    Raises:
        InvalidRequestError: It cannot be asked.
        ImageError: A part that should hold a picture does not.
    """
    asked = _instructions(field.instructions, where)
    if isinstance(field, PredicateField):
        return YesNoQuestion(asked)
    if isinstance(field, ChoiceQuestionField):
        if len({_typed(each.value) for each in field.choices}) < len(field.choices):
            raise InvalidRequestError(
                f"Two choices of {where} are equal.", remedy="Give each a value of its own."
            )
        descriptions = [each.description for each in field.choices]
        return ChoiceQuestion(asked, labels_of(field), descriptions if any(descriptions) else ())
    levels = [
        each.label if is_bare or not each.description else f"{each.label}: {each.description}"
        for each in field.levels
    ]
    return ScoreQuestion(asked, levels)


def _instructions(said: Said, where: str) -> str | tuple[str | ImagePart, ...]:
    return said if isinstance(said, str) else _said(said, where)


def _typed(value: str | bool) -> tuple[type, str | bool]:  # noqa: FBT001  # a value, and no flag
    return (type(value), value)


def labels_of(field: ChoiceQuestionField) -> list[str]:
    """The choices as texts, all different: ``True`` is "true", unless that is a choice as well."""
    texts = {each.value for each in field.choices if isinstance(each.value, str)}
    labels = []
    for each in field.choices:
        word = str(each.value).lower() if isinstance(each.value, bool) else each.value
        if isinstance(each.value, bool):
            while word in texts:
                word += " (boolean)"
        labels.append(word)
    return labels


def answer_of(field: QuestionField, answer: DecisionAnswer) -> JSON:
    """An answer as OpenAI writes it."""
    said: JSON = {"type": field.type, "name": field.name}
    if isinstance(answer, YesNoAnswer):
        return {**said, "probability": answer.probability}
    if isinstance(answer, ChoiceAnswer):
        assert isinstance(field, ChoiceQuestionField)
        values = dict(zip(labels_of(field), (each.value for each in field.choices), strict=True))
        probabilities = [
            {"value": values[label], "probability": probability}
            for label, probability in answer.probabilities.items()
        ]
        said |= {"choice": values[answer.choice], "confidence": answer.confidence}
        return {**said, "probabilities": probabilities}
    if isinstance(answer, ScoreAnswer):
        assert isinstance(field, ScoreField)
        probabilities = [
            {"label": level.label, "value": number, "probability": answer.probabilities[number]}
            for number, level in enumerate(field.levels)
        ]
        return {
            **said,
            "score": answer.score,
            "confidence": answer.confidence,
            "probabilities": probabilities,
        }
    return {"type": "refusal", "name": field.name}


def usage_of_decisions(decisions: Decisions) -> JSON:
    """Tokens of both models over all questions, as OpenAI writes them."""
    return {
        "input_tokens": decisions.input_tokens,
        "input_tokens_details": {"cached_tokens": decisions.known_tokens, "cache_write_tokens": 0},
        "output_tokens": decisions.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": decisions.input_tokens + decisions.output_tokens,
    }


def report_of_decisions(decisions: Decisions, reports: Sequence[DecisionReport | None]) -> JSON:
    """What it took, how each question was decided, and why some were not."""
    there = [report for report in reports if report is not None]
    routes = Counter(report.route for report in there)
    small, large = sum(each.small_tflops for each in there), sum(each.large_tflops for each in there)
    alone = sum(each.large_alone_tflops for each in there)
    refused = [
        (number, answer)
        for number, answer in enumerate(decisions.answers.values())
        if isinstance(answer, RefusedAnswer)
    ]
    return {
        "route": "large" if routes["large"] else "small",
        "score": min(report.score for report in there),
        "questions": {"small": routes["small"], "large": routes["large"], "refused": len(refused)},
        "small_tflops": small,
        "large_tflops": large,
        "large_alone_tflops": alone,
        "saved_fraction": 1 - (small + large) / alone if alone else 0.0,
        "refusals": [
            {"index": number, "code": code_of(answer.error), "message": answer.reason}
            for number, answer in refused
        ],
        "reports": [None if each is None else json.loads(each.model_dump_json()) for each in reports],
    }
