"""What an indexer was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from langchain_sgl.indexing.documents import Report
from langchain_sgl.indexing.files import PictureFailure
from langchain_sgl.indexing.progress import IndexProgress
from sgl_engine import ConfigError, LimitsConfig


@dataclass(frozen=True)
class IndexOptions:
    """What an indexer was asked for; ``SGLImageIndexer`` describes each field.

    Raises:
        ConfigError: There is nothing to ask, a number below 1, or a choice that does not exist.
    """

    prompt: str
    pages: Literal["all", "first"]
    max_pages: int
    relative_to: Path | None
    limits: LimitsConfig
    unchanged: Literal["yield", "skip"]
    failed: Literal["skip", "document", "raise"]
    incomplete: Literal["raise", "allow"]
    report: Report
    batch_size: int
    on_error: Callable[[PictureFailure], None] | None
    on_progress: Callable[[IndexProgress], None] | None
    show_progress: bool

    def __post_init__(self) -> None:
        if not self.prompt.strip() or self.batch_size < 1 or self.max_pages < 1:
            raise ConfigError(
                f"Pictures cannot be indexed with prompt={self.prompt!r}, batch_size={self.batch_size} and "
                f"max_pages={self.max_pages}.",
                remedy="Give a prompt that is not empty, and numbers of at least 1.",
            )
        hints = get_type_hints(type(self))
        for name in ("pages", "unchanged", "failed", "incomplete", "report"):
            value, choices = getattr(self, name), get_args(hints[name])
            if value not in choices:
                raise ConfigError(
                    f"Pictures cannot be indexed with {name}={value!r}.",
                    remedy=f"Use one of {', '.join(map(repr, choices))}.",
                )
