"""Where a pair fits on a machine, and in which dtype: decided from sizes alone."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_engine.planning.result import ModelCheck, Placement

_MARGIN = 1.1
"""Of all that is counted: allocators hold more than they are asked for."""
_PACKAGES = ("accelerate", "torchao")


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: As torch calls it, "cuda:0".
        model: Its maker's name.
        free_bytes: Memory that nobody uses.
    """

    name: str
    model: str
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """What a pair could run on.

    Attributes:
        gpus: Those that torch can use.
        free_bytes: Main memory that is free.
        half_precision: Whether its processor multiplies bfloat16 itself.
        packages: Which of the optional ones are installed.
    """

    gpus: tuple[Device, ...]
    free_bytes: int
    half_precision: bool
    packages: frozenset[str] = frozenset()

    @classmethod
    def here(cls) -> Machine:
        """This machine, as it is now."""
        import torch

        gpus = []
        if torch.cuda.is_available():
            for number in range(torch.cuda.device_count()):
                free, _ = torch.cuda.mem_get_info(number)
                gpus.append(Device(f"cuda:{number}", torch.cuda.get_device_name(number), free))
        return cls(
            gpus=tuple(gpus),
            free_bytes=free_memory(),
            half_precision=_multiplies_bfloat16(),
            packages=frozenset(name for name in _PACKAGES if importlib.util.find_spec(name) is not None),
        )

    @property
    def in_words(self) -> tuple[str, ...]:
        """Its devices."""
        gpus = (f"{gpu.name} ({gpu.model}, {gpu.free_bytes / 2**30:.1f} GiB free)" for gpu in self.gpus)
        return (*gpus, f"cpu ({self.free_bytes / 2**30:.1f} GiB free)")


def free_memory(root: Path = Path("/")) -> int:
    """Main memory that this process may still take: of the machine, or of its container.

    Args:
        root: Where the system's files are.
    """
    free = [int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))]
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = [int(line.split()[1]) * 1024]  # what is cached, too, which is given back
    control = root / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        numbers = [line for name in (limit, used) for line in _lines(control / name)]
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            free.append(int(numbers[0]) - int(numbers[1]))
    return max(0, min(free))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")[:-1]
    except OSError:
        return []


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; elsewhere it is slower than float32."""
    import torch

    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public names for them
    return any(getattr(torch.cpu, name, bool)() for name in asked)


@dataclass(frozen=True)
class _Way:
    """One way to load a pair: settings of each model, and what of which memory it takes."""

    reason: str
    small: Mapping[str, Any]
    large: Mapping[str, Any]
    needed: Mapping[str, int]
    missing: frozenset[str] = frozenset()


def place(small: ModelCheck, large: ModelCheck, machine: Machine, *, kept_bytes: int) -> Placement:
    """Chooses the first way that fits; the fastest come first.

    Args:
        small: The small model, which runs.
        large: The large one.
        machine: What there is.
        kept_bytes: What each model may keep of pictures (``ReuseConfig.max_bytes``).
    """
    free = {"cpu": machine.free_bytes, **{gpu.name: gpu.free_bytes for gpu in machine.gpus}}
    ways = list(_ways(small, large, machine, kept_bytes))

    def fits(way: _Way) -> bool:
        return all(needed <= free[place] for place, needed in way.needed.items())

    found = next(filter(fits, ways), None)
    way = found or min(ways, key=lambda way: sum(way.needed.values()))
    needed, available = sum(way.needed.values()), sum(free[place] for place in way.needed)
    reason = way.reason
    if found is None:
        reason = f"nothing fits: the least that the pair takes is {needed / 2**30:.1f} GiB"
    return Placement(
        devices=machine.in_words,
        fits=found is not None,
        reason=reason,
        needed_bytes=needed,
        available_bytes=available,
        missing=tuple(sorted(way.missing - machine.packages)),
        small_settings=dict(way.small),
        large_settings=dict(way.large),
    )


def _ways(small: ModelCheck, large: ModelCheck, machine: Machine, kept_bytes: int) -> Iterator[_Way]:
    """All ways, the fastest first."""
    gpus = sorted(machine.gpus, key=lambda gpu: gpu.free_bytes, reverse=True)
    if gpus:
        yield from _on_gpus(small, large, gpus, kept_bytes)
    half, whole = ("bfloat16", "float32")
    order = [(half, "its processor multiplies bfloat16 itself")]
    if not machine.half_precision:
        order = [
            (whole, "its processor has no instructions for bfloat16"),
            (half, "float32 does not fit; this processor is slower in bfloat16"),
        ]
    for dtype, reason in order:
        yield _together("cpu", small, large, (dtype, dtype), kept_bytes, reason)
    yield _together("cpu", small, large, (half, "int8"), kept_bytes, "the large model fits in eight bits")
    yield _together("cpu", small, large, ("int8", "int8"), kept_bytes, "both models fit in eight bits")


def _on_gpus(small: ModelCheck, large: ModelCheck, gpus: list[Device], kept_bytes: int) -> Iterator[_Way]:
    first, half = gpus[0].name, "bfloat16"
    yield _together(first, small, large, (half, half), kept_bytes, "both models fit on one GPU")
    each = {
        dtype: (_needed(small, dtype, kept_bytes), _needed(large, dtype, kept_bytes))
        for dtype in (half, "int8")
    }
    if len(gpus) > 1:
        second = gpus[1].name
        needed = {first: each[half][1], second: each[half][0]}
        yield _Way("each model fits on a GPU of its own", _on(second, half), _on(first, half), needed)
    yield _together(first, small, large, (half, "int8"), kept_bytes, "the large model fits in eight bits")
    yield _together(first, small, large, ("int8", "int8"), kept_bytes, "both models fit in eight bits")
    # Spread by accelerate: GPUs first, what is left in main memory.
    left = {gpu.name: gpu.free_bytes for gpu in gpus}
    left[first] = max(0, left[first] - each[half][0])
    on_gpus = min(each[half][1], sum(left.values()))
    spread = {first: each[half][0], "cpu": each[half][1] - on_gpus}
    yield _Way(
        "the large model is spread over all memory that there is, which is slow",
        _on(first, half),
        {"dtype": half, "device_map": "auto"},
        spread,
        frozenset({"accelerate"}),
    )


def _together(
    place: str, small: ModelCheck, large: ModelCheck, dtypes: tuple[str, str], kept_bytes: int, reason: str
) -> _Way:
    needed = sum(
        _needed(model, dtype, kept_bytes) for model, dtype in zip((small, large), dtypes, strict=True)
    )
    missing = frozenset({"torchao"}) if "int8" in dtypes else frozenset[str]()
    return _Way(reason, _on(place, dtypes[0]), _on(place, dtypes[1]), {place: needed}, missing)


def _on(place: str, dtype: str) -> dict[str, Any]:
    """Settings of one model in one place."""
    settings = {"dtype": "bfloat16", "quantization": "int8"} if dtype == "int8" else {"dtype": dtype}
    return settings if place == "cpu" else {**settings, "device": place}


def _needed(model: ModelCheck, dtype: str, kept_bytes: int) -> int:
    """Memory of one model: weights, a page's cache, one layer's work, and what is kept of pictures."""
    assert model.weights_bytes is not None
    assert model.cache_bytes is not None
    assert model.working_bytes is not None
    computed = "bfloat16" if dtype == "int8" else dtype
    counted = model.weights_bytes[dtype] + model.cache_bytes[computed] + model.working_bytes[computed]
    return int(_MARGIN * (counted + kept_bytes))
