"""LangChain's side of the engine: chat model, tools and middleware on top of `sgl_engine`.

Importing this package loads neither torch nor transformers.
"""

from sgl_engine import __version__

__all__ = ["__version__"]
