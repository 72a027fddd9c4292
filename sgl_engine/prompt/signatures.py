"""What a file is, told by its first bytes. Pure, and without Pillow."""

from __future__ import annotations

import re

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "PSD"),
    (b"\0\0\1\0", "ICO"),
    (b"icns", "ICNS"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"%!PS", "PostScript"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"gimp xcf", "XCF"),
    (b"SIMPLE  =", "FITS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska)"),
    (b"PK\3\4", "a ZIP or office file"),
    (b"\x1f\x8b", "a gzip file"),
)
_BRANDS = {"avif": "AVIF", "avis": "AVIF", "crx ": "CR3"} | dict.fromkeys(
    "heic heix hevc hevx heim heis mif1 msf1".split(), "HEIF"
)
_MIME_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "JPEG2000": "image/jp2",
    "HEIF": "image/heif",
    "PDF": "application/pdf",
    "ICO": "image/vnd.microsoft.icon",
    "QOI": "image/qoi",
}
_PORTABLE = dict(zip(b"123456", ("bitmap", "graymap", "pixmap") * 2, strict=True))


def sniff(data: bytes) -> str | None:
    """What a file says that it is: a format by Pillow's name, or another; None if it says nothing."""
    for start, kind in _STARTS:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "a video (AVI)"}.get(data[8:12])
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12].decode("latin-1"), "a video (MP4)")
    return "PPM" if re.match(rb"P[1-6]\s", data) else _sniff_markup(data)


def _sniff_markup(data: bytes) -> str | None:
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    return "SVG" if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text) else None


def mime_type_of(data: bytes) -> str | None:
    """MIME type of a picture by its first bytes; None where it is no picture that the engine can read."""
    kind = sniff(data)
    if kind == "PPM":
        return f"image/x-portable-{_PORTABLE[data[1]]}"
    return _MIME_TYPES.get(kind or "")
