"""Reads tool calls out of an answer while it streams."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from sgl_engine.chat.text_stream import CLOSE, OPEN, ReasoningDelta, TextDelta
from sgl_engine.chat.tool_calls import check_call, dump, load_prefix, new_id, read_call
from sgl_engine.request import InvalidToolCall, ToolCall


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call, in order; the arguments of one index join to one JSON object.

    Attributes:
        index: Which call of the answer, from 0.
        id: On the first piece of a call, else None.
        name: On the first piece of a call, else None.
        arguments: Piece of the arguments' JSON text.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*+")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)
"""The usual layout, whose arguments are passed on while they come; others are read when they are whole."""

_TAG = re.compile(f"{OPEN}|{CLOSE}")

_TAG_OUTSIDE_STRINGS = re.compile(
    rf'(?:[^"<]++|"(?:[^"\\]|\\.)*+"|<(?!/?tool_call>))*+(?P<tag>{OPEN}|{CLOSE})', re.DOTALL
)

Delta: TypeAlias = ReasoningDelta | TextDelta | ToolCallDelta


class ToolCallStream:
    """An answer's text, piece by piece -> text and calls, as soon as each is certain.

    However the answer is cut into pieces, the joined result is the same. Text that may become ``<tool_call>``
    waits, and so does space that may stand before it; space around calls is not text, and texts that calls
    part are joined by one newline. In the usual layout (name first) the arguments are passed on as they come,
    character by character; other layouts, "parameters" for "arguments" among them, when they are whole.

    A call that the answer's end or the next call cuts off is valid where its arguments are whole. Names are
    not compared with the tools: who runs them answers an unknown name best.

    Args:
        only_at_start: An answer that does not begin with a call holds none.

    Attributes:
        text: The text so far.
        tool_calls: The calls so far.
        invalid_tool_calls: What was meant as a call so far, and cannot be read.
    """

    def __init__(self, *, only_at_start: bool = False) -> None:
        self.text = ""
        self.tool_calls: list[ToolCall] = []
        self.invalid_tool_calls: list[InvalidToolCall] = []
        self._enabled = True
        self._undecided = only_at_start
        self._rest = ""  # not yet understood
        self._call: _OpenCall | None = None
        self._calls = 0
        self._behind_call = False  # nothing but space since the last call

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece; returns what is certain now."""
        self._rest += text
        return self._advance(last=False)

    def flush(self) -> list[Delta]:
        """Ends the answer; returns what was held back."""
        return self._advance(last=True)

    def _advance(self, *, last: bool) -> list[Delta]:
        deltas: list[Delta] = []
        if self._undecided:
            self._enabled = self._rest.startswith(OPEN)
            self._undecided = not last and not self._enabled and OPEN.startswith(self._rest)
            if self._undecided:
                return deltas
        while True:
            if self._call is None:
                if not self._read_text(deltas, last=last):
                    return deltas
                self._call = _OpenCall(self._calls)
                self._calls += 1
            rest = self._call.read(self._rest, deltas, last=last)
            self._rest = self._call.unread if rest is None else rest
            if rest is None:
                return deltas
            self._take(self._call)

    def _read_text(self, deltas: list[Delta], *, last: bool) -> bool:
        """Passes text on, up to the next call; True when one begins."""
        if self._behind_call:
            self._rest = self._rest.lstrip()
        at = self._rest.find(OPEN) if self._enabled else -1
        if at >= 0:
            text, self._rest = self._rest[:at].rstrip(), self._rest[at + len(OPEN) :]
        elif last or not self._enabled:
            text, self._rest = self._rest, ""
        else:
            text = self._rest[: len(self._rest) - _overlap(self._rest)].rstrip()
            self._rest = self._rest[len(text) :]
        if text:
            text = "\n" + text if self._behind_call and self.text else text
            self._behind_call = False
            self.text += text
            deltas.append(TextDelta(text))
        return at >= 0

    def _take(self, call: _OpenCall) -> None:
        """Closes a call."""
        assert call.result is not None
        if isinstance(call.result, ToolCall):
            self.tool_calls.append(call.result)
        else:
            self.invalid_tool_calls.append(call.result)
        self._call, self._behind_call = None, True


