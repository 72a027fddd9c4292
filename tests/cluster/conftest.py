"""Loopback is open to these tests, which talk to Ray's processes over it, and nothing else is."""

from pathlib import Path

import pytest
import pytest_socket


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets these tests have sockets; `_loopback_only` says where to."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.enable_socket)


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    pytest_socket.socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)
