"""What tests of the command line share."""

from collections.abc import Callable
from typing import TypeAlias

Sgl: TypeAlias = Callable[..., tuple[int, str, str]]
"""Runs a command line -> exit code, stdout, stderr: the fixture ``sgl``."""