class _OpenCall:
    """One call, from behind ``<tool_call>`` on."""

    def __init__(self, index: int) -> None:
        self.unread = ""
        self.result: ToolCall | InvalidToolCall | None = None
        self._index = index
        self._id = new_id()
        self._name: str | None = None  # once known, the arguments are streamed
        self._arguments = ""
        self._scan = _ArgumentsScan()

    def read(self, text: str, deltas: list[Delta], *, last: bool) -> str | None:
        """Takes all that is unread.

        Returns:
            What follows the call, once it is over; None before, with what to begin with next in ``unread``.
        """
        if self._name is None and (head := _HEAD.match(text)) and (name := _string(head[1])) is not None:
            self._name = name
            deltas.append(ToolCallDelta(self._index, self._id, name, ""))
            text = text[head.end() :]
        if self._name is None:
            rest = self._read_whole(text, deltas, last=last)
        else:
            rest = self._read_arguments(text, deltas, last=last)
        return rest

    def _read_whole(self, text: str, deltas: list[Delta], *, last: bool) -> str | None:
        """Another layout: read when the closing tag is there, or the answer's end."""
        end = _TAG_OUTSIDE_STRINGS.match(text)
        if end is None and not last:
            self.unread = text
            return None
        body = text if end is None else text[: end.start("tag")]
        rest = "" if end is None else text[end.start("tag") :]
        try:
            value, behind = load_prefix(body)
        except ValueError as error:
            if end is None:  # a string that is never closed hides the tag that ends the call
                body, tag, tail = body.partition(CLOSE)
                rest = tag + tail
            self.result = InvalidToolCall(self._id, None, body.strip(), f"The call is not JSON: {error}.")
        else:
            self.result = read_call(value, self._id, written=body.strip())
            rest = behind + rest if end is None or end["tag"] == OPEN else rest
        arguments = (
            dump(self.result.arguments) if isinstance(self.result, ToolCall) else self.result.arguments
        )
        deltas.append(ToolCallDelta(self._index, self._id, self.result.name, arguments))
        return rest.removeprefix(CLOSE)

    def _read_arguments(self, text: str, deltas: list[Delta], *, last: bool) -> str | None:
        """The usual layout: arguments are passed on up to where they end or break; then the closing tag."""
        size = self._scan.push(text)
        self._pass_on(text[:size], deltas)
        text = text[size:]
        tag = _TAG.search(text) if self._scan.ended or self._scan.broken else None
        if tag is None and not last:
            self.unread = text
            return None
        closed = tag is not None and tag[0] == CLOSE
        if self._scan.ended:
            # Between the arguments and a missing closing tag stands the call's own bracket, then text.
            rest = text[tag.end() :] if tag and closed else text.lstrip().removeprefix("}")
        else:
            upto = tag.start() if tag else len(text)
            self._pass_on(text[:upto], deltas)
            rest = text[upto:].removeprefix(CLOSE)
        self.result = self._finished()
        return rest

    def _pass_on(self, text: str, deltas: list[Delta]) -> None:
        if text:
            self._arguments += text
            deltas.append(ToolCallDelta(self._index, None, None, text))

    def _finished(self) -> ToolCall | InvalidToolCall:
        assert self._name is not None
        if not self._scan.ended and not self._scan.broken:
            error = "The answer ends within the call's arguments."
            return InvalidToolCall(self._id, self._name, self._arguments, error)
        return check_call(self._id, self._name, self._arguments, written=self._arguments)


class _ArgumentsScan:
    """Finds the end of a JSON object that comes in pieces, or the place from which on it cannot be JSON.

    Attributes:
        ended: Whether the object's last bracket was seen.
        broken: Whether a ``<`` was seen outside of strings. JSON has none there, but a tag begins with one.
    """

    # Only these characters change the state; all others are skipped.
    _NEXT = re.compile(r'[{}\[\]"<]')
    _NEXT_IN_STRING = re.compile(r'["\\]')

    def __init__(self) -> None:
        self.ended = self.broken = False
        # What the next piece begins in: pieces may be cut anywhere, also inside a string or an escape.
        self._depth = 0  # brackets that are open
        self._in_string = False
        self._escaped = False  # a backslash was the last character

    def push(self, text: str) -> int:
        """Takes the next piece; returns how many of its characters belong to the object."""
        at = 0
        while at < len(text) and not (self.ended or self.broken):
            if self._escaped:
                # What follows a backslash means nothing here: above all, a quote does not end the string.
                self._escaped, at = False, at + 1
                continue
            found = (self._NEXT_IN_STRING if self._in_string else self._NEXT).search(text, at)
            if found is None:
                return len(text)  # the object goes on in the next piece
            # A bracket or a quote belongs to the object; the `<` of a tag does not.
            at = found.end() - (found[0] == "<")
            self._see(found[0])
        return at

    def _see(self, character: str) -> None:
        """Follows one of the characters that change the state."""
        if character == "\\":
            self._escaped = True  # only found inside strings
        elif character == '"':
            self._in_string = not self._in_string
        elif character == "<":
            self.broken = True
        else:
            # Which bracket it is does not matter: where they do not match, reading the JSON fails later.
            self._depth += 1 if character in "{[" else -1
            self.ended = self._depth == 0


def _string(literal: str) -> str | None:
    """The value of a JSON string; None where it is not one."""
    try:
        value = load_prefix(literal)[0]
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _overlap(text: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of a call."""
    return max((size for size in range(1, len(OPEN)) if text.endswith(OPEN[:size])), default=0)
