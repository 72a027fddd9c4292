import base64
import io
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import noise

from sgl_engine import LimitsConfig, Message, Request, UrlPolicy
from sgl_engine.errors import (
    CorruptImageError,
    ImageLimitError,
    InvalidRequestError,
    MissingImageError,
    UnsafeUrlError,
)
from sgl_engine.prompt import images
from sgl_engine.prompt.images import load_image, resolve_images
from sgl_engine.request import ImagePart

LIMITS = LimitsConfig()


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_every_way_in_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    picture = noise(12, 8)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(picture, kind, **options)
    (tmp_path / "picture").write_bytes(data)
    url = "data:image/any;base64," + base64.b64encode(data).decode()
    for source in (picture, data, tmp_path / "picture", url):
        loaded = load_image(source, LIMITS)
        assert loaded.mode == "RGB"
        assert loaded.tobytes() == picture.tobytes()


def test_urls_are_fetched_under_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetch(url: str, policy: UrlPolicy, *, max_bytes: int, **_: object) -> bytes:
        calls.append((url, policy, max_bytes))
        return encoded(noise(4, 4))

    monkeypatch.setattr(images, "fetch", fetch)
    load_image("https://example.org/a.png", LIMITS)
    assert calls == [("https://example.org/a.png", LIMITS.urls, LIMITS.max_image_bytes)]


def test_rotated_photographs_stand_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert load_image(encoded(noise(12, 8), "JPEG", exif=exif), LIMITS).size == (8, 12)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert load_image(encoded(clear), LIMITS).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(clear, LIMITS).getpixel((0, 0)) == (255, 255, 255)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingImageError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png", LIMITS)
    with pytest.raises(MissingImageError, match="not a regular file"):
        load_image(tmp_path, LIMITS)


def test_no_image_where_one_is_named() -> None:
    with pytest.raises(MissingImageError, match="source is NoneType"):
        load_image(None, LIMITS)  # type: ignore[arg-type]
    with pytest.raises(MissingImageError, match="URL is empty"):
        load_image("", LIMITS)


def test_text_never_opens_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(noise(4, 4)))
    with pytest.raises(UnsafeUrlError, match=r"pathlib\.Path"):
        load_image(str(tmp_path / "secret.png"), LIMITS)
    with pytest.raises(UnsafeUrlError, match="scheme 'file'"):
        load_image(f"file://{tmp_path}/secret.png", LIMITS)


@pytest.mark.parametrize("data", [b"", b"not a picture", encoded(noise(50, 50))[:200], png_header(8, 8)])
def test_corrupt_files(data: bytes) -> None:
    with pytest.raises(CorruptImageError, match=f"{len(data)} bytes.*PNG, JPEG"):
        load_image(data, LIMITS)


@pytest.mark.parametrize("url", ["data:image/png;base64,%%%", "data:image/png,raw", "data:nothing"])
def test_corrupt_data_urls(url: str) -> None:
    with pytest.raises(CorruptImageError, match="base64"):
        load_image(url, LIMITS)


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    """Below, above, and far above the sizes at which Pillow warns and raises itself."""
    with pytest.raises(ImageLimitError, match="50000000"):
        load_image(png_header(side, side), LIMITS)


def test_too_many_bytes(tmp_path: Path) -> None:
    data = encoded(noise(40, 40))
    (tmp_path / "large.png").write_bytes(data)
    limits = LimitsConfig(max_image_bytes=1000)
    for source in (data, tmp_path / "large.png"):
        with pytest.raises(ImageLimitError, match=f"{len(data)} bytes; the limit is 1000"):
            load_image(source, limits)


def test_too_many_pixels() -> None:
    limits = LimitsConfig(max_image_pixels=99)
    for source in (noise(10, 10), encoded(noise(10, 10))):
        with pytest.raises(ImageLimitError, match="10 x 10 pixels; the limit is 99"):
            load_image(source, limits)


def test_too_many_images() -> None:
    request = Request.ask("?", noise(4, 4), noise(4, 4))
    with pytest.raises(ImageLimitError, match="2 images; the limit is 1"):
        resolve_images(request, LimitsConfig(max_images=1))


@pytest.mark.parametrize("request_", [Request(()), Request((Message("user", ()),))])
def test_empty_requests(request_: Request) -> None:
    with pytest.raises(InvalidRequestError, match="nothing to answer"):
        resolve_images(request_, LIMITS)


