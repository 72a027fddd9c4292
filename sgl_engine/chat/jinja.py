"""Chat templates, run as transformers runs them, on text of the caller that is disguised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sgl_engine.chat.caller_text import CallerText, write_json
from sgl_engine.errors import InvalidRequestError

_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Variables that no argument of the caller's can set."""


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

    tree = _compile(source).environment.parse(source)
    data = {node.data for node in tree.find_all(nodes.TemplateData)}
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(data | constants))


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

    # transformers' own renderer takes every string apart to its base class, so only its environment is used.
    compiled = chat_template_utils._compile_jinja_template(source)  # noqa: SLF001  # no public way
    environment = compiled.environment.overlay()
    environment.concat = _join
    environment.code_generator_class = Generator
    environment.filters = {**environment.filters, "tojson": write_json(environment.filters["tojson"])}
    return environment.from_string(source)


def _join(parts: Iterable[str]) -> str:
    """``"".join``, except that what holds text of the caller's goes on answering as such."""
    parts = list(parts)
    joined = "".join(parts)
    disguised = next((part for part in parts if isinstance(part, CallerText)), None)
    return joined if disguised is None else CallerText(joined, disguised.disguise)
