"""Libraries that only making and checking a calibration needs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from sgl_engine.errors import ConfigError


def check_extra(*, figures: bool) -> None:
    """Imports what will be needed, before hours are spent on what it is needed for.

    Args:
        figures: Whether any are to be drawn.

    Raises:
        ConfigError: A library is not installed.
    """
    with evaluation_extra():
        for module in ("scipy.stats", "sklearn.isotonic", *(["matplotlib.figure"] if figures else [])):
            importlib.import_module(module)


@contextmanager
def evaluation_extra() -> Iterator[None]:
    """Imports inside say what to install where something is missing.

    Raises:
        ConfigError: A library is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"Calibrating needs {error.name or error}, which is not installed.",
            remedy='Run: pip install "langchain-sgl[evaluation]"',
        ) from error
