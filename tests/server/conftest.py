"""A server for the tests that change nothing of it."""

from collections.abc import Iterator

import pytest
from served import Running, serving

from sgl_engine.testing import FakeEngine


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Whose small model says "a red fox" at a score of 0.9, or of 0.1 where it is asked something "hard"."""
    engine = FakeEngine(
        lambda request: "a red fox", score=lambda request: 0.1 if "hard" in str(request.messages) else 0.9
    )
    with serving(engine) as running:
        yield running
