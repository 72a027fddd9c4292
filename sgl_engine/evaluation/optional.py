"""Libraries that only evaluation and calibration need; loaded on first use."""

from __future__ import annotations

import importlib
from typing import Any

from sgl_engine import ConfigError


def extra(module: str, name: str = "evaluation") -> Any:
    """Imports a module that the extra ``name`` installs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed.",
            remedy=f"Install it, in a checkout of langchain-sgl: pip install '.[{name}]'",
        ) from error


def check_extra(*modules: str) -> None:
    """Imports what will be needed, before hours are spent on what it is needed for.

    Raises:
        ConfigError: One of them is not installed.
    """
    for module in modules:
        extra(module)
