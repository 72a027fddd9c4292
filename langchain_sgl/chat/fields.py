"""What fields of settings and calls are made of: environment variables, names of torch, unknown ones."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from langchain_core.utils import from_env
from pydantic import BeforeValidator

UnknownOptions: TypeAlias = Literal["refuse", "warn", "ignore"]


def environment(name: str) -> Callable[[], str | None]:
    """Returns a function that reads a variable; an empty one, as container set-ups have them, is none."""
    read = from_env(name, default=None)
    return lambda: read() or None


def _torch_name(value: Any) -> Any:
    """Writes a ``torch.dtype`` or ``torch.device`` as text, without importing torch."""
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value


def send_config(value: Any) -> Any:
    """Writes a mode as the configuration with it."""
    return {"mode": value} if isinstance(value, str) else value


TorchName: TypeAlias = Annotated[Any, BeforeValidator(_torch_name)]


def without_unknown(
    options: Mapping[str, Any], known: Container[str], policy: UnknownOptions | None
) -> dict[str, Any]:
    """Leaves out options that do not exist, where ``unknown_options`` says so."""
    if policy not in {"warn", "ignore"}:
        return dict(options)
    unknown = [name for name in options if name not in known]
    if unknown and policy == "warn":
        warnings.warn(
            f"ChatSGL has no option {', '.join(map(repr, unknown))}, and answers without.", stacklevel=2
        )
    return {name: value for name, value in options.items() if name not in unknown}


def with_attributes_of(described: type, *owners: type) -> str:
    """Writes a class's docstring, with the attributes that the docstrings of other classes describe."""
    sections = [
        (inspect.getdoc(owner) or "").partition("Attributes:\n")[2].partition("\n\n")[0] for owner in owners
    ]
    return f"{inspect.getdoc(described)}\n\nAttributes:\n" + "\n".join(filter(None, sections))
