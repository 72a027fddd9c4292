"""Runs a model's chat template so that it can be stopped.

A template is a program, and comes with the model: one may loop for ever. It runs in a thread of its own, into
which an exception is thrown when nobody waits any more; that ends every loop, as loops are Python's. It does
not end what is one long step inside the interpreter; so the operators whose result can be far larger than
what they are given are bounded (``bound_operators``). Filters and methods that fill up to a width are not.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunningError
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

from sgl_engine.chat.caller_text import CallerText, write_json
from sgl_engine.errors import InvalidRequestError, ProcessorError

MAX_S = 30.0
"""Longest that a template may take: it only ends what would hang."""
MAX_CHARS = 2**25
"""Longest text, or list, that one operator of a template may make."""
_MAX_BITS = 2**16
_LOOK_UP_S = 0.02
_PATIENCE_S = 1.0

Result = TypeVar("Result")


class _Stop(BaseException):
    """Thrown into the thread; no ``except Exception`` of a template's catches it."""


def interruptible(work: Callable[[], Result], still_wanted: Callable[[], None]) -> Result:
    """What ``work`` returns, or raises.

    Args:
        work: Python code.
        still_wanted: Called now and then; what it raises ends the work.

    Raises:
        ProcessorError: It took longer than any template does.
    """
    done: Future[Result] = Future()

    def run() -> None:
        with suppress(_Stop):  # which may come when the work is done already
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001  # is raised where it is waited for
                if not done.done():
                    done.set_exception(error)

    thread = threading.Thread(target=run, name="sgl-template", daemon=True)
    thread.start()
    ends = time.monotonic() + MAX_S
    try:
        while True:
            try:
                return done.result(timeout=_LOOK_UP_S)
            except StillRunningError as error:
                if done.done() and done.exception() is error:  # the work's own error
                    raise
                still_wanted()
                if not done.done():
                    _check_time(ends)
    finally:
        _stop(thread, done)


def _check_time(ends: float) -> None:
    if time.monotonic() > ends:
        raise ProcessorError(
            f"The chat template was not done after {MAX_S:g} s.", remedy="Use a model whose template ends."
        )


def _stop(thread: threading.Thread, done: Future[Result]) -> None:
    """Throws ``_Stop`` into a thread that still works; leaves it behind where that does not end it."""
    ends = time.monotonic() + _PATIENCE_S
    # A thread that is done ends by itself: what is thrown into it then would hit nobody's work.
    while not done.done() and thread.is_alive() and time.monotonic() < ends:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stop))
        thread.join(_LOOK_UP_S)


def bound_operators(environment: Any) -> None:
    """Makes a sandboxed environment refuse operators whose result would be too large.

    Args:
        environment: Of jinja2; for templates that are compiled from now on.
    """
    own = environment.call_binop

    def call(context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return own(context, operator, left, right)

    environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
    environment.call_binop = call


def check_size(size: int) -> None:
    """Refuses a text or list of too many elements.

    Raises:
        ValueError: It is.
    """
    if size > MAX_CHARS:
        raise ValueError(f"it makes a text of {size} characters; {MAX_CHARS} are allowed")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > _MAX_BITS:
            raise ValueError(f"it makes a number of more than {_MAX_BITS} bits")
    elif operator == "%" and isinstance(left, str) and re.search(r"\*|\d{7}", left):
        raise ValueError("it formats something with a width that is too large or unknown")
    elif operator == "*":
        sizes = [operand if isinstance(operand, int) else _size(operand) for operand in (left, right)]
        if not (isinstance(left, int) and isinstance(right, int)):
            check_size(sizes[0] * sizes[1])
        elif left.bit_length() + right.bit_length() > 2 * _MAX_BITS:
            raise ValueError(f"it makes a number of more than {_MAX_BITS} bits")
    elif operator == "+":
        check_size(_size(left) + _size(right))


def _size(value: Any) -> int:
    if isinstance(value, str):
        return str.__len__(value)  # the caller's text may be one that notices what it is asked
    return len(value) if isinstance(value, bytes | list | tuple) else 0


_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})  # only the conversation's


def run_template(source: str, variables: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Renders a template; what was disguised still is, in a plain string.

    Args:
        source: The template.
        variables: ``messages``, ``tools`` and whatever else it is given; strings may be ``CallerText``.
        arguments: The caller's own, which win over ``variables``.

    Raises:
        InvalidRequestError: An argument has the name of a variable that only the conversation can set.
    """
    wrong = sorted(_OURS.intersection(arguments))
    if wrong:
        raise InvalidRequestError(
            f"chat_template_kwargs sets {', '.join(wrong)}, which the conversation sets.",
            remedy="Leave it out; messages and tools are fields of the request.",
        )
    rendered: str = _compile(source).render({"documents": None, **variables, **arguments})
    return rendered.plain if isinstance(rendered, CallerText) else rendered


@lru_cache(maxsize=64)
def literals(source: str) -> str:
    """All text that a template can write by itself, in pieces with a null character in between."""
    from jinja2 import nodes

    tree = parsed(source)
    data = {node.data for node in tree.find_all(nodes.TemplateData)}
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(data | constants))


def parsed(source: str) -> Any:
    """The template's syntax tree."""
    return _compile(source).environment.parse(source)


@lru_cache(maxsize=64)
def _compile(source: str) -> Any:
    """The template in transformers' environment, but that joined text stays ``CallerText``."""
    from jinja2.compiler import CodeGenerator
    from transformers.utils import chat_template_utils

    class Generator(CodeGenerator):
        """Writes ``~`` so that the environment joins its operands."""

        def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802  # jinja2's name
            """``a ~ b``."""
            self.write("environment.concat((")
            for operand in node.nodes:
                self.write("str(")
                self.visit(operand, frame)
                self.write("), ")
            self.write("))")

    # transformers' own renderer takes every string apart, so only its environment is used (no public way). Of
    # an empty template: compiling works out what is constant, and would do so before anything is bounded.
    environment = chat_template_utils._compile_jinja_template("").environment.overlay()  # noqa: SLF001
    environment.concat = _join
    bound_operators(environment)
    environment.code_generator_class = Generator
    environment.filters = {**environment.filters, "tojson": write_json(environment.filters["tojson"])}
    return environment.from_string(source)


def _join(parts: Iterable[str]) -> str:
    """``"".join``, except that what holds text of the caller's goes on answering as such."""
    parts = list(parts)
    check_size(sum(map(str.__len__, parts)))
    disguised = [part for part in parts if isinstance(part, CallerText)]
    # A kind of its own, which watches what becomes of it, counts before the plain one.
    watching = [part for part in disguised if type(part) is not CallerText]
    return (watching or disguised)[0].joined(parts) if disguised else "".join(parts)
