"""Small-guided VLM inference: a small model answers first, and tells the large one where to look.

Names load on first use, so that importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgl_engine.attention.capture import capture_attention
    from sgl_engine.chat.tool_stream import TextDelta, ToolCallDelta
    from sgl_engine.config import (
        PRESETS,
        EngineConfig,
        ExitConfig,
        GenerationConfig,
        LimitsConfig,
        PruningConfig,
        SchedulerConfig,
        UrlPolicy,
    )
    from sgl_engine.decoding.answer import TokenLogprob
    from sgl_engine.engine import SGLEngine
    from sgl_engine.errors import SGLError
    from sgl_engine.exit.decision import ExitDecision
    from sgl_engine.model.vlm import VLM
    from sgl_engine.passes.large import run_large_pass
    from sgl_engine.passes.small import run_small_pass
    from sgl_engine.pruning.patch import prune_visual_tokens
    from sgl_engine.pruning.plan import plan_pruning
    from sgl_engine.report.run_report import RunReport
    from sgl_engine.request import ImagePart, Message, Request, ToolCall, ToolSpec
    from sgl_engine.response import AnswerScores, Response

__version__ = "0.1.0"

_HOME = {
    "AnswerScores": "response",
    "EngineConfig": "config",
    "ExitConfig": "config",
    "ExitDecision": "exit.decision",
    "GenerationConfig": "config",
    "ImagePart": "request",
    "LimitsConfig": "config",
    "Message": "request",
    "PRESETS": "config",
    "PruningConfig": "config",
    "Request": "request",
    "Response": "response",
    "RunReport": "report.run_report",
    "SGLEngine": "engine",
    "SGLError": "errors",
    "SchedulerConfig": "config",
    "TextDelta": "chat.tool_stream",
    "TokenLogprob": "decoding.answer",
    "ToolCall": "request",
    "ToolCallDelta": "chat.tool_stream",
    "ToolSpec": "request",
    "UrlPolicy": "config",
    "VLM": "model.vlm",
    "capture_attention": "attention.capture",
    "plan_pruning": "pruning.plan",
    "prune_visual_tokens": "pruning.patch",
    "run_large_pass": "passes.large",
    "run_small_pass": "passes.small",
}

__all__ = [
    "PRESETS",
    "VLM",
    "AnswerScores",
    "EngineConfig",
    "ExitConfig",
    "ExitDecision",
    "GenerationConfig",
    "ImagePart",
    "LimitsConfig",
    "Message",
    "PruningConfig",
    "Request",
    "Response",
    "RunReport",
    "SGLEngine",
    "SGLError",
    "SchedulerConfig",
    "TextDelta",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "ToolSpec",
    "UrlPolicy",
    "__version__",
    "capture_attention",
    "plan_pruning",
    "prune_visual_tokens",
    "run_large_pass",
    "run_small_pass",
]


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
