"""LangChain's side of the engine: chat model, tools, middleware, callbacks, indexing and reranking.

Names load on first use: importing this package loads neither torch nor transformers, nor even LangChain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sgl_engine import __version__

if TYPE_CHECKING:
    from langchain_sgl.callbacks import SGLUsageCallbackHandler, get_sgl_usage_callback
    from langchain_sgl.chat_models import ChatSGL
    from langchain_sgl.engines import forget_engines
    from langchain_sgl.evidence import Evidence
    from langchain_sgl.image_blocks import image_block
    from langchain_sgl.index_progress import IndexProgress
    from langchain_sgl.indexer import SGLImageBlobParser, SGLImageIndexer
    from langchain_sgl.manifest import RemovedDocument
    from langchain_sgl.middleware import EscalationBudgetMiddleware
    from langchain_sgl.picture_files import PictureFailure
    from langchain_sgl.picture_store import InMemoryPictureStore, PictureStore, as_picture_store
    from langchain_sgl.reranker import SGLImageReranker
    from langchain_sgl.tools import SGLToolkit, TranscribeTool, VisualQuestionTool
    from langchain_sgl.usage import SGLUsage

_HOME = {
    "ChatSGL": "chat_models",
    "EscalationBudgetMiddleware": "middleware",
    "Evidence": "evidence",
    "InMemoryPictureStore": "picture_store",
    "IndexProgress": "index_progress",
    "PictureFailure": "picture_files",
    "PictureStore": "picture_store",
    "RemovedDocument": "manifest",
    "SGLImageBlobParser": "indexer",
    "SGLImageIndexer": "indexer",
    "SGLImageReranker": "reranker",
    "SGLToolkit": "tools",
    "SGLUsage": "usage",
    "SGLUsageCallbackHandler": "callbacks",
    "TranscribeTool": "tools",
    "VisualQuestionTool": "tools",
    "as_picture_store": "picture_store",
    "forget_engines": "engines",
    "get_sgl_usage_callback": "callbacks",
    "image_block": "image_blocks",
}

__all__ = [
    "ChatSGL",
    "EscalationBudgetMiddleware",
    "Evidence",
    "InMemoryPictureStore",
    "IndexProgress",
    "PictureFailure",
    "PictureStore",
    "RemovedDocument",
    "SGLImageBlobParser",
    "SGLImageIndexer",
    "SGLImageReranker",
    "SGLToolkit",
    "SGLUsage",
    "SGLUsageCallbackHandler",
    "TranscribeTool",
    "VisualQuestionTool",
    "__version__",
    "as_picture_store",
    "forget_engines",
    "get_sgl_usage_callback",
    "image_block",
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
