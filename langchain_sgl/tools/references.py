"""Names of pictures -> pictures: what an agent may point at, and nothing else."""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_engine.errors import ConfigError, CorruptImageError, MissingImageError, UnsafePathError
from sgl_engine.prompt.signatures import mime_type_of
from sgl_engine.prompt.sources import decode_base64, describe_source, shorten

if TYPE_CHECKING:
    from langchain_sgl.tools.picture_store import PictureStore
    from sgl_engine.request import ImageSource

_MAX_NAME_CHARACTERS = 512  # longer references are no ids and no paths
_MAX_URL_CHARACTERS = 4096
_MIN_BASE64_CHARACTERS = 40  # below that it is a name: no picture is so small
_MAX_LISTED = 1000  # looked through for a near name; a folder of millions must not stall an error
_MAX_SHOWN = 8


def resolve_picture(
    reference: str, *, root: Path | None = None, store: PictureStore | None = None
) -> ImageSource:
    """What a reference means; the first of these that applies.

    1. An id in ``store``: the caller's own names win over everything else.
    2. A ``https:`` or ``http:`` URL, which the engine fetches under its URL policy, or a ``data:`` URL.
    3. Bare base64, recognised by the picture that it decodes to.
    4. A file under ``root``.

    Args:
        reference: As an agent wrote it; space around it does not count.
        root: The only folder that files are read from; None allows none.
        store: Pictures by id.

    Raises:
        MissingImageError: It is none of these; the error says what is accepted, and names near ids and files.
        UnsafePathError: It is a path that leads out of ``root``.
        ConfigError: ``root`` is not a folder.
    """
    reference = reference.strip()
    is_name = 0 < len(reference) <= _MAX_NAME_CHARACTERS
    if store is not None and is_name:
        picture = store.get(reference)
        if picture is not None:
            return picture
    if reference.lower().startswith(("https://", "http://", "data:")):
        return reference
    data = _decode(reference)
    if data is not None:
        return data
    path = _find_under(root, reference) if root is not None and is_name else None
    if path is None:
        raise _unknown(reference, root, store)
    return path


def describe_reference(reference: str) -> str:
    """The reference as it may be kept: data is named by its length and hash, and not repeated."""
    reference = reference.strip()
    is_data = reference[:5].lower() == "data:" or _decode(reference) is not None
    if not is_data and len(reference) <= _MAX_URL_CHARACTERS:
        return reference
    digest = hashlib.sha256(reference.encode(errors="replace")).hexdigest()[:12]
    return f"<{len(reference)} characters of data, sha256 {digest}>"


def resolve_under(root: Path, name: str) -> Path:
    """The file that ``name`` means, if it lies under ``root``.

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
    path = _find_under(root, name)
    if path is None:
        near = _near(name, _file_names(root))
        raise MissingImageError(
            f"The picture folder {_label(root)!r} holds no file {describe_source(name)!r}.",
            remedy=f"Near that name: {near}."
            if near
            else "Check the name, which is relative to that folder.",
        )
    return path


def _decode(text: str) -> bytes | None:
    """The picture that bare base64 holds, line breaks allowed; None where it is anything else."""
    if len(text) < _MIN_BASE64_CHARACTERS:
        return None
    try:
        data = decode_base64(text)
    except CorruptImageError:
        return None
    return data if mime_type_of(data) else None


def _find_under(root: Path, name: str) -> Path | None:
    """The regular file, or None where there is none inside the folder.

    Raises:
        UnsafePathError: The path leads out of the folder.
        ConfigError: ``root`` is not a folder.
    """
    folder = _resolve_folder(root)
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder)
        found = inside and path.is_file()
    except (OSError, RuntimeError, ValueError):  # ValueError: a null byte; RuntimeError: as below
        return None
    if not inside:
        raise UnsafePathError(
            f"The path {describe_source(name)!r} leads out of the picture folder {_label(root)!r}.",
            remedy="Name a file inside it, relative to it.",
        )
    return path if found else None


def _resolve_folder(root: Path) -> Path:
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


def _label(root: Path) -> str:
    """The folder's own name: messages reach agents, whom the rest of the path does not concern."""
    return root.resolve().name


def _file_names(root: Path) -> list[str]:
    return [entry.name for entry in itertools.islice(root.iterdir(), _MAX_LISTED) if entry.is_file()]


def _near(name: str, known: Iterable[str]) -> str:
    """The known names that are most like ``name``, quoted; may be empty."""
    return ", ".join(map(repr, difflib.get_close_matches(shorten(name), known, n=3, cutoff=0.5)))


def _unknown(reference: str, root: Path | None, store: PictureStore | None) -> MissingImageError:
    ids = [] if store is None else list(itertools.islice(store.ids(), _MAX_LISTED))
    near = _near(reference, [*ids, *(_file_names(root) if root is not None else ())])
    accepted = ["an https URL", "base64 data"]
    if root is not None:
        accepted.insert(0, f"a file name in the folder {_label(root)!r}")
    if store is not None:
        known = ", ".join(map(repr, ids[:_MAX_SHOWN])) + (", ..." if len(ids) > _MAX_SHOWN else "")
        accepted.insert(0, f"an id of the picture store (it holds {known or 'nothing'})")
    return MissingImageError(
        f"There is no picture {describe_source(reference)!r}.",
        remedy=f"{f'Near that name: {near}. ' if near else ''}Accepted: {', '.join(accepted)}."
        f"{'' if root is not None else ' Local files are not read here.'}",
    )