def test_resolving_keeps_order_and_text() -> None:
    parts = ("a", ImagePart(encoded(noise(4, 4))), "b", ImagePart(noise(6, 4)))
    loaded = resolve_images(Request((Message("user", parts),)), LIMITS)
    assert [part if isinstance(part, str) else part.source.size for part in loaded.messages[0].content] == [
        "a",
        (4, 4),
        "b",
        (6, 4),
    ]


def test_deep_greyscale_keeps_its_tones() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None])
    assert ramp.mode == "I;16"
    loaded = np.asarray(load_image(ramp, LimitsConfig()))[0, :, 0]
    assert loaded[0] == 0
    assert loaded[-1] == 255
    assert 120 < loaded[128] < 136  # clipping would have made it 255


@pytest.mark.parametrize(
    ("values", "expected"), [((0, 32768, 65535), (0, 128, 255)), ((0, 9, 200), (0, 9, 200))]
)
def test_wide_integers_are_scaled_by_their_range(
    values: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    picture = Image.fromarray(np.array([values], dtype=np.int32))
    assert picture.mode == "I"
    assert load_image(picture, LIMITS).tobytes() == bytes(np.repeat(np.array(expected, dtype=np.uint8), 3))


def test_the_transparent_value_of_deep_greyscale_is_white() -> None:
    picture = Image.fromarray(np.array([[256, 257]], dtype=np.uint16))
    data = encoded(picture, transparency=257)
    assert load_image(data, LIMITS).tobytes() == bytes((1, 1, 1, 255, 255, 255))


@pytest.mark.parametrize(
    "values", [np.array([[0.0, 1.0]], dtype=np.float32), np.array([[-1, 5]]), np.array([[0, 65536]])]
)
def test_pixels_without_a_known_white_are_refused(values: np.ndarray) -> None:
    picture = Image.fromarray(values if values.dtype == np.float32 else values.astype(np.int32))
    with pytest.raises(CorruptImageError, match="which one is white is unknown"):
        load_image(picture, LIMITS)


def test_a_lazy_picture_from_a_broken_file() -> None:
    lazy = Image.open(io.BytesIO(encoded(noise(50, 50))[:200]))
    with pytest.raises(CorruptImageError, match="The image cannot be read as a picture"):
        load_image(lazy, LIMITS)


class Lazy(Image.Image):
    """A picture whose first use decodes it, and notes whether two threads do so at once."""

    def __init__(self, meet: Callable[[], None]) -> None:
        super().__init__()
        vars(self).update(vars(noise(6, 4)))
        self.meet, self.inside, self.most, self.ready = meet, 0, 0, False

    def load(self) -> Any:
        if not self.ready:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.meet()
            self.inside -= 1
            self.ready = True
        return super().load()


class Watched:
    """A lock that tells when somebody waits for it."""

    def __init__(self, waits: threading.Event) -> None:
        self.lock, self.waits = threading.RLock(), waits

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.waits.set()
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.mark.parametrize("read", [load_image, images.read_source])
def test_a_lazy_picture_is_decoded_by_one_thread(
    read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one comes while the first is within: it waits there, or else comes in."""
    came = threading.Event()
    monkeypatch.setattr(images, "_TURNS", (Watched(came),), raising=False)
    met = 0
    with ThreadPoolExecutor(1) as pool:

        def meet() -> None:
            nonlocal met
            met += 1
            if met == 1:
                others.append(pool.submit(read, picture, LIMITS))
                assert came.wait(300)
            else:
                came.set()

        others: list[Any] = []
        picture = Lazy(meet)
        first = read(picture, LIMITS)
        assert others[0].result(300).tobytes() == first.tobytes() == noise(6, 4).tobytes()
    assert (picture.most, met) == (1, 1)


def test_broken_exif() -> None:
    data = encoded(noise(4, 4), exif=b"Exif\0\0II*\0")  # cut off in the header
    for source in (data, Image.open(io.BytesIO(data))):
        with pytest.raises(CorruptImageError, match="cannot be read as a picture"):
            load_image(source, LIMITS)


@pytest.mark.parametrize("error", [zlib.error, EOFError, struct.error, IndexError, OSError, RuntimeError])
def test_whatever_a_decoder_raises_is_typed(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise error("broken")

    data, picture = encoded(noise(4, 4)), noise(4, 4)
    monkeypatch.setattr(Image.Image, "load", broken)
    for source in (data, picture):
        with pytest.raises(CorruptImageError, match="broken"):
            load_image(source, LIMITS)


def test_a_path_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingImageError, match="File name too long"):
        load_image(tmp_path / ("x" * 300), LIMITS)

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    with pytest.raises(MissingImageError, match=r"cannot be read \(Permission denied\)"):
        load_image(Path("/closed/picture.png"), LIMITS)
