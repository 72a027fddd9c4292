"""Small-guided VLM inference: a small model answers first, and tells the large one where to look.

Names load on first use, so that importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgl_engine.answer_scores import AnswerScores
    from sgl_engine.attention import capture_attention
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
    from sgl_engine.engine import SGLEngine
    from sgl_engine.errors import SGLError
    from sgl_engine.large_pass import run_large_pass
    from sgl_engine.pruning import plan_pruning, prune_visual_tokens
    from sgl_engine.report import RunReport
    from sgl_engine.small_pass import run_small_pass
    from sgl_engine.types import (
        ExitDecision,
        ImagePart,
        Message,
        Request,
        Response,
        TextDelta,
        TokenLogprob,
        ToolCall,
        ToolCallDelta,
        ToolSpec,
    )
    from sgl_engine.vlm import VLM

__version__ = "0.1.0"

_HOME = {
    "AnswerScores": "answer_scores",
    "PRESETS": "config",
    "EngineConfig": "config",
    "ExitConfig": "config",
    "ExitDecision": "types",
    "GenerationConfig": "config",
    "ImagePart": "types",
    "LimitsConfig": "config",
    "Message": "types",
    "PruningConfig": "config",
    "Request": "types",
    "Response": "types",
    "RunReport": "report",
    "SGLEngine": "engine",
    "SGLError": "errors",
    "SchedulerConfig": "config",
    "TextDelta": "types",
    "TokenLogprob": "types",
    "ToolCall": "types",
    "ToolCallDelta": "types",
    "ToolSpec": "types",
    "UrlPolicy": "config",
    "VLM": "vlm",
    "capture_attention": "attention",
    "plan_pruning": "pruning",
    "prune_visual_tokens": "pruning",
    "run_large_pass": "large_pass",
    "run_small_pass": "small_pass",
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
