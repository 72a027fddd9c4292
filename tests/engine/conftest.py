"""Tiny models, built once; tests that change a model build their own."""

import pytest
from samples import REQUESTS

from sgl_engine import VLM
from sgl_engine.prompt.encoded import EncodedPrompt
from sgl_engine.testing import tiny_vlm


@pytest.fixture(scope="session")
def small() -> VLM:
    return tiny_vlm(size="small", side_tokens=6)


@pytest.fixture(scope="session")
def large() -> VLM:
    return tiny_vlm(size="large", side_tokens=6)


@pytest.fixture(params=REQUESTS)
def case(request: pytest.FixtureRequest) -> tuple[VLM, EncodedPrompt]:
    """A fresh large model with each kind of prompt."""
    tiles = 4 if request.param == "several tiles" else 1
    vlm = tiny_vlm(size="large", max_tiles=tiles, side_tokens=4, decoder="qwen3" if tiles == 1 else "qwen2")
    return vlm, vlm.encode(REQUESTS[request.param])
