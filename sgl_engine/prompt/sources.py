"""How pictures are named in text: every source cleaned for messages, and base64 read as it is found. Pure.

Errors go to agents, logs and traces. None of them may hold a password, a signature, somebody's folder names,
or 80,000 characters of a picture: whatever names a source in a message comes from ``describe_source``.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import PurePath
from urllib.parse import unquote_to_bytes

from sgl_engine.errors import CorruptImageError

_MOST = 80  # characters of a source in a message
_BASE64_FROM = 200  # characters without any other mark: no file is called that
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=%\s-]+")
_URL_SAFE = str.maketrans("-_", "+/")


def describe_source(source: object) -> str:
    """What stands for a picture's source in a message: at most 80 characters, and nothing that is secret.

    Of a URL, scheme, host, port and the last part of its path are left: user names, passwords, folders (which
    hold tokens at some services), query and fragment are not. Of an absolute path the file's name is left; a
    relative one stays. Of data only its length is told.
    """
    if isinstance(source, PurePath):
        text = str(source)
        return _name(text) if source.is_absolute() else shorten(text)
    if not isinstance(source, str):
        return f"a source of type {type(source).__name__}"
    text = source.strip()
    scheme = _SCHEME.match(text)
    if scheme is not None and len(scheme[0]) > 1:  # one letter is a drive
        return _url(scheme[0], text[scheme.end() + 1 :])
    if len(text) >= _BASE64_FROM and _BASE64.fullmatch(text):
        return f"{len(text)} characters of base64"
    text = re.split(r"[?#]", text, maxsplit=1)[0]  # a URL may have lost its scheme
    if text[:1] in ("/", "\\", "~") or text[1:2] == ":":
        return _name(text)
    return shorten(text.rpartition("@")[2])


def _url(scheme: str, rest: str) -> str:
    if scheme.lower() == "data":
        kind = re.match(r"[\w.+-]{1,40}/[\w.+-]{1,40}(?=[;,])", rest)
        return f"data:{kind[0] if kind else ''}, {len(rest)} characters"
    if scheme.lower() == "file":
        return f"file:{_name(re.split(r'[?#]', rest, maxsplit=1)[0])}"
    if not rest.startswith(("//", "\\\\")):
        return shorten(f"{scheme}:... of {len(rest)} characters")
    address, *path = re.split(r"[/\\]", re.split(r"[?#]", rest[2:], maxsplit=1)[0])
    folders = "/..." if len(path) > 1 else ""
    last = f"/{shorten(path[-1], 32)}" if path else ""
    return f"{shorten(scheme, 10)}://{shorten(address.rpartition('@')[2], 28)}{folders}{last}"


def _name(path: str) -> str:
    """The last part of a path, as either system writes it."""
    return shorten(re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "/")


def shorten(text: str, most: int = _MOST) -> str:
    """At most so many characters of it, for messages."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def decode_base64(text: str) -> bytes:
    """Reads base64 as it is found in the wild.

    Line breaks and spaces, the URL-safe alphabet, percent-encoding and missing padding are all read. Any
    other character is refused, and a length that no bytes have.

    Raises:
        CorruptImageError: It is no base64.
    """
    characters = len(text)
    if "%" in text:
        text = unquote_to_bytes(text).decode("latin-1")
    text = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptImageError(
            f"{characters} characters are not base64 ({error}).",
            remedy="Encode the file with base64.b64encode(data).decode().",
        ) from None


def decode_data_url(url: str) -> bytes:
    """The bytes of a ``data:`` URL, its payload read by ``decode_base64``.

    Raises:
        CorruptImageError: It holds no base64.
    """
    header, comma, payload = url.strip()[len("data:") :].partition(",")
    if not comma or "base64" not in (part.strip().lower() for part in header.split(";")[1:]):
        raise CorruptImageError(
            f"A URL ({describe_source(url)}) holds no base64 data.",
            remedy="Write it as data:image/png;base64,...",
        )
    return decode_base64(payload)
