"""A pair of models: which weights, the one engine per process that holds them, and what the pair can do.

LangChain builds chat models freely (``configurable_fields`` makes one per call), so the engines are kept
here: the weights of a pair are loaded once per process, on first use.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import ModelProfile

from sgl_engine import ConfigError

if TYPE_CHECKING:
    from sgl_engine import SGLEngine

_CAN = ModelProfile(
    text_inputs=True,
    image_inputs=True,
    image_url_inputs=True,
    image_tool_message=True,
    pdf_inputs=False,
    audio_inputs=False,
    video_inputs=False,
    text_outputs=True,
    tool_calling=True,
    tool_choice=True,
    tool_call_streaming=True,
    structured_output=True,
    open_weights=True,
)


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


class _EngineSlot:
    """Room for the engine of one pair, and the lock under which it is loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: SGLEngine | None = None


_slots: dict[Pair, _EngineSlot] = {}
_slots_lock = threading.Lock()


def shared_engine(pair: Pair) -> SGLEngine:
    """Returns the process's engine for ``pair``, and loads it the first time; other threads wait for that.

    A failed load is not remembered: the next call tries again.

    Raises:
        ModelError: A model cannot be loaded, or the two do not fit.
    """
    with _slots_lock:  # held for a moment: loading one pair does not keep others waiting
        slot = _slots.setdefault(pair, _EngineSlot())
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
    from sgl_engine import SGLEngine

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


def model_profile(large: str | None, engine: Any) -> ModelProfile:
    """Says what a pair can do; ``max_input_tokens`` only where it can be told without loading.

    Args:
        large: Path or hub id of the large model; None, without an engine, is the bundled one.
        engine: A ready engine, or None.
    """
    profile = _CAN.copy()
    context = (
        _context_tokens(large)
        if engine is None
        else min(vlm.context_tokens for vlm in (engine.small, engine.large))
    )
    if context is not None:
        profile["max_input_tokens"] = context
    return profile


def _context_tokens(large: str | None) -> int | None:
    """Reads it from a local folder's config.json; None for a model on the hub, which is not loaded yet."""
    from sgl_engine.demo import WEIGHTS

    folder = WEIGHTS / "large" if large is None else Path(large).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    tokens = text.get("max_position_embeddings")
    return int(tokens) if tokens else None
