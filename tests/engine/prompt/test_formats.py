"""Which files are read: unsupported is not corrupt, and no page is lost without a word."""

import importlib.util
import io
import struct
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image, features
from pydantic import ValidationError
from samples import noise
from test_images import encoded, png_header

from sgl_engine import LimitsConfig, Request
from sgl_engine.errors import (
    CorruptImageError,
    DeadlineError,
    ImageError,
    ImageLimitError,
    UnsupportedImageError,
)
from sgl_engine.prompt import formats
from sgl_engine.prompt.images import load_image, load_pages, resolve_images
from sgl_engine.prompt.pages import count_pages, open_pages
from sgl_engine.prompt.signatures import mime_type_of, sniff

LIMITS = LimitsConfig()
PAGES = [noise(12, 8, seed=seed) for seed in range(3)]


def paged(kind: str, **options: object) -> bytes:
    """Three pages in one file."""
    return encoded(PAGES[0], kind, save_all=True, append_images=PAGES[1:], **options)


def box(brand: bytes) -> bytes:
    return struct.pack(">I", 24) + b"ftyp" + brand + bytes(12)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_what_pillow_reads_is_read(kind: str) -> None:
    if {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind) and not features.check(
        {"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]
    ):
        pytest.skip(f"this Pillow was built without {kind}")
    data = encoded(noise(32, 16), kind)
    assert sniff(data) == kind
    assert mime_type_of(data)
    assert load_image(data, LIMITS).size == (32, 16)
    others = tuple(name for name in LIMITS.image_formats if name != kind)
    with pytest.raises(UnsupportedImageError, match=f"is {kind}, a format.*add '{kind}' to LimitsConfig"):
        load_image(data, LimitsConfig(image_formats=others))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_a_damaged_avif() -> None:
    head, pixels = encoded(noise(64, 64), "AVIF").split(b"mdat", 1)
    with pytest.raises(CorruptImageError, match="cannot be read as a picture"):
        load_image(head + b"mdat" + bytes(len(pixels)), LIMITS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"8BPS\0\1", "PSD"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"<svg xmlns=", "SVG"),
        (b"<!DOCTYPE html><p>404", r"a web page \(HTML\)"),
        (b"\xff\x0a1234", "JPEG XL"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (box(b"isom"), r"a video \(MP4\)"),
        (b"PK\3\4....", "a ZIP or office file"),
        (b"\0\0\1\0\1\0", "ICO"),
    ],
)
def test_other_formats_are_unsupported_and_named(data: bytes, name: str) -> None:
    with pytest.raises(
        UnsupportedImageError, match=f"The image is {name}, a format that is not read"
    ) as caught:
        load_image(data, LIMITS)
    assert not isinstance(caught.value, CorruptImageError)
    assert "PNG, JPEG" in caught.value.remedy


