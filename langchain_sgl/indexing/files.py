"""Folders, paths and blobs -> pictures that are there and intact, one at a time."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from langchain_core.document_loaders import BlobLoader
from langchain_core.documents.base import Blob

from langchain_sgl.indexing.blobs import PictureSource, as_blob, is_named_picture, is_picture
from sgl_engine import ConfigError, CorruptImageError, ImageLimitError, LimitsConfig
from sgl_engine.prompt import mime_type_of, sniff

_SUFFIXES = frozenset(".pdf .heic .heif .avif .jp2 .j2k .jxl .webp .qoi".split())
"""Names of pictures that ``mimetypes`` does not know everywhere."""
_SHORT_MARKS = frozenset(("BMP", "PPM"))
"""Formats whose mark is two characters, so that a text may begin with it."""
_HEADER_BYTES = 512


@dataclass(frozen=True)
class PictureFailure:
    """A picture that could not be used.

    Attributes:
        source: Its path or id, as it stands in metadata; or a folder that cannot be read.
        error: Why not.
        page: Of a file of several pages, counted from 0; None where the whole file is meant.
    """

    source: str
    error: Exception
    page: int | None = None


@dataclass(frozen=True)
class PictureInfo:
    """What a picture's bytes say.

    Attributes:
        mime_type: From the bytes, whatever its name says.
        width: Pixels, upright.
        height: Pixels, upright.
    """

    mime_type: str
    width: int
    height: int


@dataclass(frozen=True)
class FoundPictures:
    """Files and blobs that may be pictures; only their names were looked at so far.

    Attributes:
        blobs: In order.
        total: How many, where that is known.
        in_folder: Whether they were found in a folder, and not named one by one.
        unreadable: Folders that cannot be listed.
    """

    blobs: Iterable[Blob]
    total: int | None = None
    in_folder: bool = False
    unreadable: tuple[PictureFailure, ...] = ()


def find_pictures(
    source: PictureSource | BlobLoader | Iterable[PictureSource],
    *,
    glob: str,
    follow_symlinks: bool,
    relative_to: Path | None,
) -> FoundPictures:
    """Lists the files of a folder that ``glob`` matches, sorted, hidden ones left out; or what was given.

    Args:
        source: A folder or file, a blob, a picture, a blob loader, or any number of these but folders.
        glob: As in ``Path.glob``, relative to the folder: "**/*", "*.png", "2026/**/*.jpg".
        follow_symlinks: Whether links within the folder are followed; a folder is visited once.
        relative_to: For the names of unreadable folders, see ``source_of``.

    Raises:
        ConfigError: The folder or file does not exist, or it is something else.
    """
    if isinstance(source, BlobLoader):
        return FoundPictures(source.yield_blobs())
    if isinstance(source, Blob) or is_picture(source) or is_named_picture(source):
        return FoundPictures([as_blob(source)], total=1)
    if isinstance(source, Iterable) and not isinstance(source, str | PurePath):
        return FoundPictures(map(as_blob, source), len(source) if isinstance(source, Sized) else None)
    path = Path(as_blob(source).path or "")  # what is no path raises
    if path.is_file():
        return FoundPictures([as_blob(path)], total=1)
    if not path.is_dir():
        raise ConfigError(f"There is no picture file or folder {str(path)!r}.", remedy="Check the path.")
    unreadable: list[PictureFailure] = []

    def report(error: OSError) -> None:
        unreadable.append(PictureFailure(_path_source(error.filename, relative_to), error))

    patterns = PurePath(glob).parts
    files = [
        as_blob(file)
        for file in _walk(path, follow_symlinks=follow_symlinks, onerror=report)
        if _matches(file.relative_to(path).parts, patterns)
    ]
    return FoundPictures(files, len(files), in_folder=True, unreadable=tuple(unreadable))


def source_of(blob: Blob, relative_to: Path | None) -> str:
    """Names a picture for metadata: its absolute path, or one relative to a folder; without a path, its id.

    Raises:
        ConfigError: A blob has neither path nor source, or lies outside ``relative_to``.
    """
    if blob.metadata.get("source") or blob.path is None:
        if not blob.source:
            raise ConfigError(
                "A blob has neither a path nor a source.", remedy='Give it metadata={"source": "<its id>"}.'
            )
        return str(blob.source)
    return _path_source(blob.path, relative_to)


def read_picture(blob: Blob, limits: LimitsConfig) -> bytes:
    """Reads the picture's bytes, at most ``limits.max_image_bytes`` of them.

    Raises:
        MissingImageError: The file is gone, cannot be read, or is no regular file.
        ImageLimitError: It is too large; such a file is not read at all.
        CorruptImageError: It is empty.
    """
    from sgl_engine.prompt import read_file

    data = read_file(Path(blob.path), limits) if blob.data is None and blob.path else blob.as_bytes()
    if len(data) > limits.max_image_bytes:
        raise ImageLimitError(
            f"The picture has more than the {limits.max_image_bytes} bytes that are allowed.",
            remedy="Scale it down, or raise LimitsConfig.max_image_bytes.",
        )
    if not data:
        raise CorruptImageError("The picture has 0 bytes.", remedy="Restore it, or leave it out.")
    return data


def content_hash(data: bytes) -> str:
    """Computes SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def inspect_picture(data: bytes, limits: LimitsConfig) -> PictureInfo:
    """Decodes the whole picture: a damaged one is found here, before it costs a call of a model.

    Raises:
        ImageError: It is corrupt, in an unknown format, or too large.
    """
    from PIL import Image

    from sgl_engine.prompt import load_image, open_picture

    width, height = load_image(data, limits).size
    with open_picture(data, limits, "The picture") as header:
        assert header.format is not None, "it was opened from bytes"
        return PictureInfo(Image.MIME[header.format], width, height)


