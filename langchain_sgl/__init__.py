"""LangChain's side of the engine: chat model, tools, middleware, callbacks, indexing and reranking.

The public names stand in ``__init__.pyi``. They load on first use: importing this package loads neither torch
nor transformers, nor even LangChain.
"""

import lazy_loader

from sgl_engine import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
