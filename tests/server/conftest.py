"""Loopback is open to the tests of the server, and nothing else is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_socket
from served import Running, serving

from sgl_engine.testing import FakeEngine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets these tests have sockets; `_loopback_only` says where to."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    pytest_socket.socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Whose small model says "a red fox" at a score of 0.9, or of 0.1 where it is asked something "hard"."""
    engine = FakeEngine(
        lambda request: "a red fox", score=lambda request: 0.1 if "hard" in str(request.messages) else 0.9
    )
    with serving(engine) as running:
        yield running