def is_meant(blob: Blob, data: bytes | None) -> bool:
    """Tells whether something that cannot be used was meant as a picture, so that it has to be named.

    A file of a folder was, if it is called one, or begins like one, or if nobody can tell.

    Args:
        blob: Where it is.
        data: Its bytes, where they could be read.
    """
    if blob.path is None or blob.data is not None:
        return True
    path = Path(blob.path)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind.startswith("image/") or path.suffix.lower() in _SUFFIXES:
        return True
    begins = data if data is not None else _first_bytes(path)
    return begins is None or (sniff(begins) not in _SHORT_MARKS and mime_type_of(begins) is not None)


def _first_bytes(path: Path) -> bytes | None:
    """Reads how a file begins: None where that fails, nothing where it is no regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(_HEADER_BYTES)
    except OSError:
        return None


def _path_source(path: str | PurePath, relative_to: Path | None) -> str:
    """Names a path for metadata, links not followed, in text that JSON and databases take."""
    absolute = os.path.abspath(path)  # noqa: PTH100  # Path.resolve would follow links
    try:
        if relative_to is not None:
            folder = os.path.abspath(relative_to)  # noqa: PTH100
            absolute = PurePath(absolute).relative_to(folder).as_posix()
    except ValueError:
        raise ConfigError(
            f"The picture {absolute!r} does not lie in {folder!r}, which its source is to be relative to.",
            remedy="Give another relative_to, or None for absolute paths.",
        ) from None
    # A file name may hold bytes that are no text; metadata may not.
    return os.fsencode(absolute).decode("utf-8", "backslashreplace")


def _walk(folder: Path, *, follow_symlinks: bool, onerror: Callable[[OSError], None]) -> Iterator[Path]:
    """Yields every file, folder by folder, both sorted by name; what begins with a dot is left out."""
    visited: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, onerror=onerror, followlinks=follow_symlinks):
        try:
            status = os.stat(name)  # noqa: PTH116
        except OSError as error:  # gone since it was listed
            onerror(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in visited:  # a link in a circle
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        # os.walk visits what is left in this very list, in its order.
        folders[:] = sorted(child for child in folders if not child.startswith("."))
        for file in sorted(files):
            path = Path(name, file)
            if not file.startswith(".") and (follow_symlinks or not path.is_symlink()):
                yield path


def _matches(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Compares a path with a glob, part by part; "**" stands for any number of parts, none included."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_matches(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
