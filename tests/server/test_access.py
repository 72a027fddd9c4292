"""Who may ask what: the key, the length of a body, and what the log holds."""

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from served import Running, about, picture_url, serving

from sgl_engine import ConfigError
from sgl_engine.server import ServerSettings
from sgl_engine.testing import FakeEngine

KEY = "s3cret-key"
LIMIT = 20_000


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    settings = ServerSettings(api_key=SecretStr(KEY), max_body_bytes=LIMIT, body_timeout_s=0.5)
    with serving(FakeEngine(lambda request: "a red fox"), settings) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), bearer(KEY + "x"), {"authorization": KEY}, {"authorization": "Bearer"}]
)
def test_without_the_key_nothing_is_answered(locked: Running, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/version", "/openapi.json", "/nothing"):
        assert locked.client.get(path, headers=headers).status_code == 401
    answer = locked.chat(headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert KEY not in answer.text


def test_with_the_key_it_is(locked: Running) -> None:
    assert locked.chat(headers=bearer(KEY)).status_code == 200
    assert locked.client.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200


def test_no_page_loads_scripts_from_elsewhere(locked: Running) -> None:
    for path in ("/docs", "/redoc"):  # FastAPI's own
        assert locked.client.get(path, headers=bearer(KEY)).status_code == 404


def test_what_monitors_look_at_needs_no_key(locked: Running) -> None:
    for path in ("/health", "/ready", "/metrics"):
        assert locked.client.get(path).status_code == 200


def test_a_body_that_says_it_is_too_long_is_not_read(locked: Running) -> None:
    """Only the head of the request is sent: an answer that waited for its body would not come."""
    host, port = locked.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {LIMIT + 1}\r\n\r\n".encode())
        answer = connection.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 413")


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off(locked: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    answer = locked.client.post("/v1/chat/completions", content=endless(), headers=bearer(KEY))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_long"
    assert str(LIMIT) in answer.json()["error"]["message"]


def test_a_body_that_never_comes_is_not_waited_for(locked: Running) -> None:
    host, port = locked.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\nhal".encode())
        assert connection.recv(10_000).decode().startswith("HTTP/1.1 408")


def test_each_request_has_an_id_and_a_line_without_what_was_said(locked: Running, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "sgl_engine.server"):
        url = picture_url()
        given = locked.chat(about(url, "a private matter"), headers={**bearer(KEY), "x-request-id": "mine-1"})
        forged = locked.client.get("/version?key=abc", headers={"x-request-id": "x" * 500})
    assert given.headers["x-request-id"] == "mine-1"
    assert len(forged.headers["x-request-id"]) == 32
    lines = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    [line] = [line for line in lines if line["id"] == "mine-1"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["ms"] >= 0
    for secret in ("private", KEY, url[30:60], "abc"):
        assert secret not in caplog.text


def test_browsers_of_other_sites_get_no_leave(locked: Running) -> None:
    answer = locked.client.get("/health", headers={"origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LocalHost:8000", True),
        ("app.localhost:1", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("[evil", False),
    ],
)
def test_without_a_key_no_page_elsewhere_can_reach_this_machine_by_a_name_of_its_own(
    server: Running, locked: Running, host: str, *, is_own: bool
) -> None:
    """A name can be made to point to 127.0.0.1 once a page of that name is loaded."""
    answer = server.chat(headers={"host": host})
    assert answer.status_code == (200 if is_own else 400), answer.text
    if not is_own:
        assert answer.json()["error"]["code"] == "foreign_host"
        assert "127.0.0.1" in answer.json()["error"]["message"]
    assert locked.chat(headers={**bearer(KEY), "host": host}).status_code == 200


def test_without_a_key_only_this_machine_is_listened_to() -> None:
    with pytest.raises(ConfigError, match="SGL_API_KEY"):
        ServerSettings().check_host("0.0.0.0")
    ServerSettings().check_host("127.0.0.1")
    ServerSettings(api_key=SecretStr("k")).check_host("0.0.0.0")
    assert KEY not in repr(ServerSettings(api_key=SecretStr(KEY)))


def test_a_key_from_a_file_has_no_line_feed() -> None:
    settings = ServerSettings(api_key=SecretStr(f" {KEY}\r\n"))
    with serving(FakeEngine(lambda request: "a red fox"), settings) as running:
        assert running.chat(headers=bearer(KEY)).status_code == 200
        assert running.chat(headers=bearer("wrong")).status_code == 401


@pytest.mark.parametrize("key", ["", "\n", "  "])
def test_a_key_that_is_empty_lets_nobody_in(key: str) -> None:
    with pytest.raises(ConfigError, match="key is empty"):
        ServerSettings(api_key=SecretStr(key))
