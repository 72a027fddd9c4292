import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sgl_engine import UrlPolicy
from sgl_engine.errors import (
    ImageFetchError,
    ImageLimitError,
    MissingImageError,
    RequestCancelledError,
    UnsafeUrlError,
)
from sgl_engine.prompt.urls import fetch

PUBLIC = "93.184.215.14"
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host -> addresses; other hosts do not resolve."""
    table = {"example.org": [PUBLIC], "mixed.org": [PUBLIC, "10.0.0.1"], "inside.org": ["192.168.1.4"]}

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        try:
            addresses = table.get(host) or [socket.inet_ntoa(socket.inet_aton(host))]
        except OSError:
            if ":" not in host:
                raise socket.gaierror(-2, "Name or service not known") from None
            addresses = [host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return table


def get(url: str, handler: Handler, policy: UrlPolicy | None = None, max_bytes: int = 1000) -> bytes:
    return fetch(url, policy or UrlPolicy(), max_bytes=max_bytes, transport=httpx.MockTransport(handler))


def answered(body: bytes, **headers: str) -> httpx.Response:
    """A response whose body is still to be read, as the network gives it."""
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))


def never(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was fetched")


def test_connects_to_the_checked_address_and_names_the_host(names: dict[str, list[str]]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == PUBLIC  # a second DNS answer cannot lead elsewhere
        assert request.headers["host"] == "example.org"
        assert request.extensions["sni_hostname"] == "example.org"
        assert request.url.path == "/a.png"
        return answered(b"picture")

    assert get("https://example.org/a.png?x=1", answer) == b"picture"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/", "scheme 'http'; allowed: https"),
        ("ftp://example.org/", "scheme 'ftp'"),
        ("https://inside.org/", r"192\.168\.1\.4, which is not public"),
        ("https://mixed.org/", r"10\.0\.0\.1, which is not public"),
        ("https://127.0.0.1/", "not public"),
        ("https://2130706433/", "not public"),  # 127.0.0.1 as a number
        ("https://0x7f.1/", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://100.64.0.1/", "not public"),
        ("https://224.0.0.1/", "not public"),
        ("https://0.0.0.0/", "not public"),
        ("https://[::1]/", "not public"),
        ("https://[fe80::1]/", "not public"),
        ("https://[fd00::1]/", "not public"),
        ("https://[::ffff:127.0.0.1]/", "not public"),
        ("https://[64:ff9b::7f00:1]/", "not public"),
        ("https://[64:ff9b:1::7f00:1]/", "not public"),
        ("https://[fec0::1]/", "not public"),
        ("https://[::7f00:1]/", "not public"),
        ("https://[::ffff:0:7f00:1]/", "not public"),
        ("https://[2002:7f00:1::]/", "not public"),
        ("https://user:secret@example.org/", "user name"),
    ],
)
def test_unsafe_urls_are_refused(url: str, reason: str, names: dict[str, list[str]]) -> None:
    with pytest.raises(UnsafeUrlError, match=reason) as caught:
        get(url, never)
    assert "secret" not in str(caught.value)


def test_the_control_a_public_address_is_fetched(names: dict[str, list[str]]) -> None:
    assert get(f"https://{PUBLIC}/", lambda _: answered(b"x")) == b"x"


def test_private_addresses_and_http_where_allowed(names: dict[str, list[str]]) -> None:
    policy = UrlPolicy(allow_private=True, schemes=("http", "https"))
    assert get("http://inside.org:8080/", lambda _: answered(b"x"), policy) == b"x"


def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(ImageFetchError, match=r"'example\.org' has no address"):
        get("https://example.org/", never)


def test_no_urls_at_all(names: dict[str, list[str]]) -> None:
    with pytest.raises(UnsafeUrlError, match="allowed: none"):
        get("https://example.org/", never, UrlPolicy(enabled=False))


@pytest.mark.parametrize("target", ["https://inside.org/", "http://example.org/", "https://127.0.0.1/"])
def test_redirects_are_checked(target: str, names: dict[str, list[str]]) -> None:
    with pytest.raises(UnsafeUrlError):
        get("https://example.org/", lambda _: httpx.Response(302, headers={"location": target}))


def test_relative_redirects_stay_on_the_named_host(names: dict[str, list[str]]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["host"] == "example.org"
        if request.url.path == "/a":
            return httpx.Response(301, headers={"location": "/b"})
        return answered(request.url.path.encode())

    assert get("https://example.org/a", answer) == b"/b"


def test_redirects_end(names: dict[str, list[str]]) -> None:
    calls: list[int] = []

    def circle(_: httpx.Request) -> httpx.Response:
        calls.append(1)
        return httpx.Response(302, headers={"location": "/"})

    with pytest.raises(UnsafeUrlError, match="more than 2 times"):
        get("https://example.org/", circle, UrlPolicy(max_redirects=2))
    assert len(calls) == 3


def test_large_bodies_are_dropped_while_they_arrive(names: dict[str, list[str]]) -> None:
    sent: list[int] = []

    def body() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield bytes(100)

    with pytest.raises(ImageLimitError, match="more than 450 bytes"):
        get("https://example.org/", lambda _: httpx.Response(200, content=body()), max_bytes=450)
    assert len(sent) == 5


def test_slow_bodies_are_dropped(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("sgl_engine.prompt.urls.time.monotonic", lambda: float(next(clock)))

    def body() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x"

    with pytest.raises(ImageFetchError, match=r"longer than 3\.0 s"):
        get("https://example.org/", lambda _: httpx.Response(200, content=body()), UrlPolicy(timeout_s=3))


def test_other_failures_are_typed(names: dict[str, list[str]]) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    for status in (404, 403, 410):
        with pytest.raises(MissingImageError, match=f"status {status}"):
            get("https://example.org/", lambda _, status=status: httpx.Response(status))
    for status in (429, 500, 503):
        with pytest.raises(ImageFetchError, match=f"status {status}"):
            get("https://example.org/", lambda _, status=status: httpx.Response(status))
    with pytest.raises(ImageFetchError, match="ConnectError"):
        get("https://example.org/", refuse)
    with pytest.raises(ImageFetchError, match="cannot be resolved"):
        get("https://nowhere.invalid/", never)
    with pytest.raises(ImageFetchError, match="InvalidURL"):
        get("https://example.org:port/", never)


def test_compressed_bodies_are_neither_asked_for_nor_unpacked(names: dict[str, list[str]]) -> None:
    bomb = gzip.compress(bytes(100_000))

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return answered(bomb, **{"Content-Encoding": "gzip"})

    with pytest.raises(ImageFetchError, match="Content-Encoding 'gzip'"):
        get("https://example.org/", answer)


def test_the_control_identity_is_no_compression(names: dict[str, list[str]]) -> None:
    assert get("https://example.org/", lambda _: answered(b"x", **{"Content-Encoding": "Identity"})) == b"x"


def test_the_time_is_that_of_all_hops_together(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("sgl_engine.prompt.urls.time.monotonic", lambda: now[0])
    left: list[float] = []

    def circle(request: httpx.Request) -> httpx.Response:
        timeout = request.extensions["timeout"]
        assert len(set(timeout.values())) == 1  # connect, read, write and pool alike
        left.append(timeout["read"])
        now[0] += 1.0
        return httpx.Response(302, headers={"location": "/"})

    with pytest.raises(ImageFetchError, match=r"longer than 2\.5 s"):
        get("https://example.org/", circle, UrlPolicy(timeout_s=2.5, max_redirects=9))
    assert left == [2.5, 1.5, 0.5]


def test_slow_resolving_counts(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sgl_engine.prompt.urls.time.monotonic", lambda: now[0])
    resolve = socket.getaddrinfo

    def slow(host: str, port: int, **options: int) -> object:
        now[0] += 4.0
        return resolve(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(ImageFetchError, match=r"longer than 3\.0 s"):
        get("https://example.org/", never, UrlPolicy(timeout_s=3))


@pytest.mark.parametrize("slow", ["resolving", "headers"])
def test_nothing_outlasts_the_limit(
    slow: str, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    resolve = socket.getaddrinfo

    def wait(*arguments: Any, **options: Any) -> Any:
        over.wait(300)
        return resolve(*arguments, **options)

    def answer(_: httpx.Request) -> httpx.Response:
        over.wait(300)  # a server that sends one byte of its headers at a time looks like this
        return answered(b"late")

    if slow == "resolving":
        monkeypatch.setattr(socket, "getaddrinfo", wait)
    with pytest.raises(ImageFetchError, match=r"longer than 0\.3 s"):
        get("https://example.org/", answer, UrlPolicy(timeout_s=0.3))  # while the server still waits
    over.set()


def test_a_download_that_is_not_wanted_any_more_ends(names: dict[str, list[str]]) -> None:
    over = threading.Event()

    def answer(_: httpx.Request) -> httpx.Response:
        over.wait(300)
        return answered(b"late")

    def still_wanted() -> None:
        raise RequestCancelledError("Not any more.", remedy="Ask again.")

    with pytest.raises(RequestCancelledError):
        fetch(
            "https://example.org/",
            UrlPolicy(),
            max_bytes=9,
            transport=httpx.MockTransport(answer),
            still_wanted=still_wanted,
        )
    over.set()
