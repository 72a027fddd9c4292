"""LangChain's side of the engine: chat model, tools, middleware, callbacks, indexing and reranking.

Names load on first use: importing this package loads neither torch nor transformers, nor even LangChain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sgl_engine import __version__

if TYPE_CHECKING:
    from langchain_sgl.budget.middleware import EscalationBudgetMiddleware
    from langchain_sgl.chat.image_blocks import image_block
    from langchain_sgl.chat.pair import forget_engines
    from langchain_sgl.chat_models import ChatSGL
    from langchain_sgl.evidence import Evidence
    from langchain_sgl.indexing.files import PictureFailure
    from langchain_sgl.indexing.indexer import SGLImageBlobParser, SGLImageIndexer
    from langchain_sgl.indexing.manifest import RemovedDocument
    from langchain_sgl.indexing.progress import IndexProgress
    from langchain_sgl.reranking.reranker import SGLImageReranker
    from langchain_sgl.tools.picture_store import InMemoryPictureStore, PictureStore, as_picture_store
    from langchain_sgl.tools.toolkit import SGLToolkit, TranscribeTool, VisualQuestionTool
    from langchain_sgl.usage.callbacks import SGLUsageCallbackHandler, get_sgl_usage_callback
    from langchain_sgl.usage.usage import SGLUsage

_HOME = {
    "ChatSGL": "chat_models",
    "EscalationBudgetMiddleware": "budget.middleware",
    "Evidence": "evidence",
    "InMemoryPictureStore": "tools.picture_store",
    "IndexProgress": "indexing.progress",
    "PictureFailure": "indexing.files",
    "PictureStore": "tools.picture_store",
    "RemovedDocument": "indexing.manifest",
    "SGLImageBlobParser": "indexing.indexer",
    "SGLImageIndexer": "indexing.indexer",
    "SGLImageReranker": "reranking.reranker",
    "SGLToolkit": "tools.toolkit",
    "SGLUsage": "usage.usage",
    "SGLUsageCallbackHandler": "usage.callbacks",
    "TranscribeTool": "tools.toolkit",
    "VisualQuestionTool": "tools.toolkit",
    "as_picture_store": "tools.picture_store",
    "forget_engines": "chat.pair",
    "get_sgl_usage_callback": "usage.callbacks",
    "image_block": "chat.image_blocks",
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