@pytest.mark.parametrize(
    ("data", "kind", "package"), [(box(b"heic"), "HEIF", "pillow-heif"), (b"%PDF-1.7", "PDF", "pypdfium2")]
)
def test_a_format_of_another_package_names_it(
    data: bytes, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(UnsupportedImageError, match=f"is {kind}, .*Install {package}"):
        load_image(data, LIMITS)


@pytest.mark.parametrize(
    "data", [b"", b"hello", encoded(noise(50, 50))[:200], png_header(8, 8), b"\x89PNG\r\n\x1a\n"]
)
def test_broken_files_are_corrupt_and_messages_name_no_memory(data: bytes) -> None:
    with pytest.raises(CorruptImageError) as caught:
        load_image(data, LIMITS)
    assert " at 0x" not in str(caught.value)
    assert f"{len(data)} bytes" in str(caught.value)


def test_a_format_that_is_none_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValidationError):
        LimitsConfig(image_formats=("EPS",))  # type: ignore[arg-type]  # which would start Ghostscript


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_pages_become_pictures_or_an_error(kind: str) -> None:
    data = paged(kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert count_pages(data, LIMITS) == 3
    with pytest.raises(ImageLimitError, match=r'more than one page.*pages="all"'):
        load_image(data, LIMITS)
    first = load_image(data, LimitsConfig(pages="first"))
    pages = load_pages(data, LIMITS)
    asked = resolve_images(Request.ask("?", data, noise(4, 4)), LimitsConfig(pages="all"))
    loaded = [part.source for part in asked.images]
    assert [page.size for page in loaded] == [(12, 8)] * 3 + [(4, 4)]
    assert first.tobytes() == pages[0].tobytes() == loaded[0].tobytes()
    assert [page.tobytes() for page in pages] == [page.tobytes() for page in loaded[:3]]
    assert len({page.tobytes() for page in pages}) == 3
    if kind != "GIF":  # which has 256 colours
        assert [page.tobytes() for page in pages] == [page.tobytes() for page in PAGES]


def test_the_control_one_page_is_one_picture() -> None:
    for kind in ("TIFF", "GIF", "PNG", "WEBP", "JPEG"):
        data = encoded(noise(12, 8), kind)
        assert count_pages(data, LIMITS) == 1
        assert load_image(data, LIMITS).size == (12, 8)


def test_the_preview_in_a_cameras_file_is_no_page() -> None:
    data = encoded(PAGES[0], "MPO", save_all=True, append_images=[noise(6, 4)])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert load_image(data, LIMITS).size == (12, 8)
    assert count_pages(data, LIMITS) == 1


def test_a_smaller_copy_in_a_tiff_is_no_page() -> None:
    small = Image.fromarray(np.asarray(PAGES[1]))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = encoded(PAGES[0], "TIFF", save_all=True, append_images=[small])
    assert count_pages(data, LIMITS) == 1
    assert load_image(data, LIMITS).tobytes() == PAGES[0].tobytes()


def test_a_request_cannot_hold_more_pages_than_images() -> None:
    with pytest.raises(ImageLimitError, match="at least 3 images; the limit is 2"):
        resolve_images(Request.ask("?", paged("TIFF")), LimitsConfig(pages="all", max_images=2))
    with pytest.raises(ImageLimitError, match="at least 3 images"):
        resolve_images(Request.ask("?", noise(4, 4), paged("GIF")), LimitsConfig(pages="all", max_images=2))


def test_pages_count_towards_the_pixels_of_the_request() -> None:
    limits = LimitsConfig(pages="all", max_request_pixels=2 * 96)
    with pytest.raises(ImageLimitError, match="first 3 images have 288 pixels together; the limit is 192"):
        resolve_images(Request.ask("?", paged("TIFF")), limits)


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_second_page_is_corrupt(action: Literal["ignore", "error"]) -> None:
    data = paged("TIFF")
    for end in range(len(data) - 700, len(data) - 1, 31):
        with warnings.catch_warnings(action=action), pytest.raises(ImageError):
            load_pages(data[:end], LIMITS)


def test_an_error_that_is_a_timeout_is_not_taken_for_damage() -> None:
    class LateError(DeadlineError, TimeoutError):
        pass

    def late() -> None:
        if asked.pop():
            raise LateError("Late.", remedy="Wait.")

    asked = [True, False]
    with pytest.raises(LateError):
        load_image(encoded(noise(4, 4)), LIMITS, late)


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encoded(noise(64, 48), "HEIF")
    assert sniff(data) == "HEIF"
    (tmp_path / "photo.heic").write_bytes(data)
    assert load_image(tmp_path / "photo.heic", LIMITS).size == (64, 48)


@pytest.mark.skipif(importlib.util.find_spec("pypdfium2") is None, reason="pypdfium2 is an extra")
class TestPdf:
    def test_pages(self) -> None:
        data = encoded(noise(72, 36), "PDF", save_all=True, append_images=[noise(36, 72)], resolution=72)
        assert count_pages(data, LIMITS) == 2
        assert [page.size for page in load_pages(data, LIMITS)] == [(144, 72), (72, 144)]
        assert load_image(data, LimitsConfig(pages="first", pdf_dpi=72)).size == (72, 36)
        with pytest.raises(ImageLimitError, match="more than one page"):
            load_image(data, LIMITS)

    def test_a_huge_page_is_not_drawn(self) -> None:
        data = encoded(noise(72, 36), "PDF", resolution=0.5)
        with pytest.raises(ImageLimitError, match="at 144 dpi; the limit is 50000000"):
            load_image(data, LIMITS)

    def test_a_page_that_is_not_there(self) -> None:
        """The file opens, and says that it has a page; the page is damaged."""
        objects = (b"/Type /Catalog /Pages 2 0 R", b"/Type /Pages /Kids [9 0 R] /Count 1")
        data, starts = b"%PDF-1.4\n", []
        for number, words in enumerate(objects, 1):
            starts.append(len(data))
            data += b"%d 0 obj\n<< %s >>\nendobj\n" % (number, words)
        table = b"".join(b"%010d 00000 n \n" % start for start in starts)
        data += (
            b"xref\n0 3\n0000000000 65535 f \n%strailer\n<< /Size 3 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
            % (
                table,
                len(data),
            )
        )
        assert count_pages(data, LIMITS) == 1
        with pytest.raises(CorruptImageError, match=r"bytes, page 1, cannot be read as a picture \("):
            load_image(data, LIMITS)
        with pytest.raises(CorruptImageError, match="page 1"):
            list(open_pages(data, LIMITS, "The file"))

    @pytest.mark.parametrize("data", [b"%PDF-1.7", b"%PDF-1.7\n" + bytes(300)])
    def test_a_broken_file(self, data: bytes) -> None:
        with pytest.raises(CorruptImageError, match="cannot be read as a PDF"):
            load_image(data, LIMITS)
