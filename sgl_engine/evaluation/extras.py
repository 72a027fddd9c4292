"""Libraries that only evaluation needs; loaded on first use."""

from __future__ import annotations

import importlib
from typing import Any

from sgl_engine.errors import ConfigError


def extra(module: str) -> Any:
    """A module of the extra ``evaluation``.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed.", remedy='Install it: pip install "langchain-sgl[evaluation]".'
        ) from error
