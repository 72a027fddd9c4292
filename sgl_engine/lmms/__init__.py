"""The plug-in for lmms-eval: ``lmms-eval --model sgl --model_args small=...,large=...,retention=35%``.

lmms-eval finds it by the entry point ``lmms_eval.models`` and loads all entry points at once, so importing
this loads nothing; ``model`` needs the extra ``lmms``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["manifest"]


def manifest() -> Any:
    """Tells lmms-eval what there is: a ``ModelManifest``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="sgl",
        chat_class_path="sgl_engine.lmms.model.SGLChatModel",
        simple_class_path="sgl_engine.lmms.model.SGLScoringModel",
        aliases=("sgl-cascade",),
    )
