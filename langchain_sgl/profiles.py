"""What ``ChatSGL`` says that it can do, as LangChain's model profile; loads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from langchain_core.language_models import ModelProfile

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


def model_profile(large: str | None, engine: Any) -> ModelProfile:
    """The profile of a pair; ``max_input_tokens`` only where it can be told without loading.

    Args:
        large: Path or hub id of the large model; None, without an engine, is the bundled one.
        engine: A ready engine, or None.
    """
    profile = _CAN.copy()
    context = _context_tokens(large) if engine is None else min(vlm.context_tokens for vlm in _models(engine))
    if context is not None:
        profile["max_input_tokens"] = context
    return profile


def _models(engine: Any) -> tuple[Any, Any]:
    return engine.small, engine.large


def _context_tokens(large: str | None) -> int | None:
    """From a local folder's config.json; unknown for a model on the hub, until it is loaded."""
    from sgl_engine.demo import WEIGHTS

    folder = WEIGHTS / "large" if large is None else Path(large).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    tokens = text.get("max_position_embeddings")
    return int(tokens) if tokens else None
