"""Libraries that only making and checking a calibration needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sgl_engine.errors import ConfigError


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
