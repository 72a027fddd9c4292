"""Where a pair fits: decided from sizes, on machines of every kind."""

from pathlib import Path
from typing import Any

import pytest

from sgl_engine.model.settings import check_settings
from sgl_engine.planning import Device, Machine, ModelCheck
from sgl_engine.planning.check import start_with
from sgl_engine.planning.placement import free_memory, place

GIB = 2**30


def model(billions: float) -> ModelCheck:
    values = int(billions * 1e9)
    weights = {
        "float32": 4 * values,
        "float16": 2 * values,
        "bfloat16": 2 * values,
        "int8": int(1.1 * values),
    }
    cache = {"float32": 2**28, "float16": 2**27, "bfloat16": 2**27}
    return ModelCheck(name="m", runs=True, weights_bytes=weights, cache_bytes=cache, working_bytes=cache)


def machine(gpus: list[int], ram: int, *packages: str, half: bool = True) -> Machine:
    found = tuple(Device(f"cuda:{number}", "GPU", size * GIB) for number, size in enumerate(gpus))
    return Machine(found, ram * GIB, half, frozenset(packages))


HALF, INT8 = {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"}


@pytest.mark.parametrize(
    ("on", "small", "large", "reason"),
    [
        (machine([80], 64), {**HALF, "device": "cuda:0"}, {**HALF, "device": "cuda:0"}, "on one GPU"),
        (machine([12, 18], 64), {**HALF, "device": "cuda:0"}, {**HALF, "device": "cuda:1"}, "of its own"),
        (
            machine([16], 64, "torchao"),
            {**HALF, "device": "cuda:0"},
            {**INT8, "device": "cuda:0"},
            "eight bits",
        ),
        (machine([8], 64), {**HALF, "device": "cuda:0"}, {**HALF, "device_map": "auto"}, "spread"),
        (machine([], 64), HALF, HALF, "multiplies bfloat16"),
        (machine([], 64, half=False), {"dtype": "float32"}, {"dtype": "float32"}, "no instructions"),
        (machine([], 26, half=False), HALF, HALF, "float32 does not fit"),
        (machine([], 17), HALF, INT8, "large model fits in eight bits"),
    ],
)
def test_the_fastest_way_that_fits(
    on: Machine, small: dict[str, Any], large: dict[str, Any], reason: str
) -> None:
    found = place(model(1), model(8), on, kept_bytes=2**29)
    assert found.fits
    assert (found.small_settings, found.large_settings) == (small, large)
    assert reason in found.reason
    assert found.needed_bytes <= found.available_bytes
    for settings in (small, large):
        check_settings(settings, "The placement")


def test_what_is_not_installed_is_named() -> None:
    assert place(model(1), model(8), machine([16], 64), kept_bytes=0).missing == ("torchao",)
    assert place(model(1), model(8), machine([16], 64, "torchao"), kept_bytes=0).missing == ()
    assert place(model(1), model(8), machine([8], 64), kept_bytes=0).missing == ("accelerate",)


def test_a_machine_that_is_too_small() -> None:
    found = place(model(1), model(8), machine([], 4), kept_bytes=0)
    assert not found.fits
    assert "nothing fits: the least that the pair takes is 10" in found.reason
    assert found.needed_bytes > found.available_bytes


def test_settings_of_both_are_written_once() -> None:
    found = place(model(1), model(8), machine([], 17), kept_bytes=0)
    assert start_with("a", "b", found).endswith(
        'from_pretrained("a", "b", dtype="bfloat16", large_settings={"quantization": "int8"})'
    )


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:    2000 kB\n")
    assert free_memory(tmp_path) == 2000 * 1024
    control = tmp_path / "sys/fs/cgroup"
    control.mkdir(parents=True)
    (control / "memory.max").write_text("max\n")
    (control / "memory.current").write_text("500000\n")
    assert free_memory(tmp_path) == 2000 * 1024  # no limit
    (control / "memory.max").write_text("600000\n")
    assert free_memory(tmp_path) == 100_000


def test_this_machine_has_memory() -> None:
    here = Machine.here()
    assert here.free_bytes > 0
    assert here.in_words[-1].startswith("cpu (")
