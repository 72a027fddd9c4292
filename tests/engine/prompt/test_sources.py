"""Sources in messages: nothing secret, nothing long; and base64 as it is found."""

import base64
import pickle
import traceback
import urllib.parse
from pathlib import Path, PureWindowsPath

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import noise
from test_images import encoded

from sgl_engine import LimitsConfig, UrlPolicy
from sgl_engine.errors import CorruptImageError, ImageError, MissingImageError
from sgl_engine.prompt.images import load_image
from sgl_engine.prompt.sources import decode_base64, decode_data_url, describe_source
from sgl_engine.prompt.urls import fetch

SECRETS = ("SECRETPW", "s3cr3t-sig", "/home/alice")
PNG = encoded(noise(12, 8))
TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            "https://user:SECRETPW@example.org:8443/a/b/c.png?sig=s3cr3t-sig#x",
            "https://example.org:8443/.../c.png",
        ),
        ("https://example.org/c.png", "https://example.org/c.png"),
        ("https://example.org", "https://example.org"),
        ("HTTP://user@example.org/c.png", "HTTP://example.org/c.png"),
        ("http:\\\\user:SECRETPW@example.org\\c.png", "http://example.org/c.png"),
        ("https://api.example.org/botSECRETPW/photo.jpg", "https://api.example.org/.../photo.jpg"),
        ("//user:SECRETPW@example.org/c.png?s3cr3t-sig", "c.png"),
        ("user:SECRETPW@example.org/c.png", "user:... of 26 characters"),
        ("example.org/c.png?sig=s3cr3t-sig", "example.org/c.png"),
        (" data:image/png;base64,AAAA", "data:image/png, 21 characters"),
        ("DATA:;base64,AAAA", "data:, 12 characters"),
        ("file:///home/alice/c.png", "file:c.png"),
        ("/home/alice/c.png", "c.png"),
        ("~/alice/c.png", "c.png"),
        ("C:\\Users\\alice\\c.png", "c.png"),
        ("\\\\server\\share\\c.png", "c.png"),
        (Path("/home/alice/c.png"), "c.png"),
        (Path("/"), "/"),
        (PureWindowsPath("C:/Users/alice/c.png"), "c.png"),
        (Path("may/c.png"), "may/c.png"),
        ("may/c.png", "may/c.png"),
        (TEXT, f"{len(TEXT)} characters of base64"),
        ("foo:" + "A" * 80_000, "foo:... of 80000 characters"),
        ("x.y" * 1000, "x.y" * 25 + "x...."),
        (None, "a source of type NoneType"),
    ],
)
def test_what_is_left_of_a_source(source: object, shown: str) -> None:
    assert describe_source(source) == shown


@given(st.text(max_size=300))
def test_it_is_always_short(source: str) -> None:
    assert len(describe_source(source)) <= 100
    assert len(describe_source("https://" + source)) <= 100
    assert len(describe_source("/" + source)) <= 100


def everything_said(error: BaseException) -> str:
    """What an agent, a log with its traceback, and another process get."""
    pickled: BaseException = pickle.loads(pickle.dumps(error))
    last = [line for line in traceback.format_exception(error) if not line.startswith("  File")]
    return f"{error} {pickled} {''.join(last)}"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:SECRETPW@example.org/a.png?sig=s3cr3t-sig",
        "http://user:SECRETPW@example.org/a.png?sig=s3cr3t-sig",
        "ftp://user:SECRETPW@example.org/a.png?sig=s3cr3t-sig",
        "https://user:SECRETPW@example.org:99999999/a.png?sig=s3cr3t-sig",
        "https://user:SECRETPW@[example.org/a.png?sig=s3cr3t-sig",
        "https://example.org/missing.png?sig=s3cr3t-sig",
        "https://example.org/zipped.png?sig=s3cr3t-sig",
        "https://example.org/large.png?sig=s3cr3t-sig",
        "https://example.org/circle.png?sig=s3cr3t-sig",
        "https://example.org/away.png?sig=s3cr3t-sig",
        "https://example.org/closed.png?sig=s3cr3t-sig",
        "https://user:SECRETPW@example.org/\x00",
        "mailto:SECRETPW@example.org",
        "x:/home/alice/x.png",
    ],
)
def test_no_error_repeats_a_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if "circle" in path:
            return httpx.Response(302, headers={"location": "/circle.png?sig=s3cr3t-sig"})
        if "away" in path:
            return httpx.Response(302, headers={"location": "https://user:SECRETPW@example.org/"})
        if "closed" in path:
            raise httpx.ConnectError("refused", request=request)
        if "zipped" in path:
            return httpx.Response(200, headers={"content-encoding": "br"}, stream=httpx.ByteStream(b"x"))
        return httpx.Response(200 if "large" in path else 404, stream=httpx.ByteStream(bytes(1001)))

    monkeypatch.setattr(
        "socket.getaddrinfo", lambda host, port, **_: [(2, 1, 6, "", ("93.184.215.14", port))]
    )
    monkeypatch.setattr(
        "sgl_engine.prompt.images.fetch",
        lambda url, policy, **options: fetch(url, policy, transport=httpx.MockTransport(answer), **options),
    )
    limits = LimitsConfig(max_image_bytes=1000, urls=UrlPolicy(timeout_s=30))
    with pytest.raises(ImageError) as caught:
        load_image(url, limits)
    said = everything_said(caught.value)
    assert not any(secret in said for secret in SECRETS)
    assert len(str(caught.value)) < 400


def test_paths_are_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no")
    for name, limits in (
        ("absent.png", LimitsConfig()),
        ("broken.png", LimitsConfig()),
        ("broken.png", LimitsConfig(max_image_bytes=1)),
    ):
        with pytest.raises(ImageError, match=name) as caught:
            load_image(tmp_path / name, limits)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MissingImageError) as caught:
        load_image(tmp_path, LimitsConfig())
    assert str(tmp_path) not in str(caught.value)


WAYS = {
    "as it should be": TEXT,
    "a space": f" {TEXT}",
    "line breaks": base64.encodebytes(PNG).decode(),
    "windows line breaks": base64.encodebytes(PNG).decode().replace("\n", "\r\n"),
    "no padding": TEXT.rstrip("="),
    "too much padding": TEXT + "==",
    "URL-safe": base64.urlsafe_b64encode(PNG).decode(),
    "percent-encoded": urllib.parse.quote(TEXT, safe=""),
    "both": urllib.parse.quote(base64.urlsafe_b64encode(PNG).decode().rstrip("=") + "\n"),
}
HEADERS = [
    "image/png;base64",
    ";base64",
    "image/png;charset=utf-8;base64",
    "image/png;BASE64",
    "image/png; base64",
]


@pytest.mark.parametrize("way", WAYS)
def test_base64_is_read_as_it_is_found(way: str) -> None:
    assert decode_base64(WAYS[way]) == PNG
    for header in HEADERS:
        for scheme in ("data", "DATA", " data"):
            assert decode_data_url(f"{scheme}:{header},{WAYS[way]}") == PNG
            assert (
                load_image(f"{scheme}:{header},{WAYS[way]}", LimitsConfig()).tobytes()
                == noise(12, 8).tobytes()
            )


@pytest.mark.parametrize("text", ["%%%", "AAAA!", "A", "AAAAA", "ä" * 8, "AA=A", "%zz"])
def test_the_control_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(CorruptImageError, match=f"{len(text)} characters are not base64"):
        decode_base64(text)
