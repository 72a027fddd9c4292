"""Engines that are shared: the weights of a pair are loaded once per process, on first use.

LangChain builds chat models freely (``configurable_fields`` makes one per call); what is expensive lives
here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_engine.errors import ConfigError

if TYPE_CHECKING:
    from sgl_engine.engine import SGLEngine


@dataclass(frozen=True)
class Pair:
    """Which weights, and where; everything else about an engine can be changed per call at no cost.

    Attributes:
        small: Path or hub id; None, together with ``large``, is the bundled pair.
        large: Path or hub id.
        dtype: As in transformers; None is the checkpoint's own.
        device: Where both models go; None is the CPU.
        device_map: As in transformers, instead of ``device``.
        small_revision: Branch, tag or commit on the hub.
        large_revision: Branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the models.
    """

    small: str | None = None
    large: str | None = None
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    small_revision: str | None = None
    large_revision: str | None = None
    trust_remote_code: bool = False

    @property
    def bundled(self) -> bool:
        """Whether this is the pair that comes with the package."""
        return self.small is None

    def __post_init__(self) -> None:
        """Refuses half a pair.

        Raises:
            ConfigError: Only one of the models is named.
        """
        if (self.small is None) != (self.large is None):
            raise ConfigError(
                f"Only one model of the pair is named: small={self.small!r}, large={self.large!r}.",
                remedy="Name both, or neither for the bundled pair.",
            )


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: SGLEngine | None = None


_slots: dict[Pair, _Slot] = {}
_slots_lock = threading.Lock()


def shared_engine(pair: Pair) -> SGLEngine:
    """The process's engine for ``pair``; loads it the first time. Threads that ask meanwhile wait.

    A failed load is not remembered: the next call tries again.

    Raises:
        ModelError: A model cannot be loaded, or the two do not fit.
    """
    with _slots_lock:
        slot = _slots.setdefault(pair, _Slot())
    with slot.lock:
        if slot.engine is None:
            slot.engine = _load(pair)
        return slot.engine


def forget_engines() -> None:
    """Drops every shared engine; memory is freed once no chat model uses it any more."""
    with _slots_lock:
        _slots.clear()


def _load(pair: Pair) -> SGLEngine:
    if pair.bundled:
        from sgl_engine.demo import demo_engine

        return demo_engine(device=pair.device, dtype=pair.dtype or "auto")
    from sgl_engine.engine import SGLEngine

    assert pair.small is not None
    assert pair.large is not None
    settings: dict[str, Any] = {"dtype": pair.dtype or "auto", "trust_remote_code": pair.trust_remote_code}
    return SGLEngine.from_pretrained(
        pair.small,
        pair.large,
        device=pair.device,
        device_map=pair.device_map,
        small_revision=pair.small_revision,
        large_revision=pair.large_revision,
        **settings,
    )
