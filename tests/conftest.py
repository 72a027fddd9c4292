"""What every test can rely on: offline, and no GPU unless it is marked for one.

Sockets are disabled by pytest-socket (`--disable-socket` in pyproject.toml).
"""

import gc
import os
import shutil
import tempfile

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import pytest_socket
import torch
from command_line import Sgl

from sgl_engine.cli import main
from sgl_engine.model.store import ReuseStore
from sgl_engine.report.run_report import ModelInfo, RunReport

# One thread: tiny tensors gain nothing from more. Results must not depend on it, which can be tried with two.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# Collection makes a million objects that stay to the end; to search them for cycles, again and again, took a
# third of its time. `pytest_collection_finish` switches it on again.
gc.disable()

_stores: WeakSet[ReuseStore] = WeakSet()
LOOPBACK = ("cluster", "playground", "server")
"""Folders whose tests talk to servers of their own."""


@pytest.fixture(scope="session", autouse=True)
def _track_stores() -> Iterator[None]:
    """Notes the store of every model, to clear it where models are shared by tests."""
    original = ReuseStore.__init__

    def init(self: ReuseStore) -> None:
        original(self)
        _stores.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReuseStore, "__init__", init)
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_other_modules(_track_stores: None) -> None:
    """No module knows pictures that another one has asked about."""
    _forget()


@pytest.fixture(autouse=True)
def _forget_other_tests(_forget_other_modules: None) -> None:
    """No test knows pictures that another one has asked about."""
    _forget()


@pytest.fixture(autouse=True)
def _loopback_only(request: pytest.FixtureRequest) -> None:
    """Who has sockets has them on this machine alone."""
    if request.node.get_closest_marker("enable_socket"):
        pytest_socket.socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)


def _forget() -> None:
    for store in list(_stores):
        store.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights and numbers are the same whatever ran before, in whichever process."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """From here on cycles are looked for among what tests make, not among modules and items as well."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in LOOPBACK:
            item.add_marker(pytest.mark.enable_socket)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def _start_ray(ray: Any, place: str) -> None:
    """Starts it; Ray gives itself 30 seconds, which on a machine that does other work may be too few."""
    for left in reversed(range(3)):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=100 * 2**20,
                _temp_dir=place,
                _node_ip_address="127.0.0.1",
            )
        except Exception:
            ray.shutdown()
            if not left:
                raise
        else:
            return


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A Ray cluster of this machine, one for all tests that need it; tests mark themselves enable_socket."""
    ray = pytest.importorskip("ray", reason="needs the extra cluster")
    place = tempfile.mkdtemp(prefix="sgl-ray-")  # a short name: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # what processes import is what is tested
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # one of its own would be written to the home directory
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        _start_ray(ray, place)
        yield
        ray.shutdown()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def make_report() -> Callable[..., RunReport]:
    """Builds the report of an early exit, with changes."""
    fields: dict[str, Any] = {
        "engine_version": "0",
        "route": "small",
        "escalated": False,
        "score": 0.9,
        "scorer": "mean_product",
        "threshold": 0.8,
        "forced": False,
        "confidence": 0.95,
        "consistency": 0.85,
        "visual_tokens": 144,
        "kept_visual_tokens": None,
        "prune_layer": None,
        "keep_ratio": None,
        "average_retention": None,
        "small_tflops": 0.001,
        "large_tflops": 0.0,
        "large_alone_tflops": 0.004,
        "saved_fraction": 0.75,
        "stage_ms": {"encode_small": 3.0, "generate_small": 11.6, "total": 15.0},
        "small_input_tokens": 160,
        "small_output_tokens": 3,
        "large_input_tokens": None,
        "large_output_tokens": None,
        "small_answer": None,
        "large_agreed": None,
        "small_model": ModelInfo(name="little"),
        "large_model": ModelInfo(name="big"),
    }
    return lambda **changes: RunReport(**fields | changes)


@pytest.fixture
def sgl(capsys: pytest.CaptureFixture[str]) -> Sgl:
    """Runs a command line -> exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as usage:
            code = int(usage.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
