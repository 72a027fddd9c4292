"""A pair of models: which weights, the one engine per process that holds them, and what the pair can do.

LangChain builds chat models freely (``configurable_fields`` makes one per call), so the engines are kept
here: the weights of a pair are loaded once per process, on first use.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from langchain_core.language_models import ModelProfile

from langchain_sgl.chat.fields import as_hosted, is_hosted
from sgl_engine import ConfigError
from sgl_engine.model import check_settings, settings_of_each

if TYPE_CHECKING:
    from sgl_engine import VLM, SGLEngine

_logger = logging.getLogger(__name__)
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
    temperature=True,
    reasoning_output=False,
    mid_conversation_system_messages=True,
    mid_conversation_tools=False,
    open_weights=True,
)


@dataclass(frozen=True)
class Pair:
    """Which weights, and how they are loaded; everything else can be changed per call at no cost.

    Attributes:
        small: Path or hub id; None is the bundled small model, for the bundled pair or a hosted large model.
        large: Path or hub id; or a hosted model, or what names one.
        settings: Of both models, as ``sgl_engine.LoadSettings``; None is not set.
        small_settings: Of the small model alone.
        large_settings: Of the large model alone.

    Raises:
        ConfigError: Only one of the models is named, or a setting does not exist.
    """

    small: str | None = None
    large: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    small_settings: Mapping[str, Any] | None = None
    large_settings: Mapping[str, Any] | None = None

    @property
    def bundled(self) -> bool:
        """Whether this is the pair that comes with the package."""
        return self.small is None and self.large is None

    @property
    def hosted(self) -> bool:
        """Whether the large model is on another machine."""
        return is_hosted(self.large)

    @property
    def names_object(self) -> bool:
        """Whether the large model is an object, and not a name."""
        return self.hosted and not isinstance(self.large, str)

    @property
    def key(self) -> str:
        """Tells pairs apart: those with one key share their weights."""
        each = settings_of_each(self.settings, self.small_settings, self.large_settings)
        said = [{name: value for name, value in own.items() if value not in (None, False)} for own in each]
        # An object is itself: it lives as long as the engine that is found by this key.
        large = f"object {id(self.large)}" if self.names_object else self.large
        return json.dumps([self.small, large, *said], sort_keys=True, default=_written)

    def __post_init__(self) -> None:
        if not self.hosted and (self.small is None) != (self.large is None):
            raise ConfigError(
                f"Only one model of the pair is named: small={self.small!r}, large={self.large!r}.",
                remedy="Name both, or neither for the bundled pair.",
            )
        for settings in settings_of_each(self.settings, self.small_settings, self.large_settings):
            check_settings(settings, "The chat model")


def _written(value: Any) -> Any:
    """Writes what JSON cannot hold, quantization settings above all, so that equal ones are equal."""
    if isinstance(value, Mapping):
        return dict(value)
    to_dict = getattr(value, "to_dict", None)
    return to_dict() if callable(to_dict) else repr(value)


def is_bundled(vlm: Any) -> bool:
    """Tells whether a model is one of those that come with the package."""
    return str(vlm.name).startswith("sgl-demo-")


@cache
def warn_of_bundled_pair() -> None:
    """Logs, once per process, what the bundled pair makes of tools and schemas."""
    _logger.warning(
        "The bundled pair knows the pictures that it was trained on, and follows no instructions: given "
        "tools or a schema, it writes what is valid and means nothing. Use a pair that does: "
        "ChatSGL(small=..., large=...)."
    )


class _EngineSlot:
    """Room for the engine of one pair, and the lock under which it is loaded."""

    def __init__(self, *, of_object: bool) -> None:
        self.lock, self.of_object = threading.Lock(), of_object
        self.engine: SGLEngine | None = None


_slots: OrderedDict[str, _EngineSlot] = OrderedDict()
_slots_lock = threading.Lock()
_small_models: WeakValueDictionary[str, VLM] = WeakValueDictionary()
_small_lock = threading.Lock()
_MOST_OBJECTS = 16
"""Hosted models given as objects whose engines are kept: nobody says when one is no longer needed."""


def shared_engine(pair: Pair) -> SGLEngine:
    """Returns the process's engine for ``pair``, and loads it the first time; other threads wait for that.

    A failed load is not remembered: the next call tries again.

    Raises:
        ModelError: A model cannot be loaded, or the two do not fit.
    """
    with _slots_lock:  # held for a moment: loading one pair does not keep others waiting
        slot = _slots.setdefault(pair.key, _EngineSlot(of_object=pair.names_object))
        _slots.move_to_end(pair.key)
        of_objects = [key for key, each in _slots.items() if each.of_object]
        for key in of_objects[:-_MOST_OBJECTS]:  # whoever still uses it makes another engine
            del _slots[key]
    with slot.lock:
        if slot.engine is None:
            slot.engine = _load(pair)
        return slot.engine


def forget_engines() -> None:
    """Drops every shared engine; memory is freed once no chat model uses it any more."""
    with _slots_lock:
        _slots.clear()
    with _small_lock:
        _small_models.clear()


def _load(pair: Pair) -> SGLEngine:
    own: Any = {"small_settings": pair.small_settings, "large_settings": pair.large_settings, **pair.settings}
    if pair.hosted:
        return _load_beside_hosted(pair)
    if pair.bundled:
        from sgl_engine.demo import demo_engine

        return demo_engine(**own)
    from sgl_engine import SGLEngine

    assert pair.small is not None
    assert pair.large is not None
    return SGLEngine.from_pretrained(pair.small, pair.large, **own)


def _load_beside_hosted(pair: Pair) -> SGLEngine:
    """Makes the engine of a hosted model; the small model is shared by all that have the same."""
    from sgl_engine import VLM, EngineConfig, ExitConfig, SGLEngine
    from sgl_engine.demo import SCORER, demo_model

    hosted = as_hosted(pair.large)
    own, _ = settings_of_each(pair.settings, pair.small_settings, None)
    key = json.dumps([pair.small, own], sort_keys=True, default=_written)
    with _small_lock:
        small = _small_models.get(key)
        if small is None:
            name = pair.small
            load = partial(demo_model, "small") if name is None else partial(VLM.from_pretrained, name)
            small = _small_models[key] = load(**own)
    if pair.small is None:
        return SGLEngine(small, hosted, EngineConfig(exit=ExitConfig(scorer=SCORER)))
    return SGLEngine(small, hosted)


def model_profile(large: Any, engine: Any, *, name: str) -> ModelProfile:
    """Says what a pair can do; how many tokens, only where it can be told without loading.

    Args:
        large: Path or hub id of the large model, or a hosted one; None, without an engine: the bundled.
        engine: A ready engine, or None.
        name: What the pair is called.
    """
    profile = _CAN | ModelProfile(name=name)
    context = (
        _context_tokens(large)
        if engine is None
        else min(vlm.context_tokens for vlm in (engine.small, *([] if engine.hosted else [engine.large])))
    )
    if context is not None:
        # Prompt and answer share the context, so either can be nearly all of it.
        profile["max_input_tokens"] = profile["max_output_tokens"] = context
    return profile


def _context_tokens(large: Any) -> int | None:
    """Reads it from a local folder's config.json; None for a model on the hub, which is not loaded yet."""
    from sgl_engine.demo import WEIGHTS

    if is_hosted(large):
        return None
    folder = WEIGHTS / "large" if large is None else Path(large).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    tokens = text.get("max_position_embeddings")
    return int(tokens) if tokens else None
