"""Names of pictures -> pictures: what an agent may point at, and nothing else."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_sgl.chat.local_files import file_names, find_under, folder_label, near_names
from sgl_engine import CorruptImageError, MissingImageError
from sgl_engine.prompt import decode_base64, describe_source, mime_type_of

if TYPE_CHECKING:
    from langchain_sgl.tools.picture_store import PictureStore
    from sgl_engine import ImageSource

_MAX_NAME_CHARACTERS = 512  # longer references are no ids and no paths
_MAX_URL_CHARACTERS = 4096
_MIN_BASE64_CHARACTERS = 40  # below that it is a name: no picture is so small
_MAX_LISTED = 1000  # ids looked through for a near one: a store of millions must not stall an error
_MAX_SHOWN = 8


def resolve_picture(
    reference: str, *, root: Path | None = None, store: PictureStore | None = None
) -> ImageSource:
    """Finds the picture that a reference means; the first of these that applies.

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
    path = find_under(root, reference) if root is not None and is_name else None
    if path is None:
        raise _unknown(reference, root, store)
    return path


def describe_reference(reference: str) -> str:
    """Writes a reference so that it can be kept: data is named by its length and hash, and not repeated."""
    reference = reference.strip()
    is_data = reference[:5].lower() == "data:" or _decode(reference) is not None
    if not is_data and len(reference) <= _MAX_URL_CHARACTERS:
        return reference
    digest = hashlib.sha256(reference.encode(errors="replace")).hexdigest()[:12]
    return f"<{len(reference)} characters of data, sha256 {digest}>"


def _decode(text: str) -> bytes | None:
    """Decodes bare base64 of a picture, line breaks allowed; None where the text is anything else."""
    if len(text) < _MIN_BASE64_CHARACTERS:
        return None
    try:
        data = decode_base64(text)
    except CorruptImageError:
        return None
    return data if mime_type_of(data) else None


def _unknown(reference: str, root: Path | None, store: PictureStore | None) -> MissingImageError:
    """Builds an error from which an agent learns what is accepted here, and which names are near."""
    ids = [] if store is None else list(itertools.islice(store.ids(), _MAX_LISTED))
    near = near_names(reference, [*ids, *(file_names(root) if root is not None else ())])
    accepted = ["an https URL", "base64 data"]
    if root is not None:
        accepted.insert(0, f"a file name in the folder {folder_label(root)!r}")
    if store is not None:
        known = ", ".join(map(repr, ids[:_MAX_SHOWN])) + (", ..." if len(ids) > _MAX_SHOWN else "")
        accepted.insert(0, f"an id of the picture store (it holds {known or 'nothing'})")
    return MissingImageError(
        f"There is no picture {describe_source(reference)!r}.",
        remedy=f"{f'Near that name: {near}. ' if near else ''}Accepted: {', '.join(accepted)}."
        f"{'' if root is not None else ' Local files are not read here.'}",
    )
