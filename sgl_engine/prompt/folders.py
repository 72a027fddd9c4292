"""Which files of a folder are pictures, told by their names or by how they begin; and whose folder ~ is."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from sgl_engine.errors import ConfigError
from sgl_engine.prompt.signatures import mime_type_of

_SUFFIXES = frozenset(".pdf .heic .heif .avif .jp2 .j2k .webp .qoi".split())
"""Names of pictures that ``mimetypes`` does not know everywhere."""
_HEADER_BYTES = 512


def at_home(path: str) -> Path:
    """A path of which ~ is somebody's home.

    Raises:
        ConfigError: It is nobody's.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{path} is in nobody's home.", remedy="Name another, or write ./ before it."
        ) from None


def pictures_in(folder: Path) -> tuple[list[Path], list[OSError]]:
    """Finds the pictures in a folder and in those below it; files that are none are passed over.

    Returns:
        Their paths, which begin with ``folder``, sorted; and folders that cannot be read.
    """
    failures: list[OSError] = []
    paths = [Path(at, file) for at, _, files in os.walk(folder, onerror=failures.append) for file in files]
    return [path for path in sorted(paths) if _is_picture(path)], failures


def _is_picture(path: Path) -> bool:
    """Whether a file is called a picture, or begins as one."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind.startswith("image/") or path.suffix.lower() in _SUFFIXES:
        return True
    try:
        if not path.is_file():  # opening a pipe would wait for whoever writes to it
            return False
        with path.open("rb") as file:
            return mime_type_of(file.read(_HEADER_BYTES)) is not None
    except OSError:
        return False
