"""What every test can rely on: offline, on one thread, and no GPU unless it is marked for one.

Sockets are disabled by pytest-socket (`--disable-socket` in pyproject.toml).
"""

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

# One thread: tiny tensors gain nothing from more, and results do not depend on the machine's cores.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
