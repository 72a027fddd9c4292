"""Picture files that a message or an agent names: read from one folder, and from nowhere else."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path

from sgl_engine import ConfigError, MissingImageError, UnsafePathError
from sgl_engine.prompt import describe_source, shorten

_MAX_LISTED = 1000  # looked through for a near name: a folder of millions must not stall an error


def resolve_under(root: Path, name: str) -> Path:
    """Finds the file that ``name`` means, if it lies under ``root``.

    Symbolic links are followed first, on both sides, so neither ``..`` nor a link leads out. What is outside
    the folder is not looked at: whether a file exists there cannot be told from the error.

    Args:
        root: The only folder that may be read.
        name: Path relative to it; an absolute path is accepted where it lies under ``root``. ``~`` and
            environment variables mean nothing.

    Returns:
        Absolute path of a regular file, free of links.

    Raises:
        UnsafePathError: The path leads out of the folder.
        MissingImageError: There is no such file; the error names near ones.
        ConfigError: ``root`` is not a folder.
    """
    path = find_under(root, name)
    if path is None:
        near = near_names(name, file_names(root))
        raise MissingImageError(
            f"The picture folder {folder_label(root)!r} holds no file {describe_source(name)!r}.",
            remedy=f"Near that name: {near}."
            if near
            else "Check the name, which is relative to that folder.",
        )
    return path


def find_under(root: Path, name: str) -> Path | None:
    """Finds a regular file inside the folder; None where there is none. ``resolve_under`` with another end.

    Raises:
        UnsafePathError: The path leads out of the folder.
        ConfigError: ``root`` is not a folder.
    """
    folder = resolve_folder(root)
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder)
        found = inside and path.is_file()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle; ValueError: a null byte
        return None
    # Refused whether or not a file is there, so that nobody can ask what exists outside.
    if not inside:
        raise UnsafePathError(
            f"The path {describe_source(name)!r} leads out of the picture folder {folder_label(root)!r}.",
            remedy="Name a file inside it, relative to it.",
        )
    return path if found else None


def resolve_folder(root: Path) -> Path:
    """Follows the links of a picture folder.

    Raises:
        ConfigError: It does not exist, or is not a folder.
    """
    try:
        folder = root.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        folder = root
    if not folder.is_dir():
        raise ConfigError(
            f"The picture folder {str(root)!r} does not exist or is not a folder.",
            remedy="Name an existing folder.",
        )
    return folder


def folder_label(root: Path) -> str:
    """Names a folder without the way to it, for error messages: agents read them, and need not know it."""
    return root.resolve().name


def file_names(root: Path) -> list[str]:
    """Lists files that lie in the folder itself, at most the first thousand entries, for error messages."""
    return [entry.name for entry in itertools.islice(root.iterdir(), _MAX_LISTED) if entry.is_file()]


def near_names(name: str, known: Iterable[str]) -> str:
    """Picks the known names that are most like ``name``, quoted, with commas; empty where none is like it."""
    return ", ".join(map(repr, difflib.get_close_matches(shorten(name), known, n=3, cutoff=0.5)))
