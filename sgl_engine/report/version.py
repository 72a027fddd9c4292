"""Which version of this package made a report."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def engine_version() -> str:
    """Returns the installed version of this package."""
    try:
        return importlib.metadata.version("langchain-sgl")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "0+uninstalled"
